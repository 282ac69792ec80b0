"""What the CPU is, from files as Linux writes them."""

import os

import pytest

from gr_jax.devices import container, processor

_X86 = """processor\t: {number}
vendor_id\t: GenuineIntel
model name\t: A Processor @ 2 GHz
flags\t\t: fpu sse4_2 avx2 avx512f avx512_bf16x amx_bf16
power management:

"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """A machine with these files; the process may use cores 0, 1, 2, 3, 6 and 7."""
  monkeypatch.setattr(os, "sched_getaffinity", lambda process: {7, 0, 1, 3, 2, 6}, raising=False)
  monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
  monkeypatch.setattr(processor, "TOPOLOGY", tmp_path / "cpu")
  monkeypatch.setattr(container, "PROCESS", tmp_path / "self")
  return tmp_path


def test_name_instructions_and_cores(machine):
  (machine / "cpuinfo").write_text("".join(_X86.format(number=number) for number in range(8)))
  assert processor.instructions() == {"fpu", "sse4_2", "avx2", "avx512f", "avx512_bf16x", "amx_bf16"}
  assert processor.describe() == "A Processor @ 2 GHz (avx2 avx512f amx_bf16), 6 cores"


@pytest.mark.parametrize("content", [None, "processor\t: 0\nmodel name\t:\nFeatures\t: fp asimd\n"])
def test_where_the_system_names_no_model(machine, monkeypatch, content):
  """On ARM, and elsewhere than on Linux."""
  if content is not None:
    (machine / "cpuinfo").write_text(content)
  monkeypatch.setattr("platform.processor", lambda: "")
  monkeypatch.setattr("platform.machine", lambda: "aarch64")
  assert processor.describe() == "aarch64, 6 cores" and processor.instructions() == set()


def test_where_a_process_cannot_be_restricted(machine, monkeypatch):
  """As on macOS."""
  monkeypatch.delattr(os, "sched_getaffinity")
  monkeypatch.setattr(os, "cpu_count", lambda: 3)
  assert processor.usable_cores() == [0, 1, 2] and processor.physical_cores() == [(0,), (1,), (2,)]
  assert processor.describe().endswith(", 3 cores")


@pytest.mark.parametrize("limit, words", [
    (2.0, "6 cores, limited to 2 by the container"), (1.5, "6 cores, limited to 1.5 by the container"),
    (6.0, "6 cores"), (8.0, "6 cores")])
def test_a_container_that_limits_cpu_time(machine, monkeypatch, limit, words):
  monkeypatch.setattr(container, "cores", lambda: limit)
  assert processor.describe().endswith(f", {words}")


def test_threads_of_a_physical_core_are_together(machine):
  """Eight numbers are four physical cores of two threads, numbered as Linux does: first threads first."""
  assert processor.physical_cores() == [(0,), (1,), (2,), (3,), (6,), (7,)]
  for number in range(8):
    folder = machine / "cpu" / f"cpu{number}" / "topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
  assert processor.physical_cores() == [(0,), (1,), (2, 6), (3, 7)]
