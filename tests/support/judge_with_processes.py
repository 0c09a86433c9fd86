"""A judge that reckons elsewhere than in its caller's thread, each of the ways in which verifiers do it."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.context import BaseContext
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

LIMIT_SECONDS = 60.0  # far more than any way takes: what reaches it hangs
TIMED_OUT = 0.0


def score(answer: str, way: str, **_: Any) -> float:
    """The value of an answer, reckoned in this way; ``TIMED_OUT`` if that does not end, as verifiers have it."""
    return WAYS[way](answer)


def value(answer: str) -> float:
    """What depends on each letter, and is ``TIMED_OUT`` for no answer."""
    return 1.0 + sum(place * ord(letter) for place, letter in enumerate(answer, 1)) / 1000


def _limited(context: BaseContext, answer: str) -> float:
    """A process for each answer, with a limit of time."""
    results = context.SimpleQueue()
    process = context.Process(target=_put, args=(results, answer))  # type: ignore[attr-defined]
    process.start()
    process.join(LIMIT_SECONDS)
    if process.exitcode is None:
        process.kill()
        return TIMED_OUT
    return float(results.get())


def _put(results: "SimpleQueue[float]", answer: str) -> None:
    results.put(value(answer))


def _alarm(answer: str) -> float:
    """A limit of time by a signal, which only a process's main thread can set."""

    def late(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(LIMIT_SECONDS)
        return TIMED_OUT
    except TimeoutError:
        return value(answer)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _pool(answer: str) -> float:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return float(pool.apply(value, [answer]))


def _executor(answer: str) -> float:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        return pool.submit(value, answer).result(LIMIT_SECONDS)


def _threads(answer: str) -> float:
    with ThreadPoolExecutor(4) as pool:
        return max(pool.map(value, [answer] * 8))


_PROGRAM = "import sys; print(1 + sum(place * ord(letter) for place, letter in enumerate(sys.argv[1], 1)) / 1000)"


def _subprocess(answer: str) -> float:
    """A program that reads what is left for it on standard input: nothing."""
    program = f"import sys; sys.stdin.read(); {_PROGRAM}"
    command = [sys.executable, "-S", "-c", program, answer]
    return float(subprocess.run(command, capture_output=True, check=True, timeout=LIMIT_SECONDS).stdout)


WAYS: dict[str, Callable[[str], float]] = {
    "fork with a limit": lambda answer: _limited(multiprocessing.get_context("fork"), answer),
    "spawn with a limit": lambda answer: _limited(multiprocessing.get_context("spawn"), answer),
    "alarm": _alarm,
    "forked pool": _pool,
    "forked executor": _executor,
    "threads": _threads,
    "subprocess": _subprocess,
}


def leave(place: str, **_: Any) -> float:
    """Dies, and leaves a child that holds all that is open here; Python's own fork would let go of the pipes."""
    child = ctypes.PyDLL(None).fork()
    while child == 0:
        time.sleep(1)
    Path(place).write_text(str(child))
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0
