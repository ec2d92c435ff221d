#!/bin/sh
# Entrypoint of the image: tells dev (all in one container), web, code-server, daemon and train apart; anything else is
# a command to run as it is, which is how run containers start.
set -eu

# Secrets come as files: NAME_FILE=/run/secrets/name becomes NAME for this process, so that no value is part of the
# container's configuration.
for variable in $(env | sed -n 's|^\([A-Z][A-Z0-9_]*\)_FILE=/run/secrets/.*|\1|p'); do
  file=$(printenv "${variable}_FILE")
  if [ ! -r "$file" ]; then
    echo "entrypoint: $file is not readable by uid $(id -u); give the secret's file to that user" >&2
    exit 78
  fi
  export "$variable=$(cat "$file")"
done

# A container by itself keeps its books like a single machine; the deployment mounts settings of its own.
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
    exec dagster-daemon run --workspace /opt/uveitis/workspace.yaml "$@"
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
