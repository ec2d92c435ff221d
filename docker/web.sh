#!/usr/bin/env bash
# Open the UI, with a daemon beside it, in one container on http://127.0.0.1:$PORT (default 3000). Runs are processes
# of this container; docker/compose.yaml is the deployment that starts a container for each.
# Variables: PORT, and those of docker/container.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=container.sh
source "$(dirname "${BASH_SOURCE[0]}")/container.sh"

container_options uveitis-web --publish "127.0.0.1:${PORT:-3000}:3000"
exec "$docker" run "${options[@]}" "$image" dev "$@"
