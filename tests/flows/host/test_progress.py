"""What is seen of a run where nothing moves, as in a log file: times, steps, and no long silence."""

import errno
import io
import os
import time
from collections.abc import Iterator

import pytest
from rich.console import Console

from flows.host import progress
from flows.host.progress import Display

WAIT = 20.0  # seconds; a limit for what hangs


@pytest.fixture
def written() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def display(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Iterator[Display]:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.05)
    monkeypatch.setattr(progress, "STEP_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_LOOK_SECONDS", 0.01)
    with Display(Console(file=written, width=200)) as shown:
        yield shown


def wait_for(written: io.StringIO, text: str, times: int = 1) -> None:
    until = time.monotonic() + WAIT
    while written.getvalue().count(text) < times:
        assert time.monotonic() < until, written.getvalue()
        time.sleep(0.01)


def test_nothing_that_takes_its_time_is_silent(display: Display, written: io.StringIO) -> None:
    with display.doing("checking the prompts"):
        wait_for(written, "checking the prompts  0 s\n", times=2)
    display.rounds(0, 3)
    wait_for(written, "round 0 of 2\n")  # also when nobody says what is at work
    with display.stage(1, "sample", 12, shards=2, unit="completions") as sampling, display.stage(1, "judge", 12):
        sampling.report({"done": 3, "tokens": 60}, 0)
        wait_for(written, "round 1  sample  3/12 completions  shard 1/2  ")
    assert "judge" not in written.getvalue(), "a stage without work is not shown"


def test_who_waits_for_people_may_be_silent(display: Display, written: io.StringIO) -> None:
    display.rounds(0, 3)
    with display.resting():
        time.sleep(0.1)  # a line that was on its way
        before = written.getvalue()
        time.sleep(0.3)  # six times as long as a silence is borne
        assert written.getvalue() == before
    wait_for(written, "round 0 of 2\n")


def test_steps_are_lines_of_their_own(display: Display, written: io.StringIO) -> None:
    with display.stage(1, "update", unit="steps") as update:
        update.report({"doing": "comparing with the sampler"})
        wait_for(written, "round 1  update  comparing with the sampler  0 s\n")
        for step in (1, 2):
            update.report({"done": step, "total": 2, "loss": 0.7 / step})
        update.report({"doing": "saving"})
    lines = written.getvalue().splitlines()
    assert "round 1  update  1/2 steps  loss 0.7000  0 s" in lines
    assert "round 1  update  2/2 steps  loss 0.3500  0 s" in lines
    assert lines[-1].startswith("round 1  update")
    assert lines[-1].endswith(" s   2 steps  loss 0.3500"), "what it did last is over"


def test_the_time_of_a_stage_is_that_of_its_workers(display: Display, written: io.StringIO) -> None:
    """Two shards, 2 s each, that overlap by 1 s, and 10 s between them and a third one: 2 + 2 - 1 + 0.5 s of work."""
    with display.stage(1, "judge", 30, shards=3, unit="completions") as judging:
        for shard, span in enumerate([(100.0, 102.0), (101.0, 103.0), (113.0, 113.5)]):
            judging.report({"done": 10, "tokens": 70}, shard)
            judging.worked_on({"span": span, "device": "cpu"})
    assert written.getvalue().splitlines()[-1] == (
        "round 1  judge                  3.5 s   30 completions  shard 3/3  60 tokens/s"
    )


def test_a_run_goes_on_if_nobody_can_be_told() -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Display(Console(file=Full())) as shown:
        shown.say("a line")
        with shown.stage(1, "judge") as stage:
            stage.begin()


def test_on_a_terminal_the_lines_move(written: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SILENT_SECONDS", 0.0)
    with Display(Console(file=written, force_terminal=True, width=200)) as shown:
        with shown.doing("reading"), shown.stage(1, "update", unit="steps") as stage:
            stage.report({"done": 1, "total": 4, "loss": 0.5})
            wait_for(written, "1/4 steps")
        shown.rounds(1, 3)
        assert shown._watch is None
    assert "0 s\n" not in written.getvalue()
