#!/usr/bin/env bash
# Prepare a host for docker/compose.yaml: folders, a Postgres password, and docker/.env with what compose needs to know.
# A second call changes nothing that is there, but makes secrets that are missing; delete docker/.env to have it written
# anew.
#
# Variables: UVEITIS_HOME (default <repository>/deployment) and below it UVEITIS_DATA, UVEITIS_RAW, UVEITIS_STATE,
# UVEITIS_SECRETS; UVEITIS_UID and UVEITIS_GID (default: yours); IMAGE_TAG; PORT; POSTGRES_IMAGE; UVEITIS_DEPLOYMENT;
# DOCKER_SOCKET; WANDB_KEY_FILE (copied to the secrets); SETTINGS_FILE (default docker/.env).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

settings=${SETTINGS_FILE:-$root/docker/.env}
tracking_key=${WANDB_KEY_FILE:-/dev/null}

fail() {
  echo "prepare.sh: $*" >&2
  exit 2
}

# Needs $secrets, $state, $uid and $gid.
make_missing_secrets() {
  (umask 077 && mkdir -p "$secrets")
  if [[ ! -s $secrets/postgres_password ]]; then
    [[ ! -e $state/postgres/pgdata ]] ||
      fail "$secrets/postgres_password: found none, but a database in $state/postgres, which a new password does not open. Restore the file."
    (umask 077 && head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$secrets/postgres_password")
  fi
  # Runs mount it, so it has to be there; empty it serves trainings that do not log to Weights & Biases.
  local key=$secrets/uveitis_wandb_key
  if [[ ! -e $key || (-n ${WANDB_KEY_FILE:-} && ! -s $key) ]]; then
    (umask 077 && cat "$tracking_key" >"$key")
  elif [[ -n ${WANDB_KEY_FILE:-} ]] && ! cmp -s "$tracking_key" "$key"; then
    echo "$key holds another key than $tracking_key and stays as it is; remove it to have it made anew."
  fi
  if [[ $(id -u) == 0 ]]; then
    chown "$uid:$gid" "$secrets" "$secrets/postgres_password" "$key"
  fi
}

setting() {
  sed -n "s/^$1=//p" "$settings" | tail -n 1
}

[[ -z ${WANDB_KEY_FILE:-} || -s $tracking_key ]] || fail "WANDB_KEY_FILE=$tracking_key: found no such file, or an empty one."
if [[ -e $settings ]]; then
  echo "$settings is there and stays as it is."
  secrets=$(setting UVEITIS_SECRETS)
  state=$(setting UVEITIS_STATE)
  uid=$(setting UVEITIS_UID)
  gid=$(setting UVEITIS_GID)
  [[ $secrets == /* && $uid =~ ^[0-9]+$ && $gid =~ ^[0-9]+$ ]] ||
    fail "$settings: expected UVEITIS_SECRETS (an absolute path), UVEITIS_UID and UVEITIS_GID (numbers), found '$secrets', '$uid' and '$gid'. Correct them, or delete the file to have it written anew."
  make_missing_secrets
  exit 0
fi

home=${UVEITIS_HOME:-$root/deployment}
data=${UVEITIS_DATA:-$home/data}
raw=${UVEITIS_RAW:-$home/raw}
state=${UVEITIS_STATE:-$home/state}
secrets=${UVEITIS_SECRETS:-$home/secrets}
uid=${UVEITIS_UID:-$(id -u)}
gid=${UVEITIS_GID:-$(id -g)}
socket=${DOCKER_SOCKET:-/var/run/docker.sock}

if [[ $uid == 0 ]]; then
  fail "found uid 0: artefacts and Postgres should not belong to root. Call this as the user who shall own them, or set UVEITIS_UID and UVEITIS_GID."
fi
for folder in "$data" "$raw" "$state" "$secrets"; do
  [[ $folder == /* ]] || fail "$folder: expected an absolute path, because the engine mounts it."
done
# Paths without links: manifests name files by them, in containers and outside.
data=$(realpath --canonicalize-missing "$data")
raw=$(realpath --canonicalize-missing "$raw")
case $raw/ in
  "$data"/*) fail "$raw lies inside $data, which runs may write to. Set UVEITIS_RAW to a folder outside, so that raw images stay read-only." ;;
esac
[[ -S $socket ]] || fail "$socket: found no socket of a Docker engine. Start the engine, or set DOCKER_SOCKET."

umask 027
mkdir -p "$data" "$raw" "$state/dagster" "$state/postgres" "$state/engine"
make_missing_secrets
if [[ $(id -u) == 0 ]]; then
  chown "$uid:$gid" "$data" "$raw" "$state" "$state/dagster" "$state/postgres" "$state/engine"
fi

cat >"$settings" <<SETTINGS
# Written by docker/prepare.sh; read by docker compose. No secrets in here.
COMPOSE_PROJECT_NAME=${UVEITIS_DEPLOYMENT:-uveitis}
UVEITIS_DEPLOYMENT=${UVEITIS_DEPLOYMENT:-uveitis}
IMAGE_TAG=${IMAGE_TAG:-uveitis-assets:latest}
POSTGRES_IMAGE=${POSTGRES_IMAGE:-postgres:16-bookworm}
PORT=${PORT:-3000}
UVEITIS_UID=$uid
UVEITIS_GID=$gid
DOCKER_SOCKET=$socket
DOCKER_GID=$(stat -c %g "$socket")
UVEITIS_DATA=$data
UVEITIS_RAW=$raw
UVEITIS_STATE=$state
UVEITIS_SECRETS=$secrets
UVEITIS_WORKERS=${UVEITIS_WORKERS:-}
SETTINGS
echo "Wrote $settings"
echo "Raw images go to $raw; artefacts come to $data."
