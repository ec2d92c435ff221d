#!/usr/bin/env bash
# Call uveitis-assets doctor or submit from the image, on a host without Python packages:
# docker/client.sh doctor; docker/client.sh submit uwf700 --missing
# Variables: SETTINGS_FILE (default docker/.env), DOCKER (the client). Only the doctor gets the engine's socket.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
docker=${DOCKER:-docker}
settings=${SETTINGS_FILE:-$root/docker/.env}

fail() {
  echo "client.sh: $*" >&2
  exit 2
}

setting() {
  sed -n "s/^$1=//p" "$settings" | tail -n 1
}

command=${1:-}
[[ $command == doctor || $command == submit ]] ||
  fail "expected doctor or submit first, found '$command'; other commands run with docker/compose.sh exec code-server entrypoint.sh uveitis-assets"
[[ -r $settings ]] || fail "$settings: found no settings that this user may read; call docker/prepare.sh first"
settings=$(realpath "$settings")

# The host's network, because the UI answers on the host's loopback only.
options=(--rm --init --network host --cap-drop ALL --security-opt no-new-privileges:true)
options+=(--user "$(setting UVEITIS_UID):$(setting UVEITIS_GID)" --env HOME=/tmp)
options+=(--env "UVEITIS_URL=http://127.0.0.1:$(setting PORT)")
[[ ! -t 1 ]] || options+=(--tty)
if [[ $command == doctor ]]; then
  # Under the paths of the host, which it checks.
  for folder in UVEITIS_DATA UVEITIS_RAW UVEITIS_STATE UVEITIS_SECRETS; do
    [[ -d $(setting "$folder") ]] || fail "$(setting "$folder"): found no folder of $folder; make it, or correct $settings"
    options+=(--mount "type=bind,source=$(setting "$folder"),target=$(setting "$folder"),readonly")
  done
  options+=(--mount "type=bind,source=$settings,target=/settings/env,readonly")
  options+=(--mount "type=bind,source=$root/docker/dagster.yaml,target=/settings/dagster.yaml,readonly")
  options+=(--mount "type=bind,source=$(setting DOCKER_SOCKET),target=$(setting DOCKER_SOCKET)")
  options+=(--group-add "$(setting DOCKER_GID)" --env UVEITIS_SETTINGS=/settings/env --env "UVEITIS_DATA=$(setting UVEITIS_DATA)")
fi
exec "$docker" run "${options[@]}" "$(setting IMAGE_TAG)" uveitis-assets "$@"
