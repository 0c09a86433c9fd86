"""Runs the checks, each in a process of its own: one that fails, hangs or dies takes none of the others with it.

The process that starts them has imported everything and has never touched a card, so that it can be forked: a check
begins at once, and what it held on the card is free when it ends. If an import did touch the card, checks are started
anew, which costs each some seconds of imports.
"""

import json
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import torch
from benchmarks.gpu_check.sizes import Sizes, sizes

LEAST_SECONDS = 5.0
"""A check that has less of the budget is not begun."""


class SkippedError(Exception):
    """A check, or its rest, cannot be done here; the message says why."""


class Report:
    """What a check finds, sent as it is found: of a check that is stopped, what came before remains."""

    def __init__(self, send: Callable[[str, Any], None]) -> None:
        self._send = send

    def note(self, **values: Any) -> None:
        """Records values by their names."""
        self._send("values", values)

    def hold(self, holds: bool, fault: str) -> None:
        """Records a fault unless this holds."""
        if not holds:
            self._send("faults", fault)


@dataclass(frozen=True)
class Check:
    """``run`` takes a report, the sizes and the device; ``seconds`` is its limit."""

    name: str
    run: Callable[[Report, Sizes, str], None]
    seconds: float


@dataclass
class Result:
    """Of a check; it is neither right nor wrong if it, or its rest, was skipped."""

    name: str
    ok: bool | None = None
    seconds: float = 0.0
    values: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    skipped: str | None = None

    def line(self) -> str:
        return json.dumps(asdict(self))


def run_all(
    checks: Sequence[Check], device: str, budget: float, *, miniature: bool, told: Callable[[Result], None]
) -> list[Result]:
    """Runs the checks in their order, as long as the budget of seconds lasts, and hands each result on."""
    started, method, results = perf_counter(), _start_method(device), []
    for check in checks:
        left = budget - (perf_counter() - started)
        if left < LEAST_SECONDS:
            result = Result(check.name, skipped=f"the budget of {budget:g} s is spent")
        else:
            result = run_one(check, device, min(check.seconds, left), miniature=miniature, method=method)
        results.append(result)
        told(result)
    return results


def run_one(check: Check, device: str, limit: float, *, miniature: bool, method: str = "fork") -> Result:
    """Runs a check in a process of its own, which is killed after ``limit`` seconds."""
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_inside, args=(check, miniature, device, theirs))
    result, started = Result(check.name), perf_counter()
    process.start()
    theirs.close()
    try:
        ended = False
        while not ended and ours.poll(max(0.0, limit - (perf_counter() - started))):
            ended = _take(result, *json.loads(ours.recv_bytes()))
        if not ended:
            result.faults.append(f"stopped after {limit:.0f} s")
            process.kill()
    except EOFError:
        process.join()
        code = process.exitcode
        result.faults.append(f"its process died of {f'signal {-code}' if code < 0 else f'status {code}'}")
    process.join()
    result.seconds = round(perf_counter() - started, 2)
    result.ok = False if result.faults else None if result.skipped else True
    return result


def _take(result: Result, kind: str, content: Any) -> bool:
    """Adds what a check has sent to its result; says whether it has ended."""
    if kind == "values":
        _merge(result.values, content)
    elif kind == "faults":
        result.faults.append(content)
    elif kind == "skipped":
        result.skipped = content
    return kind == "end"


def _merge(values: dict[str, Any], more: Mapping[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), dict):
            values[name].update(value)
        else:
            values[name] = value


def _inside(check: Check, miniature: bool, device: str, connection: Connection) -> None:
    """Is what the new process runs."""

    def send(kind: str, content: Any) -> None:
        connection.send_bytes(json.dumps([kind, content]).encode())

    os.dup2(2, 1)  # what libraries print is no line of JSON
    if miniature:
        torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "flex_attention called without torch.compile")
    try:
        check.run(Report(send), sizes(miniature=miniature), device)
    except SkippedError as reason:
        send("skipped", str(reason))
    except Exception as error:
        traceback.print_exc()
        send("faults", f"{type(error).__name__}: {str(error).strip()[:500]}")
    send("end", None)
    sys.stderr.flush()
    os._exit(0)  # threads of NCCL and gloo do not always end in order


def _start_method(device: str) -> str:
    """Says how a process is started: by a fork if a forked one can use the card."""
    if device == "cpu":
        return "fork"
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_touch, args=(device,))
    process.start()
    process.join()
    return "spawn" if process.exitcode else "fork"


def _touch(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except RuntimeError:
        os._exit(1)
    os._exit(0)
