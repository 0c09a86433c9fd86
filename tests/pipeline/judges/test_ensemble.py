"""Several judges as one, by hand-derived numbers; and the mathematics of comparisons."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.judges import (
    Judge,
    JudgeConfig,
    JudgedCandidate,
    JudgeItem,
    Judgment,
    Resources,
    make_judge,
)
from pipeline.judges import judge as registered
from pipeline.judges.ensemble import EnsembleConfig, relative_ranks
from pipeline.judges.support.comparisons import PRIOR_STD, schedule, shuffles, strengths

REGEX = {"kind": "regex", "pattern": "good"}
LENGTH = {"kind": "length", "target": 4, "unit": "characters"}


def item(*answers: str, prompt: str = "p") -> JudgeItem:
    candidates = [JudgedCandidate(index=k, text=text, finish_reason="stop") for k, text in enumerate(answers)]
    return JudgeItem(prompt_id=prompt, prompt_text=prompt, candidates=candidates)


class SaidConfig(JudgeConfig):
    """A member that says what it is told to, with standard deviations or a status."""

    kind: Literal["said"]
    scores: tuple[float | str | tuple[float, float], ...]


@registered(SaidConfig)
class SaidJudge:
    name, version = "said", "1"

    def __init__(self, config: SaidConfig, _resources: Resources) -> None:
        self._scores = config.scores

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        keys = [(item, candidate) for item in items for candidate in item.candidates]
        judgments = []
        for (item_, candidate), said in zip(keys, self._scores, strict=True):
            score, std = said if isinstance(said, tuple) else (said, None)
            status: Any = score if isinstance(score, str) else "ok"
            judgments.append(Judgment(
                prompt_id=item_.prompt_id, candidate=candidate.index, score=None if isinstance(score, str) else score,
                score_std=std, components={"part": 1.0}, judge="said", judge_version="1", status=status, latency=0.5,
            ))  # fmt: skip
        return judgments


def said(*scores: float | str | tuple[float, float]) -> dict[str, Any]:
    return {"kind": "said", "scores": scores}


def ensemble(
    *members: dict[str, Any], weights: Sequence[float] = (), scales: Sequence[dict[str, float]] = (), **more: Any
) -> Judge:
    config = EnsembleConfig.model_validate({
        "kind": "ensemble",
        "members": [
            {
                "judge": {**member, "name": f"m{n}"},
                "weight": weights[n] if weights else 1.0,
                **(scales[n] if scales else {}),
            }
            for n, member in enumerate(members)
        ],
        **more,
    })  # fmt: skip
    return make_judge(config)


def test_real_members_keep_their_raw_scores() -> None:
    members = [{"judge": REGEX, "weight": 3}, {"judge": LENGTH, "offset": -1, "scale": 0.5}]
    judge = make_judge(EnsembleConfig.model_validate({"kind": "ensemble", "members": members}))
    both, one = judge.judge([item("good", "goods"), item(prompt="q")])
    # "good": 1 and (0 + 1) / 0.5 = 2, weights 3/4 and 1/4: mean 1.25, variance 3/4 * 1/16 + 1/4 * 9/16 = 3/16.
    assert both.score == pytest.approx(1.25)
    assert both.score_std == pytest.approx(math.sqrt(3 / 16))
    own = {name: value for name, value in both.components.items() if not name.startswith(("beats.", "spread."))}
    assert own == {"regex": 1.0, "length": 0.0, "length.length": 4.0}
    assert one.components["length"] == -0.25  # as the member said it, before its scale


@pytest.mark.parametrize(
    ("combine", "score"), [("mean", 2.0), ("minimum", 1.0), ("lower_bound", 2 - 2 * math.sqrt(1.0 + 2.0))]
)
def test_ways_to_combine(combine: str, score: float) -> None:
    # Means 1 and 3: between them a variance of 1. Within them the mean of 0 and 2**2, that is 2.
    judge = ensemble(said(1.0), said((3.0, 2.0)), combine=combine, confidence=2.0)
    (judgment,) = judge.judge([item("x")])
    assert judgment.score == pytest.approx(score)
    assert judgment.score_std == pytest.approx(math.sqrt(3))
    assert judgment.components == {"m0": 1.0, "m0.part": 1.0, "m1": 3.0, "m1.std": 2.0, "m1.part": 1.0}
    assert judgment.latency == 1.0


def order(first: Judgment, second: Judgment) -> float:
    """The probability that the first beats the second, as it is stated."""
    return first.components[f"beats.{second.candidate}"]


@pytest.mark.parametrize("combine", ["mean", "minimum", "lower_bound"])
def test_an_order_follows_from_the_members_differences(combine: str) -> None:
    """Members say 0 and 2 of a, and 0.5 both of b: differences of -0.5 and 1.5, of mean 0.5 and deviation 1.

    By the lower bound b is ahead of a; that a is better is Phi(0.5) = 0.691 all the same.
    """
    a, b = ensemble(said(0.0, 0.5), said(2.0, 0.5), combine=combine).judge([item("a", "b")])
    assert order(b, a) == pytest.approx(NormalDist().cdf(-0.5))
    assert order(a, b) == pytest.approx(0.6915, abs=1e-4)
    assert a.components["spread.1"] == pytest.approx(1.0)
    if combine == "lower_bound":
        assert (a.score, b.score) == (0.0, 0.5)


def test_levels_of_members_are_no_disagreement() -> None:
    a, b = ensemble(said(0.3, 0.2), said(1.0, 0.9), said(0.6, 0.5)).judge([item("a", "b")])
    assert (order(a, b), order(b, a)) == (1.0, 0.0)


def test_what_members_do_not_know_of_a_difference() -> None:
    """Differences 1 and 3 on one scale, variances 4 + 0 and 1: mean 2, variance (4 + 1) / 2 + 1."""
    weighed = ensemble(said((1.0, 2.0), 0.0), said((30.0, 6.0), (0.0, 8.0)), scales=[{}, {"scale": 10}])
    a, b = weighed.judge([item("a", "b")])
    assert order(a, b) == pytest.approx(NormalDist().cdf(2 / math.sqrt((4 + 1) / 2 + 1)))


def test_members_that_state_the_spread_of_differences_are_taken_at_their_word() -> None:
    """A comparing judge's two strengths share what they do not know: 1 apart with a spread of 0.5, not of 2.8."""
    answers = item("a", "b")
    comparing = SpreadJudge()
    judge = ensemble(said(1.0, 0.0), said(1.0, 0.0))
    judge._members[1] = comparing  # type: ignore[attr-defined]
    a, b = judge.judge([answers])
    assert order(a, b) == pytest.approx(NormalDist().cdf(1 / math.sqrt(0.25 / 2)))


class SpreadJudge(SaidJudge):
    """States, beside wide deviations of single scores, the narrow one of their difference."""

    def __init__(self) -> None:
        super().__init__(SaidConfig(kind="said", scores=((1.0, 2.0), (0.0, 2.0))), Resources())

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        a, b = super().judge(items)
        return [replace(a, components={"spread.1": 0.5}), replace(b, components={"spread.0": 0.5})]


def test_members_that_agree_are_sure() -> None:
    (judgment,) = ensemble(said(5.0), said(50.0), scales=[{}, {"scale": 10}]).judge([item("x")])
    assert (judgment.score, judgment.score_std) == (5.0, 0.0)


def test_a_member_without_a_score_leaves_none() -> None:
    first, second = ensemble(said(1.0, 2.0), said("too_long", 2.0)).judge([item("x", "y")])
    assert (first.status, first.score, first.score_std) == ("too_long", None, None)
    assert first.rationale == "no score by m1: too_long"
    assert first.components["m0"] == 1.0
    assert (second.status, second.score) == ("ok", 2.0)


def test_ranks_are_those_within_a_prompt() -> None:
    judge = ensemble(said(1.0, 9.0, 5.0, 7.0, 0.0), said(10.0, 0.0, 0.0, 3.0, 4.0), normalise="ranks", weights=[3, 1])
    judgments = judge.judge([item("a", "b", "c"), item("d", "e", prompt="q")])
    # ranks 0, 1, 1/2 and 1, 1/4, 1/4; then 1, 0 and 0, 1
    assert [judgment.score for judgment in judgments] == pytest.approx([0.25, 0.8125, 0.4375, 0.75, 0.25])
    alone = ensemble(said(1.0), said(2.0), normalise="ranks").judge([item("a")])
    assert (alone[0].status, alone[0].score) == ("alone", None)


def test_a_version_is_that_of_the_scores() -> None:
    llm = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "mode": "rubric"}

    def version(change: dict[str, Any], **more: Any) -> str:
        members = [{"judge": {**llm, **change}, **more}, {"judge": LENGTH}]
        return make_judge(EnsembleConfig.model_validate({"kind": "ensemble", "members": members})).version

    assert version({}) == version({"concurrency": 3, "budget_tokens": 9})
    assert len({version({}), version({"model": "n"}), version({}, weight=2.0), version({}, offset=1.0)}) == 4


def test_relative_ranks() -> None:
    assert relative_ranks([3.0, 1.0, None, 2.0]) == [1.0, 0.0, None, 0.5]
    assert relative_ranks([1.0, 1.0, 1.0]) == [0.5, 0.5, 0.5]
    assert relative_ranks([1.0, None]) == [None, None]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"members": [{"judge": REGEX}]}, "has 1 members: give two or more"),
        ({"members": [{"judge": REGEX}, {"judge": REGEX}]}, "two members of the ensemble are named 'regex'"),
        ({"normalise": "ranks", "members": [{"judge": REGEX}, {"judge": LENGTH, "scale": 2}]}, "uses no offset and no"),
        ({"members": [{"judge": REGEX}, {"judge": {"kind": "ensemble", "members": []}}]}, "'ensemble' found using"),
    ],
)
def test_ensembles_that_make_no_sense(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        EnsembleConfig.model_validate({"kind": "ensemble", "members": [{"judge": REGEX}, {"judge": LENGTH}], **change})


def test_one_comparison_by_its_equation() -> None:
    means, stds = strengths(2, {(0, 1): 1.0})
    s = float(means[0])
    # At the mode the gradient is 0: 1 - sigmoid(2s) = s / prior variance.
    assert 1 - 1 / (1 + math.exp(-2 * s)) == pytest.approx(s / PRIOR_STD**2, abs=1e-9)
    assert means[1] == pytest.approx(-s)
    weight = 1 / (1 + math.exp(-2 * s)) / (1 + math.exp(2 * s))
    precision = np.array([[weight, -weight], [-weight, weight]]) + np.eye(2) / PRIOR_STD**2
    assert stds == pytest.approx(np.sqrt(np.diag(np.linalg.inv(precision))))


def test_no_comparison_leaves_the_prior() -> None:
    means, stds = strengths(3, {})
    assert means.tolist() == [0.0] * 3
    assert stds == pytest.approx([PRIOR_STD] * 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(2, 7), st.randoms(use_true_random=False))
def test_where_all_met_the_order_is_that_of_wins(count: int, rng: random.Random) -> None:
    wins = {pair: rng.choice([0.0, 0.5, 1.0]) for pair in combinations(range(count), 2)}
    wins |= {(b, a): 1 - won for (a, b), won in list(wins.items())}
    means, stds = strengths(count, wins)
    totals = [sum(won for (a, _), won in wins.items() if a == k) for k in range(count)]
    # 1e-8: Newton's last step is below 1e-12 nats, and the sums of so few terms are as exact.
    assert sum(means) == pytest.approx(0, abs=1e-8)
    for a, b in combinations(range(count), 2):
        difference = float(means[a] - means[b])
        assert (abs(difference) < 1e-8) if totals[a] == totals[b] else (difference > 0) == (totals[a] > totals[b])
    assert all(0 < std < PRIOR_STD for std in stds)


@given(st.integers(2, 30), st.sampled_from([2, 4, 6]), st.integers(0, 5))
def test_a_bounded_schedule_is_fair_and_connected(count: int, opponents: int, seed: int) -> None:
    pairs = schedule(count, opponents, random.Random(seed))
    met = [sum(k in pair for pair in pairs) for k in range(count)]
    assert met == [min(opponents, count - 1)] * count
    assert len(set(pairs)) == len(pairs)
    reached, frontier = {0}, [0]
    while frontier:
        here = frontier.pop()
        near = {other for pair in pairs if here in pair for other in pair} - reached
        reached |= near
        frontier += near
    assert len(reached) == count
    assert schedule(count, None, random.Random(0)) == list(combinations(range(count), 2))


def test_every_second_order_is_reversed() -> None:
    orders = shuffles(5, 5, random.Random(0))
    assert orders[1] == orders[0][::-1]
    assert orders[3] == orders[2][::-1]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert orders[0] != orders[2]
