#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster that has the JobSet controller.
#
#   export NAME=ctvit IMAGE=REGISTRY/gct_jax ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x8 \
#       HOSTS=8 CHIPS=4
#   bash launch/cluster/gke.sh --config configs/base.py:ctvit --workdir gs://BUCKET/ctvit \
#       data.source=shards data.folder=gs://BUCKET/shards 'loop.mesh=[-1, 4, 1]'
#
# HOSTS and CHIPS (of a host) are those of the topology. The image holds the clone as /gct_jax with
# `pip install -e '.[tpu,train,data]'` done. RESTARTS (100) is how often a run that ends unfinished
# is started again. DRY_RUN=1 prints the manifest instead of applying it.
set -euo pipefail

fail() {
  echo "gke.sh: error: $*" >&2
  exit 2
}

if (($# == 0)); then fail "give the options of launch.train"; fi
export RESTARTS=${RESTARTS:-100}
missing=()
for name in NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS; do
  if [[ -z ${!name:-} ]]; then missing+=("$name"); fi
done
if ((${#missing[@]})); then fail "set ${missing[*]}"; fi
for name in HOSTS CHIPS RESTARTS; do
  if [[ ! ${!name} =~ ^[0-9]+$ ]]; then fail "$name is a whole number, not '${!name}'"; fi
done

quoted=()
for argument in "$@"; do
  argument=${argument//\\/\\\\}
  quoted+=("\"${argument//\"/\\\"}\"")
done
joined=$(
  IFS=,
  echo "${quoted[*]}"
)
export ARGUMENTS="[$joined]"

manifest=$(< "$(dirname "$0")/jobset.yaml")
for name in NAME IMAGE ACCELERATOR TOPOLOGY HOSTS CHIPS RESTARTS ARGUMENTS; do
  manifest=${manifest//"\${$name}"/"${!name}"}
done
if [[ ${DRY_RUN:-} == 1 ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<< "$manifest"
fi
