#!/usr/bin/env bash
# Pack what training and prediction made into one archive: docker/export.sh [archive, default uveitis_runs.tar.gz]
# The ledger with the patient ids is not among it. Variable: UVEITIS_DATA (default <repository>/data).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
data=${UVEITIS_DATA:-$root/data}
archive=${1:-uveitis_runs.tar.gz}

folders=()
for folder in runs preds preds_vis eval; do
  [[ ! -d $data/$folder ]] || folders+=("$folder")
done
if [[ ${#folders[@]} -eq 0 ]]; then
  echo "export.sh: $data: found none of runs, preds, preds_vis, eval; set UVEITIS_DATA to the folder of the artefacts" >&2
  exit 2
fi
# Under its final name only when it is whole.
trap 'rm -f "$archive.partial"' EXIT
tar --create --gzip --file "$archive.partial" --directory "$data" "${folders[@]}"
mv "$archive.partial" "$archive"
echo "Wrote $archive: ${folders[*]}"
