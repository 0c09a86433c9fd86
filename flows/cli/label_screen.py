"""The two ways in which `rondo label` asks: by one key on a terminal, and by lines elsewhere."""

import contextlib
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from flows.host.text import visible
from pipeline.data.conversations import written_out

if TYPE_CHECKING:
    from flows.analysis.labelling import Answers, Choice, Labelling

_NARROW = 70
"""Characters; on a narrower terminal one completion stands below the other."""
_CHOICES: dict[str, "Choice"] = {"a": "a", "b": "b", "tie": "tie", "t": "tie", "skip": "skip", "s": "skip"}
_KEYS = {
    "\x1b[D": "a", "\x1bOD": "a", "\x1b[C": "b", "\x1bOC": "b", "=": "t",
    "\x1b[A": "back", "\x1bOA": "back", "k": "back", "\x1b[B": "on", "\x1bOB": "on", "j": "on",
    "\x7f": "u", "\x08": "u", "\x1b": "q", "\x04": "q", "": "q",
}  # fmt: skip
"""What other keys mean: arrows, as terminals send them in two modes, Escape, Ctrl-D, and the terminal's end."""
_HELP = "a ← A is better   b → B is better   t tie   s skip   u undo   ↑ back   ↓ on   r rubric   q quit"
_END = "every question is answered:   u undo   ↑ back   q quit"
_SAID: dict["Choice", str] = {"a": "A is better", "b": "B is better", "tie": "a tie", "skip": "skipped"}


def label_by_keys(console: Console, labelling: "Labelling", answers: "Answers", rubric: str | None) -> None:
    """Asks until somebody quits: each key is a choice, or leads to another question."""
    shows_rubric = rubric is not None
    with _single_keys(sys.stdin.fileno()) as next_key:
        while answers.questions:
            _show_screen(console, labelling, answers, rubric if shows_rubric else None)
            key = next_key()
            if key == "q":
                console.print()
                return
            if key == "r":
                shows_rubric = not shows_rubric and rubric is not None
            elif key == "u":
                answers.undo()
            elif key in ("back", "on"):
                answers.move(-1 if key == "back" else 1)
            elif key in _CHOICES and answers.place < len(answers.questions):
                answers.choose(_CHOICES[key])


@contextlib.contextmanager
def _single_keys(terminal: int) -> Iterator[Callable[[], str]]:
    """Yields a function that waits for a key, without Enter and without showing it, while the block runs.

    Further keys that were pressed before that one is read are dropped: nobody had seen the question they would answer.
    """
    before = termios.tcgetattr(terminal)

    def next_key() -> str:
        try:
            pressed = os.read(terminal, 32).decode(errors="ignore")
        except (KeyboardInterrupt, OSError):  # Ctrl-C, and a window that was closed
            return "q"
        termios.tcflush(terminal, termios.TCIFLUSH)
        key = pressed if pressed.startswith("\x1b") else pressed[:1].lower()
        return _KEYS.get(key, key)

    tty.setcbreak(terminal)
    try:
        yield next_key
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def label_by_lines(console: Console, labelling: "Labelling", answers: "Answers", rubric: str | None) -> None:
    """Asks each question once, and reads a line for it; ends with the questions, or with the input."""
    if rubric is not None and answers.questions:
        console.print(_panel("rubric", rubric))
    while answers.place < len(answers.questions):
        question = answers.questions[answers.place]
        first, second = labelling.shown(question)
        console.rule(f"{answers.place + 1} of {len(answers.questions)}")
        console.print(_prompt(answers))
        console.print(_panel("A", first.text), _panel("B", second.text), sep="\n")
        typed = _ask_line(console)
        if typed is None:
            return
        if typed != "undo":
            answers.choose(_CHOICES[typed])
        elif not answers.undo():
            console.print("nothing to take back")


def _ask_line(console: Console) -> str | None:
    """Returns what was typed, once it is one of the choices; None to quit, and at the end of the input."""
    while True:
        try:
            typed = console.input("better: a, b, tie, skip, undo or quit? ", markup=False).strip().lower()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return None
        if typed in ("quit", "q"):
            return None
        if typed in ("undo", "u"):
            return "undo"
        if typed in _CHOICES:
            return typed


def _show_screen(console: Console, labelling: "Labelling", answers: "Answers", rubric: str | None) -> None:
    console.clear()
    if rubric is not None:
        console.print(_panel("rubric", rubric, style="cyan"))
    if answers.place < len(answers.questions):
        console.print(_prompt(answers))
        console.print(_side_by_side(console, labelling, answers))
    # At the bottom, where it is seen even if a long text has pushed the rest out of the window.
    console.print(_state(answers), style="bold", markup=False, highlight=False)
    console.print(_HELP if answers.place < len(answers.questions) else _END, markup=False, highlight=False)


def _side_by_side(console: Console, labelling: "Labelling", answers: "Answers") -> Table | Group:
    chosen = answers.chosen
    panels = [
        _panel(name, answer.text, style="green" if chosen == name.lower() else "none")
        for name, answer in zip("AB", labelling.shown(answers.questions[answers.place]), strict=True)
    ]
    if console.width < _NARROW:
        return Group(*panels)
    both = Table.grid(expand=True)
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    both.add_row(*panels)
    return both


def _state(answers: "Answers") -> str:
    total = len(answers.questions)
    parts = [f"{min(answers.place + 1, total)} of {total}", f"{answers.answered} answered"]
    if answers.answered:
        left = (total - answers.answered) / answers.per_hour * 60
        parts += [f"{answers.per_hour:,.0f} an hour", f"about {left:,.0f} min left"]
    if answers.chosen is not None:
        parts.append(f"your choice: {_SAID[answers.chosen]}")
    return " · ".join(parts)


def _prompt(answers: "Answers") -> Panel:
    """Shows the prompt of the question: its whole conversation, without the marks of a chat template."""
    prompt = answers.questions[answers.place].prompt
    return _panel("prompt", written_out(prompt.messages) if prompt.messages else prompt.prompt_text)


def _panel(title: str, text: str, style: str = "none") -> Panel:
    # Text, not markup, and without control codes: what a model wrote must not draw, hide or answer.
    return Panel(Text(visible(text.strip("\n"))), title=title, title_align="left", border_style=style)
