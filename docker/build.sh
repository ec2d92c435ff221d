#!/usr/bin/env bash
# Build the image. Variables: IMAGE_TAG, BASE_IMAGE (Debian or Python 3.11 on Debian), CA_BUNDLE (file with the
# certificates of a network that signs TLS anew), DOCKER_BUILD_ARGS (further flags), DOCKER (the client).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
revision=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
if [[ $revision != unknown && -n $(git -C "$root" status --porcelain 2>/dev/null) ]]; then
  revision+=-modified
fi

arguments=(--file "$root/docker/Dockerfile" --tag "${IMAGE_TAG:-uveitis-assets:latest}")
arguments+=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision")
[[ -z ${BASE_IMAGE:-} ]] || arguments+=(--build-arg "BASE_IMAGE=$BASE_IMAGE")
[[ -z ${CA_BUNDLE:-} ]] || arguments+=(--secret "id=ca,src=$CA_BUNDLE")
# Split at spaces: the variable holds flags.
read -r -a further <<<"${DOCKER_BUILD_ARGS:-}"

DOCKER_BUILDKIT=1 exec "${DOCKER:-docker}" build "${arguments[@]}" "${further[@]}" "$@" "$root"
