"""Checks the train step on this machine's GPU or TPU against the recording and against its CPU. A script, not a test:

  python tests/on_device.py [gpu|tpu|cpu]

The suite itself runs on fake CPU devices, wherever it runs. Exit status 0 only if everything agrees.
"""

import sys

import jax
from device_runs import TRAJECTORY, assert_same_step, follow_trajectory, resnet_run

from gr_jax import origin

# In float32 the recording is met to 1e-5 on a CPU; a GPU adds in another order.
_TRAJECTORY, _STEP = 1e-4, 1e-3


def main(platform):
  devices = jax.devices(platform) if platform else jax.devices()
  cpu = jax.devices("cpu")[:1]
  print(f"{origin.devices(devices)}, jax {jax.__version__}")
  # The recording's batch of 16 must be shared equally.
  shares = {len(used): used for used in (devices[:1], devices[:2], devices[:4])}.values()
  for used in shares:
    errors = [follow_trajectory(number, used, _TRAJECTORY) for number in range(len(TRAJECTORY.tasks))]
    print(f"recorded trajectory on {len(used)}: every loss, ratio and parameter within {max(errors):.1e} (bound "
          f"{_TRAJECTORY:.0e})")
  reference = jax.device_get(resnet_run(cpu, steps=1))
  for used in shares:
    apart = assert_same_step(reference, jax.device_get(resnet_run(used, steps=1)), _STEP)
    print(f"a ResNet-32 step in float32 on {len(used)} against the CPU: losses, ratios and Phi within {apart[0]:.1e}, "
          f"batch statistics within {apart[1]:.1e} (bound {_STEP:.0e})")


if __name__ == "__main__":
  if len(sys.argv) > 2:
    sys.exit(__doc__)
  main(sys.argv[1] if len(sys.argv) == 2 else None)
