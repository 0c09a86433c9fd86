"""A process that was asked to end does so, also if it is held up; a program's process is left alone."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from flows.host import sure_end
from flows.host.processes import lives
from flows.host.sure_end import INTERRUPTED_STATUS, SureEnd

OTHERS, LAST, STOP = 0.5, 0.5, 20.0
HANGS = 60.0
HELD_UP = """
import signal, subprocess, sys, threading, time
from flows.host import sure_end
sure_end.OTHERS_SECONDS, sure_end.LAST_SECONDS, sure_end.STOP_SECONDS = {times}

def close():
    print("closed", flush=True)
    raise OSError("the store is gone")

end = sure_end.SureEnd(close)
signal.signal(signal.SIGTERM, lambda *_: end.ask())
worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
with sure_end.command(), end.watching(), {what}:
    print(worker.pid, flush=True)
    while True:
        time.sleep(600)
"""


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sure_end, "OTHERS_SECONDS", OTHERS)
    monkeypatch.setattr(sure_end, "LAST_SECONDS", LAST)
    monkeypatch.setattr(sure_end, "STOP_SECONDS", STOP)


@pytest.mark.parametrize(
    ("what", "times", "least"),
    [
        ("end.waiting_for_others(lambda: None)", (OTHERS, LAST, STOP), OTHERS + LAST),
        ("end.own_work()", (0.0, LAST, 2.0), 2.0),
    ],
    ids=["others", "own work"],
)
def test_a_command_that_is_held_up_ends_with_its_workers(
    what: str, times: tuple[float, float, float], least: float
) -> None:
    """Own work has its own time: that of others, here none, does not count for it."""
    command = [sys.executable, "-c", HELD_UP.format(what=what, times=times)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=HANGS)
    assert time.monotonic() - began >= least
    assert (process.returncode, said) == (INTERRUPTED_STATUS, "closed\n")
    assert errors == "", "whether it can be closed or not"
    psutil.wait_procs([worker], timeout=HANGS)
    assert not lives(worker)


def test_what_others_do_is_cut_again_and_again_and_own_work_never(soon: None) -> None:
    cuts, enough = [0], threading.Event()

    def cut() -> None:
        cuts[0] += 1
        if cuts[0] == 3:
            enough.set()

    end = SureEnd(lambda: None)
    with end.watching(), end.waiting_for_others(cut):
        time.sleep(2 * OTHERS)
        assert cuts == [0], "nobody has asked"
        with end.own_work():
            assert not end.waits_for_others
            end.ask()
            time.sleep(3 * OTHERS)
            assert cuts == [0]
        assert end.waits_for_others
        assert enough.wait(HANGS)


def test_a_program_that_has_imported_us_goes_on(soon: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []
    monkeypatch.setattr(SureEnd, "_end_process", lambda _: ended.append("ended"))
    end = SureEnd(lambda: None)
    with end.watching(), end.waiting_for_others(lambda: None):
        end.ask()
        time.sleep(2 * (OTHERS + LAST))
        assert ended == []
        SureEnd.ends_process = True
        try:
            time.sleep(OTHERS)
        finally:
            SureEnd.ends_process = False
        assert ended, "in a command it would have ended by then"
