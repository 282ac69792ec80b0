"""The report of the benchmark as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def markdown(report: dict[str, Any]) -> str:
  """The report of steps.measure as Markdown."""
  def milliseconds(timing: dict[str, float]) -> str:
    return f"{1e3 * timing['median']:.2f} ({1e3 * timing['fastest']:.2f} to {1e3 * timing['slowest']:.2f})"

  lines = [f"{report['devices']}, {report['precision']}, batch {report['config']['batch_size']}, "
           f"{report['config']['model']}, jax {report['versions']['jax']}, {report['date']}"
           + (f"; {report['convolutions']}" if report["convolutions"] else ""), "",
           "| program | compile, s | step, ms: median (range) | images/s | TFLOP/s (share of the product's) | GB/s "
           "(share of the copy's) | temporary memory, MiB |", "|---|---|---|---|---|---|---|"]
  top = report["ceilings"]
  for name, row in report["programs"].items():
    def rate(amount: float | None, ceiling: float, unit: float, seconds: float = row["step"]["median"]) -> str:
      return "-" if not amount else f"{amount / seconds / unit:.3g} ({100 * amount / seconds / ceiling:.0f} %)"
    temporary = row["temporary_bytes"]
    lines.append(
        f"| {name} | {row['compile_seconds']:.1f} | {milliseconds(row['step'])} | {row['images_per_second']:.0f} | "
        f"{rate(row['flops_per_step'], top['flops'], 1e12)} | {rate(row['bytes_per_step'], top['bytes'], 1e9)} | "
        f"{'-' if temporary is None else round(temporary / 2**20)} |")
  lines += ["", f"ceilings: matrix product {top['flops'] / 1e12:.3g} TFLOP/s, copy {top['bytes'] / 1e9:.3g} GB/s"]
  if "without" in report:
    lines += ["", "| step of task 2 without | ms: median (range) | share of the step |", "|---|---|---|",
              *[f"| {name} | {milliseconds(timing)} | {100 * report['shares'][name]:.1f} % |"
                for name, timing in report["without"].items()]]
  if "method_over_plain" in report:
    lines += ["", f"the method's own cost: {report['method_over_plain']:.3f} x the step with plain cross-entropy and "
              f"plain distillation"]
  lines += ["",
            f"images/s: evaluation {report['evaluation_images_per_second']:.0f}, features "
            f"{report['feature_images_per_second']:.0f}, herding {report['herding_images_per_second']:.0f}",
            f"start: import {report['import_seconds']:.1f} s, first step after {report['first_step_seconds']:.1f} s "
            f"(no program cached); peak memory: host {report['peak_host_bytes'] / 2**20:.0f} MiB, device " + (
                f"{report['peak_device_bytes'] / 2**20:.0f} MiB" if report["peak_device_bytes"] else "not reported")]
  if "pictures" in report:
    lines += ["", *_pictures(report["pictures"], {
        "with": report["first_step_seconds"], "without": report["pictures"]["first_step_without_cache_seconds"]})]
  if "replicas" in report:
    forms = {name: timing for name, timing in report["replicas"].items() if name != "count"}
    lines += ["", f"| {report['replicas']['count']} replicas on one device | a step of all, ms | x one |",
              "|---|---|---|"]
    one = report["programs"]["task 2"]["step"]["median"]
    lines += [f"| {name} | {milliseconds(timing)} | {timing['median'] / one:.2f} |" for name, timing in forms.items()]
  return "\n".join(lines)


def _pictures(report: dict[str, Any], start: dict[str, float]) -> Iterator[str]:
  """The lines on pictures of mixed sizes.

  Args:
    report: {**pictures.reading(...), "paths": pictures.on_their_way(...)}.
    start: {"with", "without"}: seconds until the first step, with and without an existing cache.
  """
  yield from (
      f"decoding: {report['decoded']} pictures in {report['cold_seconds']:.1f} s, "
      f"{report['decoded_per_core']:.0f} per second and core; Pillow only {report['pillow_per_core']:.0f}; read from "
      f"the cache {report['cached_per_second']:.0f} per second; the cache takes {report['cache_bytes'] / 1e9:.2f} GB",
      f"first step: after {start['with']:.1f} s with the cache, {start['without']:.1f} s without it", "",
      "| pictures | reach the device, per second | first ones after, s | trained in the base task, per second |",
      "|---|---|---|---|")
  for path, row in report["paths"].items():
    there = [f"{row[name]:.{digits}f}" if name in row else "-"
             for name, digits in (("delivered", 0), ("first_call_seconds", 1))]
    yield f"| {path} | {' | '.join(there)} | {row['trained']:.1f} |"
