#!/usr/bin/env bash
# Everything that needs a GPU, in order: correctness, speed tables, speed against PyTorch, large pictures, the main
# setting at the full protocol, three precisions at 10 epochs, the paper's settings.
#
#   launch/gpu_report.sh FOLDER [DATA_DIR]        # all seven; rerun the command to resume
#   STAGES="correctness speed" launch/gpu_report.sh FOLDER
#   STAGES=paper SWEEP_FLAGS="--only=shuffled_lfh5 --set=epochs=2" launch/gpu_report.sh FOLDER
#
# FOLDER gets correctness.txt, speed.txt and .json, torch.txt and .json, pictures.txt and .json, and precision/ and
# paper/ with every run and their tables; `full` is the first row of paper/. `auto` on a GPU is TF32. `pictures` creates
# photographs/, 260 MB, with pip install -e '.[test]'. A prepared subset of CIFAR-100 gives other draws than the complete
# set: compare runs only if their scenario digests agree.
# DATA_DIR is TFDS's folder with the prepared cifar100 (default: TFDS_DATA_DIR, else ~/tensorflow_datasets).
# `torch` needs pip install -e '.[benchmark]' with a CUDA build. Finished stages are skipped; to repeat one, remove its
# file.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $# -lt 1 ]]; then
  echo "usage: launch/gpu_report.sh FOLDER [DATA_DIR]" >&2
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
if [[ $# -ge 2 ]]; then
  TFDS_DATA_DIR=$(cd "$2" && pwd)
  export TFDS_DATA_DIR
fi
stages=${STAGES:-correctness speed torch pictures full precision paper}
python=${PYTHON:-python}
read -ra sweep_flags <<<"${SWEEP_FLAGS:-}"

# once NAME COMMAND...: its output goes to the screen and, when it succeeds, to FOLDER/NAME.txt.
once() {
  local name=$1
  shift
  if [[ ! -e $out/$name.txt ]]; then
    "$@" 2>&1 | tee "$out/$name.part"
    mv "$out/$name.part" "$out/$name.txt"
  fi
}

for stage in $stages; do
  echo "== $stage"
  case $stage in
    correctness) once correctness "$python" tests/on_device.py ;;
    speed)
      once speed "$python" -m gr_jax.benchmark --config=configs/cifar100_lt.py --long --calls=10 --steps=50 \
        --replicas="${REPLICAS:-5}" --json="$out/speed.json"
      ;;
    torch) once torch "$python" tests/benchmarks/against_torch.py --device="${DEVICE:-cuda}" --json="$out/torch.json" ;;
    pictures)
      once photographs "$python" tests/photographs.py "$out/photographs" --sides=300,600
      once pictures "$python" -m gr_jax.benchmark --config=configs/folder_lt.py --config.data_dir="$out/photographs" \
        --long --calls=5 --steps=10 --json="$out/pictures.json"
      ;;
    full) "$python" -m gr_jax.sweep --sweep=configs/sweeps/cifar100_paper.py --root="$out/paper" --only=shuffled_lfh5 ;;
    precision)
      "$python" -m gr_jax.sweep --sweep=configs/sweeps/cifar100_precision_gpu.py --root="$out/precision"
      ;;
    paper) "$python" -m gr_jax.sweep --sweep=configs/sweeps/cifar100_paper.py --root="$out/paper" \
      "${sweep_flags[@]}" ;;
    *)
      echo "error: STAGES contains $stage; it can be correctness, speed, torch, pictures, full, precision, paper" >&2
      exit 2
      ;;
  esac
done
