#!/usr/bin/env bash
# Trains on a Cloud TPU: the same command on all workers of a TPU VM.
#
#   export TPU_NAME=gct ZONE=us-central2-b ACCELERATOR=v4-32 REPOSITORY=https://... BUCKET=gs://...
#   bash launch/cluster/tpu_vm.sh create
#   bash launch/cluster/tpu_vm.sh install
#   bash launch/cluster/tpu_vm.sh train --config configs/base.py:ctvit --workdir "$BUCKET/ctvit" \
#       data.source=shards data.folder="$BUCKET/shards" 'loop.mesh=[-1, 4, 1]'
#   bash launch/cluster/tpu_vm.sh logs
#   bash launch/cluster/tpu_vm.sh stop        # SIGTERM: all workers save the same step
#   bash launch/cluster/tpu_vm.sh delete
#
# VERSION (tpu-ubuntu2204-base) is the image, PROJECT that of gcloud if unset, SPOT=1 asks for
# preemptible capacity, EXTRAS (tpu,train,data) what is installed. DRY_RUN=1 prints what would be run.
# It needs `gcloud`, logged in. The folder of --workdir must be one that all workers see.
set -euo pipefail

fail() {
  echo "tpu_vm.sh: error: $*" >&2
  exit 2
}

command=${1:-}
if [[ -z $command ]]; then fail "name what to do: create, install, train, logs, stop or delete"; fi
shift
if [[ -z ${TPU_NAME:-} || -z ${ZONE:-} ]]; then fail "set TPU_NAME and ZONE"; fi
where=("$TPU_NAME" --zone "$ZONE")
if [[ -n ${PROJECT:-} ]]; then where+=(--project "$PROJECT"); fi

run() {
  if [[ ${DRY_RUN:-} == 1 ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_workers() { # WORKER COMMAND
  run gcloud compute tpus tpu-vm ssh "${where[@]}" --worker="$1" --command "$2"
}

case $command in
  create)
    if [[ -z ${ACCELERATOR:-} ]]; then fail "set ACCELERATOR, for instance v4-32"; fi
    spot=()
    if [[ ${SPOT:-} == 1 ]]; then spot=(--spot); fi
    run gcloud compute tpus tpu-vm create "${where[@]}" --accelerator-type "$ACCELERATOR" \
      --version "${VERSION:-tpu-ubuntu2204-base}" "${spot[@]}"
    ;;
  install)
    if [[ -z ${REPOSITORY:-} ]]; then fail "set REPOSITORY, what to clone"; fi
    on_workers all "test -d gct_jax || git clone $(printf '%q' "$REPOSITORY") gct_jax; cd gct_jax \
&& git pull --ff-only && (test -d .venv || python3 -m venv .venv) \
&& .venv/bin/pip install -q -e '.[${EXTRAS:-tpu,train,data}]'"
    ;;
  train)
    if (($# == 0)); then fail "give the options of launch.train"; fi
    # In the background of each worker, so that a lost connection ends nothing. The anchor keeps
    # pgrep from finding the shell that runs this.
    on_workers all "cd gct_jax || exit 2; \
if pgrep -f '^bash launch/cluster/restart.sh' > /dev/null; \
then echo 'already training here; stop it first' >&2; exit 2; fi; \
nohup bash launch/cluster/restart.sh .venv/bin/python \
-m launch.train --multi-host$(printf ' %q' "$@") >> train.log 2>&1 < /dev/null & \
sleep 3; if kill -0 \$! 2> /dev/null; then echo started; else tail -n 3 train.log >&2; exit 2; fi"
    ;;
  logs)
    on_workers "${WORKER:-0}" "tail -n ${LINES_SHOWN:-40} gct_jax/train.log"
    ;;
  stop)
    on_workers all "pkill -TERM -f '^bash launch/cluster/restart.sh'"
    ;;
  delete)
    run gcloud compute tpus tpu-vm delete "${where[@]}" --quiet
    ;;
  *)
    fail "'$command' is none of create, install, train, logs, stop, delete"
    ;;
esac
