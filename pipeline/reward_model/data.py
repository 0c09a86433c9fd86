"""What a reward model is fitted to: the pairs of rounds' preferences, and the ratings of their judgments."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import pyarrow as pa

from pipeline.errors import DataError
from pipeline.judges.base import JudgedCandidate, JudgeItem
from pipeline.judges.support.tables import judge_items

LEAST_PROMPTS = 10
"""Fewest prompts with a pair that a fit needs: of fewer, those held out say nothing."""


@dataclass(frozen=True, kw_only=True)
class RewardPair:
    """Two answers to a prompt: which is better, by how much, and how probable that is."""

    prompt: JudgeItem
    chosen: JudgedCandidate
    rejected: JudgedCandidate
    margin: float
    label: float = 1.0


@dataclass(frozen=True, kw_only=True)
class RatedAnswer:
    """An answer with a judge's score."""

    prompt: JudgeItem
    answer: JudgedCandidate
    rating: float


Example = TypeVar("Example", RewardPair, RatedAnswer)


def reward_pairs(
    prompts: pa.Table, candidates: pa.Table, preferences: pa.Table, *, read_special_tokens: bool = False
) -> list[RewardPair]:
    """Lists the pairs of a round's preferences, with soft labels if they have them; of a ranking all that are no tie.

    Args:
        read_special_tokens: as the recipe's prompts say.

    Raises:
        DataError: a preference names a candidate that is not there.
    """
    items = {item.prompt_id: item for item in judge_items(prompts, candidates, read_special_tokens=read_special_tokens)}
    pairs = []
    columns = ["prompt_id", "kind", "candidates", "ranks", "scores", "soft_label"]
    # Version 1 of the table has no ranks: nothing shared a place.
    for row in preferences.select([name for name in columns if name in preferences.column_names]).to_pylist():
        if row["kind"] == "dropped":
            continue
        item = items.get(row["prompt_id"])
        answers = {} if item is None else {answer.index: answer for answer in item.candidates}
        if item is None or (missing := set(row["candidates"]) - answers.keys()):
            what = f"candidate {min(missing)}" if item else "candidates"
            raise DataError(f"a preference names {what} of prompt {row['prompt_id']}, which the round does not have")
        places = row.get("ranks") or range(len(row["candidates"]))
        ordered = list(zip(places, row["candidates"], row["scores"], strict=True))
        label = 1.0 if row["soft_label"] is None else row["soft_label"]
        pairs += [
            RewardPair(prompt=item, chosen=answers[a], rejected=answers[b], margin=high - low, label=label)
            for (first, a, high), (second, b, low) in combinations(ordered, 2)
            if first < second
        ]
    return pairs


def rated_answers(
    prompts: pa.Table, candidates: pa.Table, judgments: pa.Table, *, read_special_tokens: bool = False
) -> list[RatedAnswer]:
    """Lists the answers of a round that its judge gave a score."""
    items = {item.prompt_id: item for item in judge_items(prompts, candidates, read_special_tokens=read_special_tokens)}
    rows = judgments.select(["prompt_id", "candidate", "score", "status"]).to_pylist()
    scores = {
        (row["prompt_id"], row["candidate"]): row["score"]
        for row in rows
        if row["status"] == "ok" and row["score"] is not None and math.isfinite(row["score"])
    }
    return [
        RatedAnswer(prompt=item, answer=answer, rating=scores[item.prompt_id, answer.index])
        for item in items.values()
        for answer in item.candidates
        if (item.prompt_id, answer.index) in scores
    ]


def held_out_prompts(pairs: Sequence[RewardPair], share: float, seed: int) -> set[str]:
    """Draws the prompts to hold out: that share of them, at least one, by the seed and their ids alone.

    By prompt, not by pair: two answers to one prompt on both sides would make the fit look better than it is.

    Raises:
        DataError: there are fewer than `LEAST_PROMPTS` prompts.
    """
    found = {pair.prompt.prompt_id for pair in pairs}
    if len(found) < LEAST_PROMPTS:
        raise DataError(
            f"{len(pairs)} preferences over {len(found)} prompts are too few to fit a reward model and to hold some "
            f"out: give rounds with at least {LEAST_PROMPTS} prompts between them"
        )
    drawn = sorted(found, key=lambda prompt_id: hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest())
    return set(drawn[: max(1, min(round(share * len(drawn)), len(drawn) - 1))])


def split(examples: Sequence[Example], held_out: set[str]) -> tuple[list[Example], list[Example]]:
    """Splits examples into those to fit and those held out."""
    fitted = [example for example in examples if example.prompt.prompt_id not in held_out]
    return fitted, [example for example in examples if example.prompt.prompt_id in held_out]
