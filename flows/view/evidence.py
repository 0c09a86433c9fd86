"""What a judge said of a completion, as people read it: its parts, and each of its replies with what it was shown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.judges.base import JudgeConfig
from pipeline.judges.human import HumanConfig
from pipeline.judges.llm import Listwise, LlmConfig, Pairwise
from pipeline.records import components_of
from pipeline.usage import Usage, usage_in

Reply = tuple[str, str | None]
"""What the judge was shown, empty if it was the completion alone; and what it wrote."""


@dataclass(frozen=True)
class Evidence:
    """A judgment.

    Attributes:
        row: the row of the table of judgments.
        components: the named parts of its score.
        replies: what the judge wrote.
        from_endpoint: it is a language model's, whose replies are kept for runs to come.
        usage: what its replies took; None if the judge asks no language model, or its version did not record it.
        sees_thought: the judge sees what a completion thinks before it answers; None if that is not known.
    """

    row: Mapping[str, Any]
    components: Mapping[str, float]
    replies: Sequence[Reply]
    from_endpoint: bool
    usage: Usage | None
    sees_thought: bool | None


def evidence(row: Mapping[str, Any], config: JudgeConfig | None) -> Evidence:
    """Reads a row of the table of judgments.

    Args:
        config: the judge's, which says in what form it writes; None if the recipe has no such judge.
    """
    raw: str | None = row.get("raw")
    replies = [] if raw is None else _replies(raw, config)
    sees_thought = None if config is None else config.sees_thought
    from_endpoint, usage = isinstance(config, LlmConfig), usage_in(row)
    return Evidence(row, components_of(row["components"]), replies, from_endpoint, usage, sees_thought)


def _replies(raw: str, config: JudgeConfig | None) -> list[Reply]:
    try:
        return list(_in_its_form(raw, config))
    except (ValueError, KeyError, TypeError):  # of a judge that had this name in the run that this one is forked from
        return [("", raw)]


def _in_its_form(raw: str, config: JudgeConfig | None) -> Iterator[Reply]:
    if isinstance(config, HumanConfig):
        for choice in json.loads(raw):
            yield f"{choice['labeller']} says", str(choice["choice"])
    elif isinstance(config, LlmConfig) and isinstance(config.mode, Pairwise):
        for compared in json.loads(raw):
            (a, b), (first, second) = compared["candidates"], compared["replies"]
            yield f"completion {a} shown first, {b} second", first
            yield f"completion {b} shown first, {a} second", second
    elif isinstance(config, LlmConfig) and isinstance(config.mode, Listwise):
        for order in json.loads(raw):
            yield f"shown in the order {', '.join(map(str, order['shown']))}", order["reply"]
    else:
        yield "", raw
