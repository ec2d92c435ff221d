# shellcheck shell=bash
# What run.sh, train.sh and web.sh share: the options of a single container, in the array `options`. Sourced by them.
#
# IMAGE_TAG, CONTAINER_NAME, DOCKER (the client) as usual. DOCKER_RUN_ARGS replaces the default `--shm-size=8g`.
# GPU_ARGS replaces the detection; empty means no GPU. RUN_AS_HOST_UID=0 keeps the image's user. WANDB_KEY_FILE is
# mounted, and its content is in no container's configuration. UVEITIS_DATA, UVEITIS_RAW, DAGSTER_HOME are the host's
# folders.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
docker=${DOCKER:-docker}
# shellcheck disable=SC2034  # used by the scripts that source this
image=${IMAGE_TAG:-uveitis-assets:latest}

detect_gpu() {
  if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1 \
    && "$docker" info --format '{{json .Runtimes}}' 2>/dev/null | grep -q '"nvidia"'; then
    # Both: there are hosts where --gpus alone ends in "Failed to initialize NVML".
    echo "--runtime=nvidia --gpus all"
  fi
}

# The arguments after the container's name are further options.
container_options() {
  local name=$1 data=${UVEITIS_DATA:-$root/data} home=${DAGSTER_HOME:-$root/.dagster_home} gpu further key
  local raw=${UVEITIS_RAW:-$data/raw}
  shift
  # Docker would make missing folders, and they would belong to root.
  mkdir -p "$data" "$raw" "$home"
  # The same paths inside as outside: manifests name files, and what they name is then true in both.
  data=$(realpath "$data")
  raw=$(realpath "$raw")
  gpu=${GPU_ARGS-$(detect_gpu)}
  read -r -a gpu <<<"$gpu"
  read -r -a further <<<"${DOCKER_RUN_ARGS---shm-size=8g}"
  options=(--rm --init --name "${CONTAINER_NAME:-$name}" --cap-drop ALL --security-opt no-new-privileges:true)
  options+=("${gpu[@]}" "${further[@]}")
  if [[ ${RUN_AS_HOST_UID:-1} != 0 ]]; then
    options+=(--user "$(id -u):$(id -g)" --env HOME=/tmp --env USER=uveitis)
  fi
  options+=(--volume "$data:$data" --env "UVEITIS_DATA=$data" --volume "$raw:$raw:ro" --env "UVEITIS_RAW=$raw")
  options+=(--volume "$(realpath "$home"):/state" --env DAGSTER_HOME=/state)
  key=${WANDB_KEY_FILE:-$root/.wandb_api_key}
  if [[ -s $key ]]; then
    options+=(--volume "$(realpath "$key"):/run/secrets/uveitis_wandb_key:ro")
    options+=(--env UVEITIS_WANDB_KEY_FILE=/run/secrets/uveitis_wandb_key)
  elif [[ -n ${WANDB_KEY_FILE:-} ]]; then
    echo "WANDB_KEY_FILE=$WANDB_KEY_FILE: found no such file, or an empty one" >&2
    exit 2
  fi
  options+=("$@")
}
