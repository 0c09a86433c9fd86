"""Watching the judge: each figure by hand, and alarms that come when they should and not by chance."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import EvaluationConfig, PreferencesConfig
from pipeline.evaluation import Estimate
from pipeline.figures import alarms, describe_evaluation, describe_preferences, without_tokens
from pipeline.preferences import build_preferences
from pipeline.records import CANDIDATES, JUDGMENTS, to_table
from pipeline.watching import agreement, change, describe_judgments, drifted, gap, over_optimised


def candidates(lengths: dict[str, list[int]]) -> pa.Table:
    return to_table([
        {"prompt_id": prompt_id, "candidate": k, "token_ids": list(range(3 + k, 3 + k + length)), "text": f"w{k}",
         "logprobs": [-1.0] * length, "finish_reason": "stop", "seed": 0, "policy": "x"}
        for prompt_id, found in lengths.items() for k, length in enumerate(found)
    ], CANDIDATES)  # fmt: skip


def judgments(scores: Mapping[str, Sequence[float | None]], judge: str = "j", **changes: Any) -> pa.Table:
    return to_table([
        {"prompt_id": prompt_id, "candidate": k, "score": score, "score_std": None, "components": [],
         "rationale": None, "judge": judge, "judge_version": "1", "status": "unparsable" if score is None else "ok",
         "latency": 0.0, "raw": None, **changes}
        for prompt_id, found in scores.items() for k, score in enumerate(found)
    ], JUDGMENTS)  # fmt: skip


def test_what_a_judge_leaves_open() -> None:
    sampled = candidates({"p": [2, 3, 4], "q": [5, 5, 6, 7]})
    said = judgments({"p": [0.0, 0.5, 0.5], "q": [None, 0.1, 0.2, math.nan]})
    found = describe_judgments(without_tokens(sampled), said, min_margin=0.15)
    # Pairs of p: 0-0.5, 0-0.5 and a tie; of q one, within the margin.
    assert found["tied"] == 0.5
    assert found["unparsable"] == 1 / 7
    assert found["flipped"] is None
    # Centred ranks of p: (-1/2, 1/4, 1/4) and (-1/2, 0, 1/2); of q (-1/2, 1/2) twice.
    expected = (1 / 4 + 1 / 8 + 1 / 2) / math.sqrt((3 / 8 + 1 / 2) * (1 / 2 + 1 / 2))
    assert found["length_correlation"] == pytest.approx(expected)


def test_a_judge_of_length_is_seen() -> None:
    rng = random.Random(0)
    lengths = {f"p{n}": [rng.randint(1, 20) for _ in range(8)] for n in range(40)}
    longer: dict[str, list[float | None]] = {
        p: [float(n) + 100 * int(p[1:]) for n in found] for p, found in lengths.items()
    }
    shorter: dict[str, list[float | None]] = {p: [-float(n) for n in found] for p, found in lengths.items()}
    sampled = candidates(lengths)
    assert describe_judgments(without_tokens(sampled), judgments(longer), min_margin=0)[
        "length_correlation"
    ] == pytest.approx(1)
    assert describe_judgments(without_tokens(sampled), judgments(shorter), min_margin=0)[
        "length_correlation"
    ] == pytest.approx(-1)
    preferences = build_preferences(sampled, judgments(longer), PreferencesConfig(), seed=0)
    described = describe_preferences(without_tokens(sampled), judgments(longer), preferences)
    assert described["length_margin"] == described["margin"] > 0


def test_nothing_is_told_from_nothing() -> None:
    equal = describe_judgments(without_tokens(candidates({"p": [3, 3]})), judgments({"p": [1.0, 0.0]}), min_margin=0)
    assert equal == {"tied": 0.0, "unparsable": 0.0, "flipped": None, "length_correlation": None}
    none = describe_judgments(without_tokens(candidates({})), judgments({}), min_margin=0)
    assert none == {"tied": None, "unparsable": None, "flipped": None, "length_correlation": None}


def test_flips_of_a_judge_and_of_a_member() -> None:
    components = [("comparisons", 3.0), ("flips", 1.0), ("llm.comparisons", 5.0), ("llm.flips", 1.0), ("llm", 0.3)]
    said = judgments({"p": [0.0, 1.0]}, components=components)
    assert describe_judgments(without_tokens(candidates({"p": [1, 1]})), said, min_margin=0)["flipped"] == 2 / 8


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
    found = gap({"p": 1.0, "q": 3.0}, first, {"p": -5.0, "q": 15.0}, held)
    assert found == pytest.approx(1 / math.sqrt(2) + 5 / (10 * math.sqrt(2)))
    assert gap(first, first, first, {"p": 1.0, "q": 1.0}) is None


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
        assert "since round 0, while heard, which training hears, rose by " in sentences[0]


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

    figures = describe_evaluation(
        candidates=candidates({p: [3] for p in heard}), judgments=both(1.0, -0.5), previous=both(0.5, 0.1),
        initial=both(0.0, 0.0), logps=None, judges=["heard", "other"], probe=judgments(again, "other"),
    )  # fmt: skip
    assert 0.4 < figures["agreement"]["other"] < 0.6  # independent
    assert 1.3 < figures["gaps"]["other"] < 1.7
    assert figures["judge_drift"]["other"] == pytest.approx(5, abs=0.5)
    trained = {"chosen_fell": 0.0, "chosen_change": 1.0, "unparsable": 0.2}
    said = alarms({**figures, **trained}, {"length": 3.0, "entropy_per_token": 1.0}, EvaluationConfig())
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
