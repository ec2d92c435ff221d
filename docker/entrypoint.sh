#!/bin/sh
# Entrypoint of the image: tells dev (all in one container), web, code-server, daemon, monitor and train apart; anything else is
# a command to run as it is, which is how run containers start.
set -eu

# The database's password comes as a file and becomes a variable of this process, because Dagster's settings can read
# no file; so it is no part of the container's configuration.
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then
  # Another file would hand its content to whatever the database's host is.
  if [ "$POSTGRES_PASSWORD_FILE" != /run/secrets/postgres_password ]; then
    echo "entrypoint: POSTGRES_PASSWORD_FILE=$POSTGRES_PASSWORD_FILE: expected /run/secrets/postgres_password" >&2
    exit 78
  fi
  if [ ! -r "$POSTGRES_PASSWORD_FILE" ]; then
    echo "entrypoint: $POSTGRES_PASSWORD_FILE is not readable by uid $(id -u); give the secret's file to that user" >&2
    exit 78
  fi
  POSTGRES_PASSWORD=$(cat "$POSTGRES_PASSWORD_FILE")
  export POSTGRES_PASSWORD
fi

# A single container has the settings of a single machine; the deployment mounts settings of its own.
if [ ! -e "$DAGSTER_HOME/dagster.yaml" ]; then
  cp /opt/uveitis/dagster.yaml "$DAGSTER_HOME/dagster.yaml"
fi

role=${1:-dev}
[ $# -eq 0 ] || shift
case $role in
  dev)
    exec dagster dev --host 0.0.0.0 --port 3000 --module-name uveitis_assets.definitions "$@"
    ;;
  web)
    exec dagster-webserver --host 0.0.0.0 --port 3000 --workspace /opt/uveitis/workspace.yaml "$@"
    ;;
  code-server)
    exec dagster code-server start --host 0.0.0.0 --port 4000 --module-name uveitis_assets.definitions \
      --location-name uveitis_assets "$@"
    ;;
  daemon)
    python -m uveitis_assets.deployment.gpu_pool
    exec dagster-daemon run --workspace /opt/uveitis/workspace.yaml "$@"
    ;;
  monitor)
    exec python -m uveitis_assets.deployment.monitoring.monitor "$@"
    ;;
  train)
    if [ $# -eq 0 ]; then
      echo "entrypoint: train takes the detector lane first, for example: train uveitis_ft --partition fold0" >&2
      exit 64
    fi
    lane=$1
    shift
    exec dagster asset materialize --module-name uveitis_assets.definitions --select "$lane/checkpoint" "$@"
    ;;
  *)
    exec "$role" "$@"
    ;;
esac
