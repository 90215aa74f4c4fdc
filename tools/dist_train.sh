#!/usr/bin/env bash
# Trains on several GPUs (or, without CUDA, processes): dist_train.sh CONFIG GPUS [arguments of train.py]
# For several nodes set NNODES, NODE_RANK, MASTER_ADDR and PORT, as for MMDetection's script.
set -euo pipefail

CONFIG=$1
GPUS=$2

PYTHONPATH="$(dirname "$0")/..:${PYTHONPATH:-}" \
python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$GPUS" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
