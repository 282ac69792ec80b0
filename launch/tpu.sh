#!/usr/bin/env bash
# A Cloud TPU slice: starts the same command on all of its hosts. From a machine with gcloud:
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu.sh configs/cifar100_lt.py --workdir=/shared/run [--config.KEY=VALUE ...]
#   TPU=my-slice ZONE=us-central2-b FOLDER=/home/me/gr_jax launch/tpu.sh ...     # where the clone is on each host
#
# Set up once, on all hosts: a clone in FOLDER, pip install -e '.[tpu]', the prepared data, and a file system that all
# of them share (NFS, Filestore) for --workdir. PYTHON names the hosts' Python. batch_size must be a multiple of the
# number of devices. Rerun the command to resume.
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 || -z ${TPU:-} || -z ${ZONE:-} ]]; then
  echo "usage: TPU=NAME ZONE=ZONE launch/tpu.sh CONFIG.py --workdir=FOLDER [flags of gr_jax.main]" >&2
  exit 2
fi
# Paths go through a second shell on the hosts.
printf -v command '%q ' "${PYTHON:-python3}" -m gr_jax.main --config="$1" --config.distributed=auto "${@:2}"
printf -v folder '%q' "${FOLDER:-gr_jax}"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="cd $folder && exec $command"
