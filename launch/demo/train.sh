#!/usr/bin/env bash
# Train the demo model from nothing to gct_jax/assets/demo. Run it again to resume; a stage that was
# stopped ends with exit code 75, and so does this script.
#
#     bash launch/demo/train.sh [FOLDER] [MODEL_FOLDER]
#
# Takes about 90 minutes and 8 GB on two CPU cores: the shipped model's run from nothing took 86 min
# 16 s. FOLDER (default out/demo) takes the rendered cases, checkpoints, metrics and sample images;
# stage by stage:
#     ctvit     every case rendered at 33 x 64 x 64, twice: with its findings and with others; the
#               tokenizer
#     t5        vocabulary, the text encoder on reports alone
#     maskgit   tokens of every case, MaskGIT together with its T5
#     superres  slices at 64 x 64 and 256 x 256, U-Net
set -euo pipefail
cd "$(dirname "$0")/../.."
# glibc gives large buffers back to the kernel after each step and faults them in again in the next,
# a quarter of a CPU step's time; this keeps them.
export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=16000000000

folder=${1:-out/demo}
model=${2:-gct_jax/assets/demo}
train() {
    stage=$1
    shift
    python -m launch.train --config "configs/demo.py:$stage" --workdir "$folder/$stage" \
        "$@" "data.folder=$folder/pool"
}
prepare() {
    stage=$1
    shift
    python -m launch.prepare --config "configs/demo.py:$stage" --out "$folder/pool" "$@"
}
prepare ctvit
train ctvit
train t5
prepare maskgit --from "$folder/ctvit"
train maskgit --from "$folder/ctvit" --from "$folder/t5"
prepare superres --from "$folder/ctvit" --from "$folder/maskgit"
train superres --from "$folder/ctvit" --from "$folder/maskgit"
python -m launch.export_model "$folder/ctvit" "$folder/maskgit" "$folder/superres" \
    --out "$model"
