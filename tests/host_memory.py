"""Host memory over the tasks of a run: python tests/host_memory.py --config=configs/... --workdir=...

Takes the flags of gr_jax.main. After each task it prints a line of JSON: anonymous memory of this process (what it
allocated, without mapped files such as the cache) and its whole resident memory, in bytes.
"""

import gc
import json
import pathlib

from gr_jax import cli, main
from gr_jax import flags as config_flag


def resident_bytes():
  """{"RssAnon": ..., "VmRSS": ...} of this process."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return {key: int(value.split()[0]) * 1024 for key, value in (line.split(":", 1) for line in lines)
          if key in ("RssAnon", "VmRSS")}


def run(argv):
  from gr_jax.runs import console
  say = console.say

  def saying(text):
    say(text)
    if text.startswith("task ") and ": accuracy" in text:
      gc.collect()
      print(json.dumps(resident_bytes()), flush=True)

  console.say = saying
  main.main(argv)


if __name__ == "__main__":
  cli.run(run, config_flag.parse)
