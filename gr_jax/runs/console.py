"""Console output of a run. Takes fractions, prints per cent."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from typing import Any

import jax
import tqdm

from gr_jax.devices import convolution_library, processes
from gr_jax.training import networks
from gr_jax.training.experiment import Experiment


def say(text: str) -> None:
  """Prints text without breaking a progress bar; only process 0 prints."""
  if processes.primary():
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def decoding(items: Iterable, *, total: int) -> Iterable:
  """A progress bar over pictures being decoded; not shown for fewer than 5000."""
  return tqdm.tqdm(items, total=total, desc="reading pictures", unit="img", unit_scale=True, leave=False,
                   disable=total < 5000 or not sys.stderr.isatty() or not processes.primary(), dynamic_ncols=True)


def percent(value: float | None) -> str:
  return "-" if value is None else f"{100 * value:.2f}"


def scenario_lines(experiment: Experiment) -> str:
  """Classes, counts and digest of the drawn scenario."""
  drawn, counts = experiment.scenario, experiment.scenario.counts
  held = sum(len(rows) for rows in drawn.holdout)
  lines = [f"{experiment.config.dataset}: {drawn.num_classes} classes in {len(drawn.tasks)} tasks; "
           f"{counts.sum()} images to train on, {held} held out; digest {drawn.digest[:16]}"]
  lines += [f"  {note}" for note in experiment.source.notes]
  for plan in experiment.plans:
    new_counts = counts[plan.task.first:plan.task.stop]
    names = ", ".join(drawn.class_names[j] for j in list(plan.task.classes)[:6])
    more = ", ..." if len(new_counts) > 6 else ""
    lines.append(f"  task {plan.number + 1}: {len(new_counts)} classes ({names}{more}), {new_counts.sum()} new images "
                 f"({new_counts.min()} to {new_counts.max()} a class) + {plan.size - new_counts.sum()} exemplars, "
                 f"{plan.steps_per_epoch} steps an epoch")
    lines.append(textwrap.fill(" ".join(map(str, new_counts)), width=110, initial_indent="    images of each: ",
                               subsequent_indent="      "))
  for j, (asked, available) in drawn.capped.items():
    lines.append(f"  capped: class {drawn.class_names[j]} has only {available} of the {asked} images in the profile")
  return "\n".join(lines)


def computation_line(experiment: Experiment) -> str:
  """The precision and, on a CPU, the library that computes convolutions."""
  device = experiment.devices[0]
  library = f"; {convolution_library.describe()}" if device.platform == "cpu" else ""
  return f"precision: {experiment.precision}{library}"


def dry_run_lines(experiment: Experiment) -> str:
  """Scenario, steps, programs and memory of a run, computed from shapes only."""
  config, state = experiment.config, experiment.abstract_state()
  def size(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
  parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
  steps = experiment.plans[-1].stop_step
  teacher = experiment.method.uses_teacher and len(experiment.plans) > 1
  programs = [*stage_programs(experiment), "evaluate",
              *(["features"] if experiment.method.replays and experiment.exemplars_per_class(1) else []),
              *(f"measure before {stage.name.replace('_', ' ')}" for stage in experiment.method.stages
                if stage.before is not None),
              *(["measure"] if experiment.method.after_memory is not None else [])]
  return "\n".join([
      scenario_lines(experiment),
      f"steps: {steps} ({', '.join(str(p.stop_step - p.first_step) for p in experiment.plans)}) of "
      f"{config.batch_size} images on {len(experiment.devices)} {experiment.devices[0].platform} device(s)"
      + (f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""),
      f"programs: {len(programs)}: {', '.join(programs)}",
      f"memory on each device: {_pictures(experiment)}, state {_mebibytes(size(state))} "
      f"({parameters} parameters), teacher "
      f"{_mebibytes(size((state.params, state.batch_stats)) if teacher else 0)}{_stack(experiment)}; plus activations",
      *([f"replicas: {config.replicas}, seeds {config.seed} to {config.seed + config.replicas - 1}; steps per replica"]
        if config.replicas > 1 else []),
      "nothing was trained (--dry_run)"])


def stage_programs(experiment: Experiment) -> list[str]:
  """The train programs that a run compiles: one per stage, and a second one if not all its tasks have a teacher."""
  later = len(experiment.plans) > 1
  programs = []
  for stage in experiment.method.stages:
    name = stage.name.replace("_", " ")
    if stage.uses_teacher and stage.tasks == "all":
      programs += [f"{name} (first task)", *([f"{name} (with a teacher)"] if later else [])]
    elif stage.tasks != "later" or later:
      programs.append(name)
  return programs


def _pictures(experiment: Experiment) -> str:
  """Memory that pictures take on a device and in the cache."""
  (train, test), path = experiment.picture_bytes, experiment.path[0]
  if path == "resident":
    return f"pictures {_mebibytes(train + test)} (train {_mebibytes(train)}, test {_mebibytes(test)})"
  # Of the current call and the next one; each device holds its share of the batch.
  steps, share = experiment.steps_per_call, experiment.step_bytes // len(experiment.devices)
  there = f"pictures {_mebibytes(2 * steps * share)} ({path}: two calls of {steps} steps)"
  if experiment.source.uniform or experiment.config.cache_dir == "off":
    return there
  return f"{there}, cache on disk {_mebibytes((train if path == 'prefetch' else 0) + test)}"


def _stack(experiment: Experiment) -> str:
  """Memory of frozen backbones, for methods that have some."""
  method, tasks = experiment.method, len(experiment.plans)
  if not method.stack(tasks):
    return ""
  backbone = experiment.abstract_state().params["backbone"]
  return (f", {method.stack(tasks)} frozen backbones "
          f"{_mebibytes(networks.stack_bytes(method, backbone, tasks))}")


def _mebibytes(count: int) -> str:
  return f"{count / 2**20:.1f} MiB"


def task_line(number: int, results: dict[str, Any]) -> str:
  """The line printed after task `number` (from 0)."""
  def of(name: str) -> str:
    return percent(results[name][number])
  return (f"task {number + 1}/{len(results['task_accuracies'])}: accuracy {of('task_accuracies')} %, mean of "
          f"tasks {of('task_mean_accuracies')} %, forgetting {of('forgetting')}, backward transfer "
          f"{of('backward_transfer')}; by task "
          f"[{' '.join(percent(a) for a in results['accuracy_matrix'][number][:number + 1])}], task-aware "
          f"[{' '.join(percent(a) for a in results['accuracy_matrix_task_aware'][number][:number + 1])}]")


def closing_table(results: dict[str, Any]) -> str:
  """The table at the end of a run."""
  header = f"{'task':>4}  {'accuracy':>8}  {'task mean':>9}  {'forgetting':>10}  {'backward':>8}"
  rows = [f"{t + 1:>4}  {percent(results['task_accuracies'][t]):>8}  "
          f"{percent(results['task_mean_accuracies'][t]):>9}  {percent(results['forgetting'][t]):>10}  "
          f"{percent(results['backward_transfer'][t]):>8}" for t in range(results["tasks_done"])]
  groups = [f"{name} {percent(group['accuracy'])} % ({group['classes']} classes)"
            for name, group in results["many_medium_few"].items() if group]
  scores = [f"by {name.replace('_', ' ')}: average incremental accuracy "
            f"{percent(score['average_incremental_accuracy'])} %, last "
            f"{percent(score['task_accuracies'][results['tasks_done'] - 1])} %"
            for name, score in list((results.get("scores") or {}).items())[1:]]
  return "\n".join([
      header, *rows,
      f"average incremental accuracy {percent(results['average_incremental_accuracy'])} %, last "
      f"{percent(results['last_accuracy'])} %" + (f"; {', '.join(groups)}" if groups else ""), *scores])


def calibration_lines(calibration: dict[str, Any]) -> str:
  """The figures of one task's calibration, before and after temperature scaling."""
  fitted = calibration["temperatures"]
  if fitted is None:
    names = {"uncalibrated": "not calibrated (no held-out images)"}
  else:
    two = " and ".join(f"{part} {fitted[part]:.3g}" for part in ("old", "new") if fitted[part] is not None)
    names = {"uncalibrated": "T = 1", "one_temperature": f"T = {fitted['one']:.3g}", "two_temperatures": f"T = {two}"}
  return "\n".join(
      f"calibration, {text}: accuracy {percent(one['accuracy'])} %, ECE {percent(one['ece'])} %, adaptive "
      f"{percent(one['adaptive_ece'])} %, class-wise {percent(one['classwise_ece'])} %, NLL {one['nll']:.4f}, Brier "
      f"{one['brier']:.4f}" for name, text in names.items() for one in [calibration[name]["all"]])
