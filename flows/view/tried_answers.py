"""Answers that were tried, and that a person then holds against each other: a label of its own kind."""

from dataclasses import asdict
from typing import Any, Literal

from flows.analysis.labelling import LONGEST_NOTE, keep_choice
from flows.registry.tried_labels import TRIED
from flows.view.trials import Side, Trial
from pipeline.data.sources import Prompt
from pipeline.errors import ConfigError
from pipeline.judges.base import JudgedCandidate, JudgeItem
from pipeline.judges.support.human_labels import Question
from storage.tables.shared_values import Labels

TriedChoice = Literal["left", "tie", "right", "undo"]


def can_be_compared(trial: Trial) -> bool:
    """Says whether both checkpoints have answered, and not with one and the same text."""
    texts = {side.answer.text if side.answer else None for side in trial.sides}
    return len(texts) == 2 and None not in texts


def keep(labels: Labels, trial: Trial, labeller: str, choice: TriedChoice, note: str = "") -> None:
    """Keeps which of two tried answers a person prefers, as a label of the run on whose page they were tried.

    It is durable when this returns.

    Args:
        choice: undo takes an earlier one back.

    Raises:
        ConfigError: there are no two different answers, or the note is too long.
        InvalidEntryError: the labeller has no name.
    """
    if not can_be_compared(trial):
        raise ConfigError("there are no two different answers to choose between: try another prompt, or another seed")
    if len(note) > LONGEST_NOTE:
        raise ConfigError(f"the note has {len(note):,} characters: give at most {LONGEST_NOTE:,}")
    question, made = _question(trial), trial.asked
    left, right = question.answers
    prompt = trial.sides[0].prompt
    more: dict[str, Any] = {
        "kind": TRIED,
        "prompt_id": _prompt_id(trial),
        "run": trial.run,
        "round": None,
        "prompt": {"messages": prompt.messages} if prompt.messages is not None else {"text": prompt.text},
        "answers": [_told(side) for side in trial.sides],
        "sampling": {"engine": made.engine, **asdict(made.settings)},
        **({"note": note.strip()} if note.strip() else {}),
    }
    better = {"left": left, "right": right}.get(choice)
    said = {"left": "better", "right": "better", "tie": "tie", "undo": "withdrawn"}[choice]
    keep_choice(labels, question, labeller, said, better, (left, right), more)
    trial.said = {**trial.said, labeller: choice}


def _question(trial: Trial) -> Question:
    """Returns the question, which is none of a round's, even if a round has this prompt with these two texts."""
    answers = [
        JudgedCandidate(index=index, text=side.answer.text, finish_reason=side.answer.finish_reason)
        for index, side in enumerate(trial.sides)
        if side.answer is not None
    ]
    asked, read = trial.sides[0].prompt, trial.sides[0].answer
    assert read is not None
    named = f"{TRIED} {_prompt_id(trial)}"
    item = JudgeItem(prompt_id=named, prompt_text=read.prompt, messages=asked.messages, candidates=answers)
    return Question(item, (answers[0], answers[1]))


def _prompt_id(trial: Trial) -> str:
    asked = trial.sides[0].prompt
    content = asked.messages if asked.messages is not None else asked.text or ""
    return Prompt(content, None, TRIED, TRIED, asked.template_kwargs).prompt_id


def _told(side: Side) -> dict[str, Any]:
    """Returns what is kept of an answer."""
    found = side.answer
    assert found is not None
    return {
        "run": side.run, "round": side.round, "policy": side.policy.digest, "prompt": found.prompt, "text": found.text,
        "tokens": found.tokens, "finish_reason": found.finish_reason, "logp": found.logp,
    }  # fmt: skip
