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
  (umask 077 && make_folder "$secrets")
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
  # The monitor mounts these; empty they serve alerts that need none.
  local file
  for file in "$secrets/smtp_password" "$secrets/alert_webhook"; do
    [[ -e $file ]] || (umask 077 && : >"$file")
  done
  make_folder "$state/monitor"
  if [[ $(id -u) == 0 ]]; then
    chown "$uid:$gid" "$secrets" "$secrets/postgres_password" "$secrets/smtp_password" "$secrets/alert_webhook" "$key"
  fi
}

# Compose and the engine split mounts at colons, and compose's settings file knows quotes, comments and variables.
check_values() {
  local name value port=$1 deployment=$2 forbidden=$'[[:space:][:cntrl:]:"\'`$#\\]'
  shift 2
  while [[ $# -gt 0 ]]; do
    name=$1 value=$2
    shift 2
    [[ $value == /* ]] || fail "$name=$value: expected an absolute path, because the engine mounts it."
    [[ ! $value =~ $forbidden ]] ||
      fail "$name=$(printf %q "$value"): expected a path without colons, spaces, line breaks, quotes, \$, # and backslashes, because compose and the engine split mounts and settings there. Choose another folder."
  done
  [[ $port =~ ^[1-9][0-9]{0,4}$ && $port -le 65535 ]] ||
    fail "PORT=$(printf %q "$port"): expected a whole number from 1 to 65535."
  [[ $deployment =~ ^[a-z0-9][a-z0-9_-]*$ ]] ||
    fail "UVEITIS_DEPLOYMENT=$(printf %q "$deployment"): expected small letters, digits, - and _, with a letter or digit first, because compose names its project so."
  if [[ ! $uid =~ ^[0-9]+$ || ! $gid =~ ^[0-9]+$ ]]; then
    fail "UVEITIS_UID=$uid, UVEITIS_GID=$gid: expected whole numbers."
  fi
}

# Make a folder with its parents; as root, those that are made belong to the deployment's user.
make_folder() {
  local folder=$1 missing=()
  while [[ ! -e $folder ]]; do
    missing+=("$folder")
    folder=$(dirname "$folder")
  done
  mkdir -p "$1"
  [[ $(id -u) != 0 || ${#missing[@]} == 0 ]] || chown "$uid:$gid" "${missing[@]}"
}

# Containers get their mounts from the engine, but the user also has to come to the folders.
warn_if_closed() {
  local folder
  if [[ $(id -u) != 0 ]] || ! command -v setpriv >/dev/null; then
    return 0
  fi
  for folder in "$@"; do
    setpriv --reuid "$uid" --regid "$gid" --clear-groups test -r "$folder" -a -x "$folder" ||
      echo "prepare.sh: warning: uid $uid cannot reach $folder on this host; open its parents with chmod o+x, or choose other folders" >&2
  done
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
  data=$(setting UVEITIS_DATA)
  raw=$(setting UVEITIS_RAW)
  for name in secrets state uid gid data raw; do
    [[ -n ${!name} ]] ||
      fail "$settings: found no value of UVEITIS_${name^^}. Add it, or delete the file to have it written anew."
  done
  (check_values "$(setting PORT)" "$(setting UVEITIS_DEPLOYMENT)" UVEITIS_DATA "$data" UVEITIS_RAW "$raw" \
    UVEITIS_STATE "$state" UVEITIS_SECRETS "$secrets") ||
    fail "$settings: correct it, or delete the file to have it written anew."
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
port=${PORT:-3000}
deployment=${UVEITIS_DEPLOYMENT:-uveitis}
application=${IMAGE_TAG:-uveitis-assets:latest}
postgres=${POSTGRES_IMAGE:-postgres:16-bookworm}
workers=${UVEITIS_WORKERS:-}

if [[ $uid == 0 ]]; then
  fail "found uid 0: artefacts and Postgres should not belong to root. Call this as the user who shall own them, or set UVEITIS_UID and UVEITIS_GID."
fi
check_values "$port" "$deployment" UVEITIS_DATA "$data" UVEITIS_RAW "$raw" UVEITIS_STATE "$state" \
  UVEITIS_SECRETS "$secrets" DOCKER_SOCKET "$socket"
for image in "$application" "$postgres"; do
  [[ $image =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] || fail "IMAGE_TAG or POSTGRES_IMAGE: expected an image's name, found $(printf %q "$image")."
done
[[ $workers =~ ^([1-9][0-9]*)?$ ]] || fail "UVEITIS_WORKERS=$(printf %q "$workers"): expected a whole number above 0, or nothing."
# Paths without links: manifests name files by them, in containers and outside.
data=$(realpath --canonicalize-missing "$data")
raw=$(realpath --canonicalize-missing "$raw")
case $raw/ in
  "$data"/*) fail "$raw lies inside $data, which runs may write to. Set UVEITIS_RAW to a folder outside, so that raw images stay read-only." ;;
esac
[[ -S $socket ]] || fail "$socket: found no socket of a Docker engine. Start the engine, or set DOCKER_SOCKET."

umask 027
for folder in "$data" "$raw" "$state" "$state/dagster" "$state/postgres" "$state/engine"; do
  make_folder "$folder"
done
make_missing_secrets
if [[ $(id -u) == 0 ]]; then
  chown "$uid:$gid" "$data" "$raw" "$state" "$state/dagster" "$state/postgres" "$state/engine"
fi

# Under its final name only when it is whole.
trap 'rm -f "$settings.partial"' EXIT
cat >"$settings.partial" <<SETTINGS
# Written by docker/prepare.sh; read by docker compose. No secrets in here.
COMPOSE_PROJECT_NAME=$deployment
UVEITIS_DEPLOYMENT=$deployment
IMAGE_TAG=$application
POSTGRES_IMAGE=$postgres
PORT=$port
UVEITIS_UID=$uid
UVEITIS_GID=$gid
DOCKER_SOCKET=$socket
DOCKER_GID=$(stat -c %g "$socket")
UVEITIS_DATA=$data
UVEITIS_RAW=$raw
UVEITIS_STATE=$state
UVEITIS_SECRETS=$secrets
UVEITIS_WORKERS=$workers
SETTINGS
# The deployment's user reads it too: compose, doctor, backup.
[[ $(id -u) != 0 ]] || chown "$uid:$gid" "$settings.partial"
mv "$settings.partial" "$settings"
warn_if_closed "$data" "$raw" "$state" "$secrets"
echo "Wrote $settings"
echo "Raw images go to $raw; artefacts come to $data."
echo "Start it with docker/compose.sh up -d (docker compose, or docker-compose where that is what the host has)."
