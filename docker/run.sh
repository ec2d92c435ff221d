#!/usr/bin/env bash
# Open a shell in the image, on the GPU if there is one; or run the command given as arguments.
# Variables: see docker/container.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=container.sh
source "$(dirname "${BASH_SOURCE[0]}")/container.sh"

terminal=(--interactive)
[[ ! -t 0 ]] || terminal+=(--tty)
container_options uveitis-run "${terminal[@]}"
[[ $# -gt 0 ]] || set -- bash
exec "$docker" run "${options[@]}" "$image" "$@"
