"""The training judge over the rounds: each figure by hand, and alarms that come when they should and not by chance."""

import math
import random
from typing import Any

import pyarrow as pa
import pytest

from pipeline.evaluation.held_out import alarms, describe_evaluation
from pipeline.evaluation.judge_drift import agreement, change, drifted, over_optimised, overoptimization_gap
from pipeline.evaluation.metrics import Estimate
from pipeline.recipe import EvaluationConfig
from support.judged import candidates, judgments


def test_agreement_is_over_pairs_that_both_see_as_different() -> None:
    a = {"p": 1.0, "q": 2.0, "r": 3.0, "s": 3.0, "only here": 9.0, "none": None}
    b = {"p": 1.0, "q": 5.0, "r": 4.0, "s": 5.0, "only there": 0.0, "none": 1.0}
    # pq, pr, ps agree; qr does not; q and s are equal by b, r and s by a.
    assert agreement(a, b) == 3 / 4
    assert agreement({"p": 1.0}, {"p": 2.0}) is None
    assert agreement({"p": 1.0, "q": 1.0}, {"p": 1.0, "q": 2.0}) is None


def test_the_gap_is_in_each_judges_own_spread() -> None:
    first = {"p": 0.0, "q": 2.0}  # standard deviation sqrt(2)
    held = {"p": 0.0, "q": 20.0}
    found = overoptimization_gap({"p": 1.0, "q": 3.0}, first, {"p": -5.0, "q": 15.0}, held)
    assert found == pytest.approx(1 / math.sqrt(2) + 5 / (10 * math.sqrt(2)))
    assert overoptimization_gap(first, first, first, {"p": 1.0, "q": 1.0}) is None


def scores(mean: float, rng: random.Random, count: int = 200) -> dict[str, float | None]:
    return {f"p{n}": rng.gauss(mean, 1.0) for n in range(count)}


@pytest.mark.parametrize(("reward", "held", "alarm"), [(1.0, -1.0, True), (1.0, 0.0, False), (1.0, 1.0, False),
                                                       (0.0, -1.0, False), (-1.0, -1.0, False)])  # fmt: skip
def test_over_optimisation_is_a_fall_while_the_reward_rises(reward: float, held: float, alarm: bool) -> None:
    # 200 prompts of spread 1: the standard error of a paired change is 0.1, and a change of 1 is ten of them.
    rng = random.Random(0)
    before = {"heard": scores(0, rng), "other": scores(0, rng)}
    now = {"heard": scores(reward, rng), "other": scores(held, rng)}
    sentences = over_optimised("heard", ["other"], now, before, "round 0")
    assert len(sentences) == alarm
    if alarm:
        assert sentences[0].startswith("other fell by ")
        assert "since round 0, while heard, the training judge, rose by " in sentences[0]


def test_a_judge_that_stays_as_it_is_raises_no_alarm() -> None:
    rng = random.Random(0)
    found = 0
    for _ in range(300):
        before, now = ({"heard": scores(up, rng, 50), "other": scores(0, rng, 50)} for up in (0, 3))
        found += len(over_optimised("heard", ["other"], now, before, "round 0"))
    assert found <= 3  # 0.4 are expected


def test_drift_is_a_change_of_the_same_answers() -> None:
    moved = change({"p": 1.0, "q": 2.0, "r": None}, {"p": 1.5, "q": 2.7, "r": 3.0, "s": 1.0})
    assert moved is not None
    assert (moved.mean, moved.count) == (pytest.approx(0.6), 2)
    said = drifted("llm", moved)
    assert said is not None
    assert said.startswith("llm scores the same 2 answers of round 0 differently now, by +0.6 ± 0.1")
    assert drifted("llm", Estimate(mean=0.0, standard_error=0.0, count=5)) is None
    assert drifted("llm", Estimate(mean=0.1, standard_error=0.1, count=5)) is None


def test_the_rounds_figures_and_alarms() -> None:
    rng = random.Random(0)
    heard, other, again = ({f"e{n}": [rng.gauss(mean, 1.0)] for n in range(100)} for mean in (0, 0, 5))

    def both(up: float, down: float) -> pa.Table:
        moved = [
            {p: [s + shift for s in found] for p, found in table.items()}
            for table, shift in ((heard, up), (other, down))
        ]
        return pa.concat_tables([judgments(moved[0], "heard"), judgments(moved[1], "other")])

    metrics = describe_evaluation(
        candidates=candidates({p: [3] for p in heard}), judgments=both(1.0, -0.5), previous=both(0.5, 0.1),
        initial=both(0.0, 0.0), logps=None, judges=["heard", "other"], probe=judgments(again, "other"),
    )  # fmt: skip
    assert 0.4 < metrics["agreement"]["other"] < 0.6  # independent
    assert 1.3 < metrics["gaps"]["other"] < 1.7
    assert metrics["judge_drift"]["other"] == pytest.approx(5, abs=0.5)
    trained = {"chosen_fell": 0.0, "chosen_change": 1.0, "unparsable": 0.2}
    said = alarms({**metrics, **trained}, {"length": 3.0, "entropy_per_token": 1.0}, EvaluationConfig())
    assert [alarm.partition(":")[0] for alarm in said] == ["judge", "over-optimisation", "judge drift"]
    first = describe_evaluation(
        candidates=candidates({p: [3] for p in heard}), judgments=both(0.0, 0.0), previous=None, initial=None,
        logps=None, judges=["heard", "other"],
    )  # fmt: skip
    assert "gaps" not in first
    alone = describe_evaluation(
        candidates=candidates({p: [3] for p in heard}), judgments=judgments(heard, "heard"), previous=None,
        initial=None, logps=None, judges=["heard"],
    )  # fmt: skip
    assert alone["agreement"] == {}


def test_rounds_of_which_one_answer_or_none_is_scored() -> None:
    """A held-out judge that failed on all answers has no mean; one score has a mean and no error."""
    one = {"p": [0.5], "q": [None], "r": [None]}
    nothing = {name: [None] for name in one}

    def both(heard: Any) -> pa.Table:
        return pa.concat_tables([judgments(heard, "heard"), judgments(nothing, "other")])

    logps = pa.table({"policy": [-1.0], "previous": [-1.5], "initial": [-2.0], "tokens": [3]})
    asked: dict[str, Any] = {"candidates": candidates({name: [3] for name in one}), "judges": ["heard", "other"]}
    metrics = describe_evaluation(
        judgments=both(one), previous=both(one), initial=both(nothing), logps=logps, probe=judgments(nothing, "other"),
        **asked,
    )  # fmt: skip
    assert (metrics["reward"], metrics["reward_se"], metrics["judges"]) == (0.5, None, {})
    assert (metrics["win_rate_previous"], metrics.get("win_rate_initial")) == (0.5, None)
    assert (metrics["kl_initial"], metrics["kl_initial_se"]) == (1.0, None)
    assert (metrics["agreement"], metrics["gaps"], metrics["judge_drift"]) == ({}, {}, {})
    assert (metrics["over_optimised"], metrics["drifted"]) == ([], [])
    equal = {name: [1.0] for name in one}
    same = describe_evaluation(judgments=both(equal), previous=both(equal), initial=both(equal), logps=None, **asked)
    assert (same["reward_se"], same["win_rate_initial"], same["gaps"]) == (0.0, 0.5, {})
