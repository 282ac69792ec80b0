"""Faults that really happen: full disks, files from elsewhere. The table is gr_jax/docs/faults.md."""

import ast
import contextlib
import pathlib
import pickle
import shutil
import subprocess

import pytest
import runs

from gr_jax import evaluate, train
from gr_jax.errors import UserError

_FLAGS = runs.SHORT

# In a mount namespace of its own, which takes the small disk along when it ends. $1: mount point, $2: a folder outside
# of it for what is looked at, $3...: the command.
_ON_A_SMALL_DISK = """
mount -t tmpfs -o size=2m tmpfs "$1" || exit 99
where=$1 out=$2
shift 2
"$@" "--workdir=$where/run" >"$out/first.txt" 2>&1
echo $? >"$out/first.code"
cp -r "$where/run" "$out/first"
mount -o remount,size=64m "$where"
"$@" "--workdir=$where/run" >"$out/second.txt" 2>&1
echo $? >"$out/second.code"
cp -r "$where/run" "$out/second"
"""


def test_full_disk(tmp_path):
  """The error ends the run, older checkpoints stay; with more room the same command goes on to the same end."""
  disk, out = tmp_path / "disk", tmp_path / "out"
  disk.mkdir()
  out.mkdir()
  done = subprocess.run(
      ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _ON_A_SMALL_DISK, "sh", disk, out,
       *runs.command("main", *_FLAGS)], env=runs.environment(), cwd=runs.ROOT, capture_output=True, text=True,
      timeout=300, check=False)
  if done.returncode == 99 or "unshare failed" in done.stderr:
    pytest.skip(f"this machine lets nobody mount a small disk: {done.stderr.strip()}")
  said = (out / "first.txt").read_text()
  assert (out / "first.code").read_text() == "2\n", said
  assert "No space left on device" in said and "rerun the command to resume" in said
  whole = runs.records(out / "first")
  assert whole and not (out / "first" / "results.json").exists()
  said = (out / "second.txt").read_text()
  assert (out / "second.code").read_text() == "0\n", said
  assert f"resuming after step {max(whole)}" in said
  assert runs.run("main", *_FLAGS, f"--workdir={tmp_path / 'unbroken'}").returncode == 0
  runs.assert_equal(tmp_path / "unbroken", out / "second")


_READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99
touch "$1/written" 2>/dev/null && exit 98
shift
exec "$@"
"""


def test_evaluation_of_a_read_only_run_on_another_number_of_devices(part):
  """The run was trained on four devices."""
  assert runs.results(part)["devices"].startswith("4 x")
  done = subprocess.run(
      ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _READ_ONLY, "sh", part,
       *runs.command("evaluate", f"--workdir={part}")], env=runs.environment(), cwd=runs.ROOT, capture_output=True,
      text=True, timeout=300, check=False)
  if done.returncode == 99 or "unshare failed" in done.stderr:
    pytest.skip(f"this machine lets nobody mount a folder: {done.stderr.strip()}")
  assert done.returncode == 0 and "counts are equal to those of the run" in done.stdout, done.stderr


@pytest.mark.parametrize("command", [train.train, lambda _, workdir: evaluate.evaluate(workdir)])
def test_an_object_store_is_refused(command, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match="--workdir is gs://bucket/run, .* local or mounted"):
    command(runs.short(), "gs://bucket/run")
  assert not list(tmp_path.iterdir())


def test_going_on_with_another_number_of_devices(part, whole, tmp_path):
  """Batches are a function of the step: the same images, and but for rounding the same run."""
  workdir = tmp_path / "run"
  shutil.copytree(part, workdir)
  done = runs.run("main", *_FLAGS, f"--workdir={workdir}", JAX_NUM_CPU_DEVICES="2")
  assert done.returncode == 0, done.stderr
  ours, theirs = runs.rows(whole, "epoch"), runs.rows(workdir, "epoch")
  assert len(ours) == len(theirs) and ours[-1]["global_step"] == theirs[-1]["global_step"]
  for one, two in zip(ours, theirs):
    assert one["loss"] == pytest.approx(two["loss"], rel=2e-2)


@pytest.fixture(scope="module")
def part(tmp_path_factory):
  """A run of three tasks, stopped after the second."""
  workdir = tmp_path_factory.mktemp("part") / "run"
  train.train(runs.short(stop_after_task=2), workdir)
  return workdir


@pytest.fixture(scope="module")
def whole(part):
  """The same run to its end."""
  workdir = part.with_name("whole")
  shutil.copytree(part, workdir)
  train.train(runs.short(), workdir)
  return workdir


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["empty folder", "item", "flipped byte", "temporary only", "no commit marker"])
def test_damaged_newest_checkpoint(part, whole, tmp_path, damage, capsys):
  workdir = tmp_path / "run"
  shutil.copytree(part, workdir)
  steps = sorted((int(path.name) for path in (workdir / "checkpoints").iterdir()), reverse=True)
  newest = workdir / "checkpoints" / str(steps[0])
  if damage == "empty folder":
    shutil.rmtree(newest)
    newest.mkdir()
  elif damage == "item":
    shutil.rmtree(newest / "training")
  elif damage == "flipped byte":
    file = max((f for f in (newest / "model").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
  elif damage == "temporary only":
    newest.rename(newest.with_name(f"{newest.name}.orbax-checkpoint-tmp-0"))
  else:
    for name in ("commit_success.txt", "_CHECKPOINT_METADATA"):
      (newest / name).unlink(missing_ok=True)
  train.train(runs.short(), workdir)
  said = capsys.readouterr().out
  if damage == "no commit marker":
    assert f"resuming after step {steps[0]}" in said
  else:
    assert f"resuming after step {steps[1]}" in said
    assert (f"warning: checkpoint {steps[0]} is damaged" in said) == (damage != "temporary only")
  runs.assert_equal(whole, workdir)


def test_no_right_to_write(part, tmp_path):
  """Root is not bound by rights, but by an immutable file."""
  workdir = tmp_path / "run"
  shutil.copytree(part, workdir)
  done = subprocess.run(["chattr", "+i", workdir / "metrics.jsonl"], capture_output=True, check=False)
  if done.returncode:
    pytest.skip("this file system knows no immutable files")
  try:
    done = runs.run("main", *_FLAGS, f"--workdir={workdir}")
  finally:
    subprocess.run(["chattr", "-i", workdir / "metrics.jsonl"], check=True)
  assert done.returncode == 2 and "metrics.jsonl" in done.stderr and "fix permissions" in done.stderr


class _Trap:
  """Unpickling it would leave a file behind."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return (pathlib.Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_in_a_workdir_is_unpickled(part, tmp_path):
  workdir, sprung = tmp_path / "run", tmp_path / "sprung"
  trap = pickle.dumps(_Trap(sprung))
  pickle.loads(trap)
  assert sprung.exists(), "the trap works"
  sprung.unlink()
  names = sorted(path.relative_to(part) for path in part.rglob("*") if path.is_file() and path.name != ".lock")
  assert len(names) > 20
  for name in names:
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(part, workdir)
    (workdir / name).write_bytes(trap)
    # Refusing is as good as not looking.
    with contextlib.suppress(UserError):
      train.train(runs.short(stop_after_task=2), workdir)
    assert not sprung.exists(), name


def test_no_module_can_unpickle():
  for path in (runs.ROOT / "gr_jax").rglob("*.py"):
    tree = ast.parse(path.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported.isdisjoint({"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}), path
    allowing = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "allow_pickle"
                and not (isinstance(node.value, ast.Constant) and node.value.value is False)]
    assert not allowing, path
