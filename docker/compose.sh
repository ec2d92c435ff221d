#!/usr/bin/env bash
# Call compose on the deployment: docker/compose.sh up -d, docker/compose.sh logs daemon
# Takes `docker compose` (version 2), or the older program `docker-compose` (1.28 or newer) where the client lacks it.
# Variables: SETTINGS_FILE (default docker/.env), DOCKER (the client).
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
settings=${SETTINGS_FILE:-$folder/.env}
docker=${DOCKER:-docker}

if [[ ! -r $settings ]]; then
  echo "compose.sh: $settings: found no settings that this user may read; call docker/prepare.sh first" >&2
  exit 2
fi
# Variables of the shell would win over the settings file.
while IFS= read -r name; do
  unset "$name"
done < <(sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' "$settings")
if "$docker" compose version >/dev/null 2>&1; then
  program=("$docker" compose)
elif command -v docker-compose >/dev/null; then
  program=(docker-compose)
else
  echo "compose.sh: found neither 'docker compose' nor docker-compose; install docker-compose-plugin (Docker's packages) or docker-compose (Debian's)" >&2
  exit 2
fi
exec "${program[@]}" --env-file "$settings" -f "$folder/compose.yaml" "$@"
