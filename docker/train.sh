#!/usr/bin/env bash
# Train a detector lane in a container: docker/train.sh uveitis_ft --partition fold0
# What follows the lane goes to `dagster asset materialize`. Variables: see docker/container.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=container.sh
source "$(dirname "${BASH_SOURCE[0]}")/container.sh"

if [[ $# -eq 0 ]]; then
  echo "train.sh: expected a detector lane first, for example: docker/train.sh uveitis_ft --partition fold0" >&2
  exit 64
fi
container_options uveitis-train
exec "$docker" run "${options[@]}" "$image" train "$@"
