"""`make gpu-check`: what only a GPU can say of the update, in at most twelve minutes of one card.

    python -m benchmarks.gpu_check --out FILE            with tests/ and the repository on PYTHONPATH
    python -m benchmarks.gpu_check --miniature --out F   the same lines on a processor, at tiny sizes

It needs torch 2.11 or newer, triton, transformers, peft, pydantic, pyarrow, psutil and rich, and neither vLLM nor a
network. Each check prints a line of JSON when it ends; a table comes last, and the whole is in FILE, which is written
anew after each check. The checks that tell most come first, and what the budget does not hold is skipped and said so.
The exit status is 1 if a check found a fault. Aims of speed are reported, and missing them is no fault.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asks the driver, so that this process can be forked
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from benchmarks.conditions import machine, write_report
from benchmarks.gpu_check import head, kernels, speed, steps
from benchmarks.gpu_check.runner import Check, Report, Result, run_all
from benchmarks.gpu_check.sizes import Sizes
from rich import box
from rich.console import Console
from rich.table import Table


def device_facts(report: Report, _sizes: Sizes, device: str) -> None:
    """Says what computes here."""
    report.note(torch=torch.__version__, device=device, threads=torch.get_num_threads())
    if torch.device(device).type != "cuda":
        return
    free, total = torch.cuda.mem_get_info()
    report.note(
        name=torch.cuda.get_device_name(), capability=torch.cuda.get_device_capability(), cuda=torch.version.cuda,
        free_bytes=free, total_bytes=total, driver_overhead_bytes=total - free,
    )  # fmt: skip
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    report.hold((major, minor) >= (2, 11), f"torch is {torch.__version__}, and this is written for 2.11 or newer")


CHECKS = (
    Check("device", device_facts, 60),
    Check("compilation", kernels.compilation, 150),
    Check("first loss", steps.first_loss, 90),
    Check("attention", kernels.attention, 180),
    Check("packings", steps.packings, 60),
    Check("speed, small, all weights", speed.small_all, 90),
    Check("speed, large, LoRA", speed.large_lora, 120),
    Check("speed, large, all weights", speed.large_all, 150),
    Check("prefix sharing", speed.prefix_sharing, 90),
    Check("out of memory", steps.out_of_memory, 90),
    Check("head", head.variants, 60),
    Check("ranks", steps.one_rank, 90),
    Check("speed, small, LoRA", speed.small_lora, 90),
)
"""In the order in which they are run: what is cheap or tells most comes first."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gpu_check", description="What only a GPU can say of the update.")
    parser.add_argument("--out", type=Path, default=Path("build/gpu_check.json"), help="the JSON file to write")
    parser.add_argument("--budget", type=float, default=720.0, help="seconds for all checks")
    parser.add_argument("--miniature", action="store_true", help="tiny sizes on a processor, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=[check.name for check in CHECKS], help="these checks alone")
    given = parser.parse_args(arguments)
    device = "cpu" if given.miniature else "cuda"  # the first that CUDA_VISIBLE_DEVICES lets torch see
    if device != "cpu" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: --miniature runs the same lines on a processor")
    report: dict[str, Any] = {"before": machine("torch", "transformers", "peft"), "budget": given.budget, "checks": []}

    def told(result: Result) -> None:
        sys.stdout.write(result.line() + "\n")
        sys.stdout.flush()
        report["checks"].append(json.loads(result.line()))
        write_report(report, given.out)

    checks = [check for check in CHECKS if given.only is None or check.name in given.only]
    if given.miniature:  # the limits are those of a card
        checks = [replace(check, seconds=given.budget) for check in checks]
    results = run_all(checks, device, given.budget, miniature=given.miniature, told=told)
    report["after"] = machine()
    write_report(report, given.out)
    Console(width=160).print(table(results), f"written to {given.out}")
    return 1 if any(result.ok is False for result in results) else 0


def table(results: Sequence[Result]) -> Table:
    """Shows a row a check."""
    shown = Table(box=box.MARKDOWN)
    for column in ("check", "", "seconds", "what it found"):
        shown.add_column(column, overflow="fold")
    for result in results:
        verdict = {True: "ok", False: "FAULT", None: "skipped"}[result.ok]
        numbers = [f"{name} {_short(value)}" for name, value in result.values.items() if isinstance(value, int | float)]
        words = [*result.faults, *([result.skipped] if result.skipped else []), ", ".join(numbers)]
        shown.add_row(result.name, verdict, f"{result.seconds:.1f}", "; ".join(word for word in words if word))
    return shown


def _short(value: float) -> str:
    return str(value) if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


if __name__ == "__main__":
    raise SystemExit(main())
