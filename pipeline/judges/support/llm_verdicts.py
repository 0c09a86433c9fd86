"""What a language model's replies come to: a verdict on each candidate, and how sure the judge is of each order."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from pipeline.errors import JudgeError
from pipeline.judges.base import JudgeItem, Status, Verdict
from pipeline.judges.llm import Listwise, Rubric
from pipeline.judges.support.comparisons import mean_place, place_difference
from pipeline.judges.support.llm_questions import Said, score_distribution
from pipeline.judges.support.llm_reply import Reply
from pipeline.judges.support.posterior import Floats
from pipeline.judges.support.stated import LEVEL, order_probability, pair_components
from pipeline.usage import NOTHING, Usage

Pairs = dict[tuple[int, int], float]


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """The model's verdict on a question; none unless the status is ok. ``usage`` is of all replies to it."""

    said: Said | None = None
    status: Status = "ok"
    reason: str | None = None
    reply: Reply | None = None
    latency: float = 0.0
    usage: Usage = NOTHING

    @property
    def raw(self) -> str | None:
        return None if self.reply is None else self.reply.content

    @property
    def verdict(self) -> Any:
        return None if self.said is None else self.said.verdict


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two candidates by their places, and what was said of them with either first."""

    pair: tuple[int, int]
    orders: tuple[Spoken, Spoken]

    @property
    def spoken(self) -> bool:
        return all(spoken.status == "ok" for spoken in self.orders)

    @property
    def flipped(self) -> bool:
        return self.spoken and self._winners[0] != self._winners[1]

    @property
    def winner(self) -> int | None:
        """Returns the place of the better one; None for a tie, and if the verdict turns with the order."""
        return None if self.flipped else self._winners[0]

    @property
    def _winners(self) -> tuple[int | None, int | None]:
        a, b = self.pair
        first, second = self.orders
        return {"A": a, "B": b}.get(first.verdict), {"A": b, "B": a}.get(second.verdict)


def rubric_verdict(spoken: Spoken, mode: Rubric, url: str, *, compared: bool) -> Verdict:
    """Returns the score of a candidate that was judged by itself.

    Args:
        compared: whether the prompt has other candidates, so that the score's distribution is of use.

    Raises:
        JudgeError: the endpoint gives no log-probabilities, and the score is to be the expected one.
    """
    said, reply = spoken.said, spoken.reply
    if said is None or reply is None:
        return Verdict(score=None, status=spoken.status, rationale=spoken.reason, raw=spoken.raw)
    if mode.score == "parsed":
        return Verdict(score=float(said.verdict), rationale=spoken.reason, raw=reply.content)
    if reply.tokens is None:
        raise JudgeError(
            f"{url} gives no log-probabilities, from which the expected score is taken: set "
            "judge.mode to {kind: rubric, score: parsed}"
        )
    found = score_distribution(reply.tokens, said, mode.scale)
    if found is None:
        reason = "the score is no token of its own"
        return Verdict(score=None, status="unparsable", rationale=reason, raw=reply.content)
    components = {"written": float(said.verdict), "mass": found.mass}
    if compared:
        components |= {f"{LEVEL}{level}": share for level, share in found.shares.items() if share > 0}
    return Verdict(
        score=found.mean, score_std=found.std, components=components, rationale=spoken.reason, raw=reply.content
    )


def pairwise_verdicts(
    item: JudgeItem, compared: Sequence[Compared], found: tuple[Floats, Floats], orders: tuple[Floats, Floats]
) -> list[Verdict]:
    """Returns the strength of each candidate, and the probability that it beats each other one.

    Args:
        found: the strengths that all comparisons give, and their standard deviations.
        orders: the probability that one beats another, and the standard deviation of the difference.
    """
    indices = [candidate.index for candidate in item.candidates]
    places = list(permutations(range(len(indices)), 2))
    beats, spread = ({(indices[a], indices[b]): float(matrix[a, b]) for a, b in places} for matrix in orders)
    verdicts = []
    for k, index in enumerate(indices):
        mine = [one for one in compared if k in one.pair]
        spoken = [one for one in mine if one.spoken]
        verdict = _counted(indices, k, mine, spoken)
        if spoken:
            stated = pair_components(index, beats, spread)
            verdict = Verdict(
                score=float(found[0][k]), score_std=float(found[1][k]), raw=verdict.raw,
                components={**verdict.components, **stated}, rationale=_reason(indices, k, spoken),
            )  # fmt: skip
        verdicts.append(verdict)
    return verdicts


def listwise_verdicts(
    item: JudgeItem,
    mode: Listwise,
    shown: Sequence[Sequence[int]],
    said: Sequence[Spoken],
    places: Sequence[Sequence[float]],
) -> list[Verdict]:
    """Returns the mean place of each candidate, and the probability that it is before each other one.

    Args:
        shown: in which order each question showed the candidates, by their places in the item.
        said: what was said to each question.
        places: of the questions that have a verdict, each candidate's place, 1 for the best and 0 for the last.
    """
    raw = json.dumps([{"shown": order, "reply": spoken.raw} for order, spoken in zip(shown, said, strict=True)])
    counts = {"orders": float(len(places)), "unspoken": float(len(said) - len(places))}
    indices, count = [candidate.index for candidate in item.candidates], len(item.candidates)
    # An order that one of two shuffles gives has no spread that could be seen: it is no verdict of this judge.
    if len(places) < min(2, mode.shuffles):
        failed = next(spoken for spoken in said if spoken.status != "ok")
        lost = Verdict(score=None, status=failed.status, components=counts, rationale=failed.reason, raw=raw)
        return [lost] * count
    by_candidate = list(zip(*places, strict=True))
    beats, spread = _place_orders(indices, by_candidate) if mode.shuffles > 1 else ({}, {})
    reason = next((spoken.reason for spoken in said if spoken.status == "ok"), None)
    verdicts = []
    for index, found in zip(indices, by_candidate, strict=True):
        mean, error = mean_place(found, count)
        components = {**counts, **pair_components(index, beats, spread)}
        std = error if mode.shuffles > 1 else None
        verdicts.append(Verdict(score=mean, score_std=std, components=components, rationale=reason, raw=raw))
    return verdicts


def _place_orders(indices: Sequence[int], places: Sequence[Sequence[float]]) -> tuple[Pairs, Pairs]:
    beats: Pairs = {}
    spread: Pairs = {}
    for a, b in permutations(range(len(indices)), 2):
        mean, error = place_difference(places[a], places[b], len(indices))
        pair = indices[a], indices[b]
        beats[pair], spread[pair] = order_probability(mean, error), error
    return beats, spread


def _counted(indices: Sequence[int], k: int, mine: Sequence[Compared], spoken: Sequence[Compared]) -> Verdict:
    """Counts a candidate's comparisons; the status is that of the first that failed."""
    wins = sum(one.winner == k for one in spoken)
    ties = sum(one.winner is None for one in spoken)
    components: Mapping[str, int] = {
        "comparisons": len(spoken), "wins": wins, "losses": len(spoken) - wins - ties, "ties": ties,
        "flips": sum(one.flipped for one in spoken), "unspoken": len(mine) - len(spoken),
    }  # fmt: skip
    raw = json.dumps([
        {"candidates": [indices[place] for place in one.pair], "replies": [order.raw for order in one.orders]}
        for one in mine
    ])  # fmt: skip
    failed = next((order for one in mine for order in one.orders if order.status != "ok"), Spoken())
    floats = {name: float(value) for name, value in components.items()}
    return Verdict(score=None, status=failed.status, components=floats, rationale=failed.reason, raw=raw)


def _reason(indices: Sequence[int], k: int, spoken: Sequence[Compared]) -> str | None:
    """Finds the first reason that was given in one of a candidate's comparisons, which names the two A and B."""
    for one in spoken:
        for (a, b), order in zip((one.pair, one.pair[::-1]), one.orders, strict=True):
            if order.reason:
                name, other = ("A", b) if a == k else ("B", a)
                return f"as {name} beside completion {indices[other]}: {order.reason}"
    return None
