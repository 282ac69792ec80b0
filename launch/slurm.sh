#!/usr/bin/env bash
# Slurm: one node or several, one process for each GPU. From the project's folder:
#
#   sbatch launch/slurm.sh configs/cifar100_lt.py --workdir=/shared/run [--config.KEY=VALUE ...]
#   sbatch --nodes=2 --gpus-per-node=8 --ntasks-per-node=8 launch/slurm.sh ...      # as many tasks as GPUs
#
# --workdir must be on a file system that all nodes share. A job gets SIGTERM two minutes before preemption or its time
# limit; the program saves and exits with code 75, and the job is requeued and resumes. Activate the environment first,
# or set its Python: PYTHON=/path/to/venv/bin/python sbatch ...
#SBATCH --job-name=gr_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=gr_jax-%j.log
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
  echo "usage: sbatch launch/slurm.sh CONFIG.py --workdir=FOLDER [flags of gr_jax.main]" >&2
  exit 2
fi
config=$1
shift
# Only this shell gets the signal; srun forwards it to every task. Set before srun starts, or an early signal would end
# this shell alone.
steps='' asked=''
trap 'asked=1; [[ -z $steps ]] || kill -TERM "$steps" 2>/dev/null || true' TERM

# GPUs are not bound to tasks: JAX gives GPU i of the node's allocation to the task with local index i, so each task
# must see all of them. srun does not inherit the number of cores, so it is passed on.
srun --kill-on-bad-exit=0 --gpu-bind=none --cpus-per-task="${SLURM_CPUS_PER_TASK:-4}" \
  "${PYTHON:-python}" -m gr_jax.main --config="$config" --config.distributed=auto "$@" &
steps=$!
if [[ -n $asked ]]; then
  kill -TERM "$steps"
fi

# A trapped signal makes `wait` return early, with a code above 128. The shell keeps the code of a process that has ended.
while kill -0 "$steps" 2>/dev/null; do
  wait "$steps" || true
done
code=0
wait "$steps" || code=$?
if [[ $code -eq 75 && -n ${SLURM_JOB_ID:-} ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
