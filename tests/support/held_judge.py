"""A judge that a test can watch and hold up: it notes each answer that it is given, and waits where it is told to."""

import os
import time
from pathlib import Path
from typing import Any

import psutil

HOLD, SLOW = "hold", "slow"


def length(answer: str, place: str, **_: Any) -> float:
    """The answer's length. While there is a file ``hold`` in this place it waits; ``slow`` names the pid that is."""
    directory = Path(place)
    node = psutil.Process(os.getppid()).ppid()  # the actor's parent stands for it
    (directory / f"given {answer} {os.getpid()} {os.getppid()} {node} {time.time_ns()}").touch()
    while (directory / HOLD).exists():
        time.sleep(0.02)
    if (directory / SLOW).exists() and (directory / SLOW).read_text() == str(os.getpid()):
        time.sleep(3)
    return float(len(answer))
