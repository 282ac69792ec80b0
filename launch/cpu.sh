#!/usr/bin/env bash
# Several processes on this machine's CPU as one run: for trying out what happens on several hosts.
#
#   launch/cpu.sh configs/digits_lt.py [--workdir=...] [--config.KEY=VALUE ...]
#   PROCESSES=2 DEVICES=2 PORT=9876 launch/cpu.sh configs/digits_lt.py     # DEVICES: of each process
#
# Process 0 speaks; what the others print comes with their index in front. Ends when all have ended, with the first
# exit code that is not 0. A signal to this script goes to all of them.
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
  echo "usage: launch/cpu.sh CONFIG.py [flags of gr_jax.main]" >&2
  exit 2
fi
config=$1
shift
processes=${PROCESSES:-2}
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=${DEVICES:-2}
# A thread for each collective that waits: with fewer, the devices of a process can wait for each other for ever.
export NPROC=${NPROC:-$((4 * JAX_NUM_CPU_DEVICES))}

children=()
for ((index = 0; index < processes; index++)); do
  place=127.0.0.1:${PORT:-9876},$processes,$index
  command=("${PYTHON:-python}" -m gr_jax.main --config="$config" "$@" --config.distributed="$place")
  if ((index == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" > >(sed -u "s/^/[$index] /") 2>&1 &
  fi
  children+=($!)
done
for signal in TERM INT; do
  trap 'kill -'"$signal"' "${children[@]}" 2>/dev/null || true' "$signal"
done

code=0
for child in "${children[@]}"; do
  # A trapped signal ends `wait` early, above 128, while the child is still there.
  while true; do
    status=0
    wait "$child" || status=$?
    kill -0 "$child" 2>/dev/null || break
  done
  if ((code == 0)); then
    code=$status
  fi
done
exit "$code"
