"""Limits of control groups, from files as Linux writes them, in both versions."""

import pytest

from gr_jax.devices import container

# What version 1 has for no limit, where a page has 4 KiB.
UNLIMITED = 9223372036854771712


@pytest.fixture
def machine(tmp_path, monkeypatch):
  monkeypatch.setattr(container, "PROCESS", tmp_path / "self")
  (tmp_path / "self").mkdir()
  return tmp_path


def version_2(machine, group="/", root="/"):
  """A process in this group of the one tree, of which `root` is mounted; returns the folder where it is."""
  (machine / "self" / "cgroup").write_text(f"0::{group}\n")
  (machine / "self" / "mountinfo").write_text(
      f"22 28 0:21 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n"
      f"30 22 0:26 {root} {machine / 'tree'} rw,nosuid shared:9 - cgroup2 cgroup rw,nsdelegate\n")
  return machine / "tree"


def version_1(machine, group, root="/"):
  """A process in this group of the trees for the CPU and for memory, beside an empty tree of version 2."""
  (machine / "self" / "cgroup").write_text(f"5:memory:{group}\n3:cpu,cpuacct:{group}\n2:cpuset:/set\n0::/\n")
  (machine / "self" / "mountinfo").write_text("".join(
      f"{number} 31 0:{number} {top} {machine / name} rw,relatime - {kind} {kind} rw{controllers}\n"
      for number, (name, kind, top, controllers) in enumerate((
          ("cpuset", "cgroup", "/", ",cpuset"), ("cpu,cpuacct", "cgroup", root, ",cpu,cpuacct"),
          ("memory", "cgroup", root, ",memory"), ("unified", "cgroup2", "/", "")), start=35)))
  return machine / "cpu,cpuacct", machine / "memory"


def write(folder, **contents):
  """Writes a group's files; `cpu_max` is the content of cpu.max."""
  folder.mkdir(parents=True, exist_ok=True)
  for name, content in contents.items():
    (folder / name.replace("_", ".", 1)).write_text(f"{content}\n")


@pytest.mark.parametrize("content, cores", [
    ("max 100000", None), ("200000 100000", 2.0), ("150000 100000", 1.5), ("5000 50000", 0.1)])
def test_cpu_quota_of_version_2(machine, content, cores):
  """In a container with a name space of its own its group is the whole tree."""
  write(version_2(machine), cpu_max=content)
  assert container.cores() == cores and container.free_memory() is None


@pytest.mark.parametrize("quota, cores", [(-1, None), (200000, 4.0)])
@pytest.mark.parametrize("root", ["/", "/docker/abc"])
def test_cpu_quota_of_version_1(machine, quota, cores, root):
  """Without a name space the path is that on the host, of which the whole tree or just this group is mounted."""
  cpu, _ = version_1(machine, "/docker/abc", root)
  write(cpu / ("docker/abc" if root == "/" else ""), cpu_cfs_quota_us=quota, cpu_cfs_period_us=50000)
  # Groups of other controllers and of other containers do not count.
  write(machine / "cpuset" / "docker" / "abc", cpu_cfs_quota_us=1000, cpu_cfs_period_us=50000)
  write(cpu / "docker" / "other", cpu_cfs_quota_us=1000, cpu_cfs_period_us=50000)
  assert container.cores() == cores


def test_limits_of_parents_count(machine):
  tree = version_2(machine, "/pods/pod/box")
  write(tree)
  write(tree / "pods", cpu_max="300000 100000", memory_max=9000, memory_current=8500)
  write(tree / "pods" / "pod", cpu_max="max 100000", memory_max="max", memory_current=7000)
  write(tree / "pods" / "pod" / "box", cpu_max="800000 100000", memory_max=4000, memory_current=100)
  assert container.cores() == 3.0 and container.free_memory() == 500


@pytest.mark.parametrize("limit, usage, cache, free", [
    ("max", 700, 200, None), (1000, 700, 200, 500), (1000, 700, 0, 300), (1000, 1300, 200, 0), (1000, 100, 200, 1000)])
def test_memory_of_version_2(machine, limit, usage, cache, free):
  write(version_2(machine), memory_max=limit, memory_current=usage,
        memory_stat=f"anon 500\nfile 400\ninactive_file {cache}\nactive_file 50")
  assert container.free_memory() == free and container.cores() is None


@pytest.mark.parametrize("limit, free", [(UNLIMITED, None), (1000, 500)])
def test_memory_of_version_1(machine, limit, free):
  """The entries without `total` leave out the groups below, which usage has."""
  _, memory = version_1(machine, "/docker/abc")
  write(memory, memory_limit_in_bytes=UNLIMITED, memory_usage_in_bytes=10**9)
  write(memory / "docker" / "abc", memory_limit_in_bytes=limit, memory_usage_in_bytes=700,
        memory_stat="cache 300\ninactive_file 7\ntotal_cache 400\ntotal_inactive_file 200")
  assert container.free_memory() == free


@pytest.mark.parametrize("group, root", [("/../other", "/"), ("/docker/abc", "/docker/def"), ("/", "/..")])
def test_a_group_outside_of_what_is_mounted(machine, group, root):
  """The top of what is mounted counts, and nothing beside it."""
  write(version_2(machine, group, root), cpu_max="200000 100000")
  write(machine / "other", cpu_max="100000 100000")
  write(machine / "tree" / "docker", cpu_max="100000 100000")
  assert container.cores() == 2.0


def test_where_there_are_no_groups(machine):
  """Elsewhere than on Linux, and where the files may not be read."""
  assert container.cores() is None and container.free_memory() is None
  tree = version_2(machine)
  for name in ("cpu.max", "memory.max"):
    (tree / name).mkdir(parents=True)
  assert container.cores() is None and container.free_memory() is None
