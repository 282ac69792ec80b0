#!/usr/bin/env bash
# Several processes on this machine's CPU as one run, to try out a run on several hosts.
#
#   launch/cpu.sh configs/digits_lt.py [--workdir=...] [--config.KEY=VALUE ...]
#   PROCESSES=2 DEVICES=2 PORT=9876 launch/cpu.sh configs/digits_lt.py     # DEVICES: of each process
#
# Output of processes other than 0 is prefixed with their index. Exits when all have exited, with the first non-zero
# exit code. A signal to this script is forwarded to all of them.
set -euo pipefail

if [[ $# -lt 1 || ! -f $1 ]]; then
  echo "usage: launch/cpu.sh CONFIG.py [flags of gr_jax.main]" >&2
  exit 2
fi
config=$1
shift
processes=${PROCESSES:-2}
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=${DEVICES:-2}
# One thread for each waiting collective; with fewer, the devices of a process can deadlock.
export NPROC=${NPROC:-$((4 * JAX_NUM_CPU_DEVICES))}

# Set before the first process starts, or an early signal would end this shell alone.
children=() asked=''
for signal in TERM INT; do
  trap "asked=$signal; "'kill -'"$signal"' "${children[@]}" 2>/dev/null || true' "$signal"
done
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
if [[ -n $asked ]]; then
  kill "-$asked" "${children[@]}" 2>/dev/null || true
fi

code=0
for child in "${children[@]}"; do
  # A trapped signal makes `wait` return early, with a code above 128. The shell keeps the code of a process that has
  # ended.
  while kill -0 "$child" 2>/dev/null; do
    wait "$child" || true
  done
  status=0
  wait "$child" || status=$?
  if ((code == 0)); then
    code=$status
  fi
done
exit "$code"
