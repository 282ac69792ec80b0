#!/usr/bin/env bash
# One Slurm node with all the GPUs it is given. From the project's folder:
#
#   sbatch launch/slurm.sh configs/cifar100_lt.py --workdir=/path/to/run [--config.KEY=VALUE ...]
#   sbatch --gpus-per-node=1 --time=01:00:00 launch/slurm.sh ...
#
# Give --workdir: when the job is cut by its time limit or requeued, the same command goes on from the last
# checkpoint. Activate the environment first, or name its Python: PYTHON=/path/to/venv/bin/python sbatch ...
#SBATCH --job-name=gr_jax
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=gr_jax-%j.log
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
  echo "usage: sbatch launch/slurm.sh CONFIG.py --workdir=FOLDER [flags of gr_jax.main]" >&2
  exit 2
fi
config=$1
shift
# One process drives all GPUs of the node. srun does not take over the number of cores by itself.
exec srun --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-8}" "${PYTHON:-python}" -m gr_jax.main --config="$config" "$@"
