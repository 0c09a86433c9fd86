"""`rondo label` by single keys on a pseudo-terminal, and the way through the questions; not by lines."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flows.analysis.labelling import Answers, Labelling
from storage.log.store import Store
from storage.tables.shared_values import Labels
from support.finished_run import finished_run, small_recipe

REPOSITORY = Path(__file__).parents[3]
WAIT = 120.0  # seconds; a limit for what hangs
LLM = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:9/v1", "mode": "rubric", "criteria": "Be kind."}


class Terminal:
    """The other end of the terminal that a command runs in."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._read = descriptor, ""

    def press(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def shows(self, *texts: str) -> str:
        """Waits until the screen ends with its list of keys, and has these texts; returns what came since the last."""
        until = time.monotonic() + WAIT
        while "q quit" not in self._read.rpartition("\x1b[2J")[2] and time.monotonic() < until:
            if select.select([self._descriptor], [], [], 1.0)[0]:
                self._read += os.read(self._descriptor, 65536).decode(errors="replace")
        screen, self._read = self._read, ""
        words = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen).split())
        assert all(text in words for text in texts), (texts, words)
        return words

    def rest(self) -> str:
        """All until the command ends."""
        read = ""
        try:
            while chunk := os.read(self._descriptor, 65536):
                read += chunk.decode(errors="replace")
        except OSError:
            pass  # as Linux says that nobody has the terminal open any more
        return read


@contextmanager
def labelling(*arguments: str, columns: int = 120) -> Iterator[Terminal]:
    """`rondo label` in a terminal of its own; killed if it has not ended with the block."""
    ours, theirs = pty.openpty()
    environment = {
        **os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm",
    }  # fmt: skip
    command = [sys.executable, "-m", "flows.cli.main", "label", *arguments]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        try:
            yield Terminal(ours)
            assert process.wait(WAIT) == 0
        finally:
            process.kill()
            os.close(ours)


def test_each_key_is_a_choice_or_a_way(tmp_path: Path) -> None:
    """Three questions: choose, undo, skip, go back and choose otherwise; what is on the disk is what was shown last."""
    store = Store.open(tmp_path)
    recipe = small_recipe(evaluation={"prompts": 5, "judges": [{"kind": "grammar"}, LLM]})
    finished_run(store, "small", recipe=recipe, text=lambda *key: f" [red]choose[/red] \x1b[2J\x07 {key}")
    with labelling("small@2", "--labeller", "ann", "--root", str(tmp_path)) as terminal:
        first = terminal.shows("1 of 3 · 0 answered", "Be kind.", "[red]choose[/red] \\x1b[2J\\x07")
        assert re.search(r"╭─ A ─+╮╭─ B ─+╮", first), "both answers side by side"
        terminal.press("a")
        terminal.shows("2 of 3 · 1 answered", "an hour", "min left")
        terminal.press("x")  # means nothing
        terminal.shows("2 of 3 · 1 answered")
        terminal.press("\x1b[C")
        terminal.shows("3 of 3 · 2 answered")
        terminal.press("u")
        assert "your choice" not in terminal.shows("2 of 3 · 1 answered")
        terminal.press("s")
        terminal.shows("3 of 3 · 2 answered")
        terminal.press("r")
        assert "Be kind." not in terminal.shows("3 of 3")
        terminal.press("T")
        terminal.shows("every question is answered", "3 of 3 · 3 answered")
        for place in (3, 2, 1):
            terminal.press("\x1b[A")
            screen = terminal.shows(f"{place} of 3 · 3 answered")
        assert "your choice: A is better" in screen
        terminal.press("b")
        terminal.shows("every question is answered")
        terminal.press("q")
        assert re.search(r"3 answered, 0 left of small@2, [\d,]+ an hour", terminal.rest())
    shown = Labelling.open("small@2", "nobody", 0, str(tmp_path)).questions
    kept = {choice["question"]: choice for choice in Labels(store).newest()}
    assert [kept[question.key]["choice"] for question in shown] == ["better", "skip", "tie"]
    chosen = kept[shown[0].key]
    assert chosen["better"] == chosen["shown"][1], "the second of the two that were shown: B, in place of A"


def test_a_narrow_terminal_and_one_that_is_closed(tmp_path: Path) -> None:
    finished_run(Store.open(tmp_path), "small")
    with labelling("small@2", "--root", str(tmp_path), "--rubric", "Kindness counts.", columns=60) as terminal:
        screen = terminal.shows("Kindness counts.")
        assert re.search(r"╭─ A ─+╮ │", screen), "one below the other"
        terminal.press("\x04")
        assert "0 answered, 3 left of small@2" in terminal.rest()


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    finished_run(Store.open(tmp_path), "small")
    labelling = Labelling.open("small@2", "ann", 0, str(tmp_path))
    return Answers(labelling, labelling.questions)


def kept(tmp_path: Path) -> dict[str, str]:
    return {choice["question"]: choice["choice"] for choice in Labels(Store.open(tmp_path)).newest()}


def test_a_change_that_is_undone_brings_the_choice_before_back(answers: Answers, tmp_path: Path) -> None:
    answers.choose("tie")
    answers.move(-1)
    answers.choose("skip")
    assert (answers.place, answers.answered) == (1, 1)
    assert answers.undo()
    assert (answers.place, answers.chosen) == (0, "tie")
    assert kept(tmp_path) == {answers.questions[0].key: "tie"}
    assert answers.undo()
    assert (answers.place, answers.answered) == (0, 0)
    assert kept(tmp_path) == {answers.questions[0].key: "withdrawn"}
    assert not answers.undo()


def test_a_choice_leads_to_the_next_open_question(answers: Answers) -> None:
    answers.move(2)
    answers.choose("a")
    assert answers.place == 0, "the first two were passed over"
    answers.choose("b")
    answers.choose("tie")
    assert answers.place == len(answers.questions) == answers.answered
    answers.move(1)
    assert answers.place == 2
