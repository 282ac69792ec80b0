"""The launch scripts: a linter, usage on top, and real starts of those for this machine."""

import functools
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
import runs
import yaml

SCRIPTS = sorted((runs.ROOT / "launch").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_valid_shell_with_usage(script):
  assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
  lines = script.read_text().splitlines()
  assert lines[0] == "#!/usr/bin/env bash" and "set -euo pipefail" in lines and os.access(script, os.X_OK)
  assert any(line.startswith("#   ") and f"launch/{script.name}" in line for line in lines[:10])
  done = subprocess.run([script], text=True, capture_output=True, check=False)
  assert done.returncode == 2 and "usage:" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
  checker = pathlib.Path(sys.executable).with_name("shellcheck")
  done = subprocess.run([checker, script], text=True, capture_output=True, check=False)
  assert done.returncode == 0, done.stdout


def test_the_jobset_is_one_job_whose_parts_name_each_other():
  text = (runs.ROOT / "launch" / "gke_jobset.yaml").read_text()
  assert re.search(r"^#   kubectl apply -f launch/gke_jobset\.yaml$", text, re.MULTILINE)
  account, role, binding, jobset = yaml.safe_load_all(text)
  assert [part["kind"] for part in (account, role, binding, jobset)] == [
      "ServiceAccount", "Role", "RoleBinding", "JobSet"]
  assert binding["subjects"][0]["name"] == account["metadata"]["name"]
  assert binding["roleRef"]["name"] == role["metadata"]["name"]
  job, = jobset["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  pod = spec["template"]["spec"]
  container, = pod["containers"]
  assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
  assert pod["serviceAccountName"] == account["metadata"]["name"] and pod["terminationGracePeriodSeconds"] >= 60
  rule, = spec["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"] and 75 not in rule["onExitCodes"]["values"]
  assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
  assert container["command"][:3] == ["python", "-m", "gr_jax.main"]
  assert "--config.distributed=auto" in container["command"]
  for flag in container["command"][3:]:
    key, _, value = flag.removeprefix("--").partition("=")
    assert (runs.ROOT / value).is_file() if key == "config" else key in ("workdir", "config.distributed",
                                                                         "config.data_dir")


def test_local_starts_the_program():
  done = subprocess.run(
      [runs.ROOT / "launch" / "local.sh", "configs/digits_lt.py", "--dry_run"], cwd=runs.ROOT, text=True,
      capture_output=True, env=runs.environment(PYTHON=sys.executable), check=False)
  assert done.returncode == 0 and "nothing was trained" in done.stdout, done.stderr


def test_slurm_hands_its_flags_on(tmp_path):
  """A stand-in for srun that prints what it was asked to start."""
  srun = tmp_path / "srun"
  srun.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n')
  srun.chmod(0o755)
  done = subprocess.run(
      [runs.ROOT / "launch" / "slurm.sh", "configs/digits_lt.py", "--workdir=a b"], cwd=runs.ROOT, text=True,
      capture_output=True, env=runs.environment(PATH=f"{tmp_path}:{os.environ['PATH']}"), check=False)
  assert done.stdout.splitlines()[-3:] == ["--config=configs/digits_lt.py", "--config.distributed=auto",
                                           "--workdir=a b"]


def test_slurm_hands_the_signal_on_and_requeues_what_was_saved(tmp_path):
  """Stand-ins for srun, which ends with 75 when it is told to, and for scontrol, which prints what it is asked."""
  for name, lines in {"srun": 'trap "exit 75" TERM; echo started; while true; do sleep 0.1; done',
                      "scontrol": 'echo "scontrol $*"'}.items():
    (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
    (tmp_path / name).chmod(0o755)
  process = subprocess.Popen(
      [runs.ROOT / "launch" / "slurm.sh", "configs/digits_lt.py"], cwd=runs.ROOT, text=True, stdout=subprocess.PIPE,
      env=runs.environment(PATH=f"{tmp_path}:{os.environ['PATH']}", SLURM_JOB_ID="17"))
  assert process.stdout.readline() == "started\n"
  process.send_signal(signal.SIGTERM)
  rest, _ = process.communicate(timeout=30)
  assert process.returncode == 75 and rest == "scontrol requeue 17\n"


def test_tpu_quotes_its_flags_for_the_hosts(tmp_path):
  """A stand-in for gcloud that runs the command it is given, in a folder with a stand-in for Python."""
  find = 'for word in "$@"; do case $word in --command=*) bash -c "${word#--command=}";; esac; done'
  for name, lines in {"gcloud": find, "python3": 'printf "%s\\n" "$PWD" "$@"'}.items():
    (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
    (tmp_path / name).chmod(0o755)
  (tmp_path / "my clone").mkdir()
  done = subprocess.run(
      [runs.ROOT / "launch" / "tpu.sh", "configs/digits_lt.py", "--workdir=a b"], cwd=runs.ROOT, text=True,
      capture_output=True, check=False, env=runs.environment(
          PATH=f"{tmp_path}:{os.environ['PATH']}", TPU="slice", ZONE="zone", FOLDER=str(tmp_path / "my clone")))
  assert done.stdout.splitlines() == [
      str(tmp_path / "my clone"), "-m", "gr_jax.main", "--config=configs/digits_lt.py", "--config.distributed=auto",
      "--workdir=a b"], done.stderr


@pytest.mark.parametrize("flags, code, words", [
    (["--dry_run"], 0, "32 images on 2 cpu device(s) of 2 processes"),
    (["--config.batch_size=33"], 2, "[1] error: batch_size is 33, which is not divisible by the 2 devices")])
def test_cpu_starts_several_processes_and_gives_their_code(tmp_path, flags, code, words):
  done = subprocess.run(
      [runs.ROOT / "launch" / "cpu.sh", "configs/digits_lt.py", f"--workdir={tmp_path}", *flags], cwd=runs.ROOT,
      text=True, capture_output=True, check=False,
      env=runs.environment(PYTHON=sys.executable, DEVICES="1", PORT=str(runs.free_port())))
  assert done.returncode == code and words in done.stdout, (done.stdout, done.stderr)


def test_gpu_report_runs_its_stages_in_order_and_each_once(tmp_path):
  """A stand-in for Python that prints what it is asked to run, and fails where the file `fail` is."""
  python = tmp_path / "python"
  python.write_text('#!/usr/bin/env bash\necho "$@"\ntest ! -e "$(dirname "$0")/fail"\n')
  python.chmod(0o755)
  report = functools.partial(
      subprocess.run, [runs.ROOT / "launch" / "gpu_report.sh", tmp_path / "out"], text=True, capture_output=True,
      env=runs.environment(PYTHON=str(python)), check=False)
  (tmp_path / "fail").touch()
  assert report().returncode == 1 and not (tmp_path / "out" / "correctness.txt").exists()
  (tmp_path / "fail").unlink()
  first, second = report(), report()
  asked = [line for line in first.stdout.splitlines() if not line.startswith("==")]
  assert [line.split()[0:2][-1] if line.startswith("-m") else line.split()[0] for line in asked] == [
      "tests/on_device.py", "gr_jax.benchmark", "tests/benchmarks/against_torch.py", "tests/photographs.py",
      "gr_jax.benchmark", *["gr_jax.sweep"] * 3]
  for line in asked:
    for path in (part for word in line.split() for part in word.split("=") if part.endswith(".py")):
      assert (runs.ROOT / path).is_file()
  assert [line for line in second.stdout.splitlines() if "gr_jax" in line] == asked[-3:]


@pytest.mark.slow
def test_the_check_on_devices_really_runs():
  done = subprocess.run(
      [sys.executable, "tests/on_device.py", "cpu"], cwd=runs.ROOT, text=True, capture_output=True, check=False,
      env=runs.environment(JAX_NUM_CPU_DEVICES="1"))
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  assert len([line for line in lines if "recorded trajectory" in line]) == 1
  assert len([line for line in lines if "ResNet-32 step" in line]) == 1
