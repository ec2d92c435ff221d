#!/usr/bin/env bash
# Download a SAM 2.1 checkpoint into the folder that runs mount: docker/sam2_weights.sh [tiny|small|base_plus|large]
# Variables: UVEITIS_DATA (default <repository>/data), SAM2_URL (folder of the files, for a mirror).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

model=${1:-base_plus}
case $model in
  tiny) expected=7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69 ;;
  small) expected=6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38 ;;
  base_plus) expected=a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5 ;;
  large) expected=2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318 ;;
  *)
    echo "sam2_weights.sh: found model $model; expected tiny, small, base_plus or large" >&2
    exit 64
    ;;
esac

folder=${UVEITIS_DATA:-$root/data}/models/sam2
file=$folder/sam2.1_hiera_$model.pt
matches() { echo "$expected  $1" | sha256sum --check --status; }

if [[ -e $file ]]; then
  if matches "$file"; then
    echo "$file is there and right."
    exit 0
  fi
  echo "sam2_weights.sh: $file: found another SHA-256 than $expected; remove the file and call this again" >&2
  exit 1
fi
mkdir -p "$folder"
url=${SAM2_URL:-https://dl.fbaipublicfiles.com/segment_anything_2/092824}/sam2.1_hiera_$model.pt
curl --location --fail --silent --show-error --retry 3 --output "$file.partial" "$url"
if ! matches "$file.partial"; then
  rm "$file.partial"
  echo "sam2_weights.sh: $url: its SHA-256 is not $expected; nothing was kept. Try again, or ask who runs the mirror" >&2
  exit 1
fi
mv "$file.partial" "$file"
echo "Wrote $file"
