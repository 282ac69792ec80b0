#!/usr/bin/env bash
# One machine, all its GPUs.
#
#   launch/local.sh configs/cifar100_lt.py [--workdir=...] [--config.KEY=VALUE ...]
#   GPUS=0,1 launch/local.sh configs/cifar100_lt.py     # only these two
#
# The batch size is global: the GPUs share it equally. Rerun the command to resume.
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
  echo "usage: launch/local.sh CONFIG.py [flags of gr_jax.main]" >&2
  exit 2
fi
config=$1
shift
if [[ -n ${GPUS:-} ]]; then
  export CUDA_VISIBLE_DEVICES=$GPUS
fi
exec "${PYTHON:-python}" -m gr_jax.main --config="$config" "$@"
