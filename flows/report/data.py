"""What a report takes from a run: the points of its curves, and from its tables scores, steps and completions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.registry.round_summary import RoundSummary
from pipeline.data.conversations import message_text, messages_of
from pipeline.evaluation.held_out import judged_by
from pipeline.evaluation.metrics import ChangedAnswer, most_changed, scored_answers
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.round_query import table

_CHANGED, _UNCHOSEN = 8, 4
_MOST_DISTRIBUTIONS = 10
_STEP_ROUNDS = 50
"""A long run shows the optimizer steps of its last rounds only, so that the page stays light."""


@dataclass(frozen=True)
class Completions:
    """Held-out completions of round 0 and of the last round.

    Attributes:
        changed: those whose score changed most, either way.
        unchosen: those of the first held-out prompts, whatever they are.
    """

    changed: list[ChangedAnswer]
    unchosen: list[ChangedAnswer]


def held_out_completions(store: Store, run: Run, last: RoundSummary) -> Completions:
    """Reads completions before and after; none if there is no later round, or it was judged by another judge."""
    if last.round == 0:
        return Completions([], [])
    judgments = [table(store, run, number, "eval_judgments") for number in (0, last.round)]
    scores_before, scores_after = (judged_by(said, last.judge) for said in judgments)
    texts_before, texts_after = (_texts(table(store, run, number, "eval_candidates")) for number in (0, last.round))
    prompts = _prompts(table(store, run, 0, "prompts"))
    answers = scored_answers(prompts, texts_before, texts_after, scores_before, scores_after)
    changed = most_changed(answers, _CHANGED)
    shown = {answer.prompt_id for answer in changed}
    unchosen = [answer for answer in answers if answer.prompt_id not in shown]
    reasons = [_rationales(said, last.judge) for said in judgments]
    return Completions(*(_with_rationales(part, *reasons) for part in (changed, unchosen[:_UNCHOSEN])))


def sampled_scores(store: Store, run: Run, rounds: Sequence[RoundSummary]) -> dict[int, list[float]]:
    """Reads the scores of what was sampled for training, by round; of a long run some rounds, evenly spread."""
    trained = [summary.round for summary in rounds if summary.round > 0]
    parts = min(_MOST_DISTRIBUTIONS, len(trained)) - 1
    chosen = sorted({trained[round(part * (len(trained) - 1) / max(parts, 1))] for part in range(parts + 1)})
    found = {}
    for number in chosen:
        scores = table(store, run, number, "judgments", ["score"])["score"].to_pylist()
        found[number] = [score for score in scores if score is not None and math.isfinite(score)]
    return {number: scores for number, scores in found.items() if scores}


def optimizer_steps(store: Store, run: Run, rounds: Sequence[RoundSummary]) -> dict[int, pa.Table]:
    """Reads the ``metrics`` tables by round, of a long run those of its last rounds."""
    trained = [summary.round for summary in rounds if summary.round > 0 and summary.no_update is None]
    return {number: table(store, run, number, "metrics") for number in trained[-_STEP_ROUNDS:]}


def points_of(rounds: Sequence[RoundSummary], metrics: Mapping[str, str]) -> list[dict[str, Any]]:
    """Takes metrics of the rounds as points of curves; a round that does not have a metric has no point.

    Args:
        metrics: field of the summary by the name of its curve. Its standard error is the field that ends in ``_se``.
    """
    return [
        {"curve": curve, "x": summary.round, "y": value, "error": _finite(getattr(summary, f"{metric}_se", None))}
        for curve, metric in metrics.items()
        for summary in rounds
        if (value := _finite(getattr(summary, metric))) is not None
    ]


def points_by_judge(rounds: Sequence[RoundSummary], metric: str) -> list[dict[str, Any]]:
    """Takes a metric that rounds have by judge as points of a curve for each judge."""
    return [
        {"curve": judge, "x": summary.round, "y": value}
        for summary in rounds
        for judge, value in getattr(summary, metric).items()
        if _finite(value) is not None
    ]


def step_points(steps: Mapping[int, pa.Table], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """Takes columns of the ``metrics`` tables as points of curves over the steps of all rounds; a column by its curve.

    What is no finite number is a gap, and a column without any has no curve.
    """
    whole = pa.concat_tables(steps.values(), promote_options="default")  # an older version wrote fewer columns
    found: list[dict[str, Any]] = []
    for curve, column in columns.items():
        values = [_finite(value) for value in whole[column].to_pylist()]
        if any(value is not None for value in values):
            found.extend({"curve": curve, "x": step, "y": value} for step, value in enumerate(values))
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _rationales(judgments: pa.Table, judge: str) -> dict[str, str | None]:
    given = judgments.filter(pc.field("judge") == judge)
    return dict(zip(given["prompt_id"].to_pylist(), given["rationale"].to_pylist(), strict=True))


def _with_rationales(
    answers: Sequence[ChangedAnswer], before: Mapping[str, str | None], after: Mapping[str, str | None]
) -> list[ChangedAnswer]:
    return [
        replace(answer, rationale_before=before.get(answer.prompt_id), rationale_after=after.get(answer.prompt_id))
        for answer in answers
    ]


def _texts(candidates: pa.Table) -> dict[str, str]:
    return dict(zip(candidates["prompt_id"].to_pylist(), candidates["text"].to_pylist(), strict=True))


def _prompts(prompts: pa.Table) -> dict[str, str]:
    """Returns what people read of each prompt: the conversation if there is one, without the marks of its template."""
    shown = {}
    for row in prompts.select(["prompt_id", "text", "messages"]).to_pylist():
        turns = [f"{message['role']}: {message_text(message)}" for message in messages_of(row["messages"]) or ()]
        shown[row["prompt_id"]] = "\n".join(turns) or row["text"]
    return shown
