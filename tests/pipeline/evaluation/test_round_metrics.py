"""The metrics of a round: each by hand, and the same whatever the shards are."""

import math
import random
from typing import Any

import pyarrow as pa
import pytest

from pipeline.config import PreferencesConfig
from pipeline.evaluation.round_metrics import RoundMetrics
from pipeline.preferences import build_preferences
from support.judged import candidates, judgments


def described(sampled: pa.Table, said: pa.Table, min_margin: float = 0.0) -> dict[str, Any]:
    found = RoundMetrics(min_margin)
    found.add_judged(sampled, said)
    return found.metrics()


def test_what_a_judge_leaves_open() -> None:
    sampled = candidates({"p": [2, 3, 4], "q": [5, 5, 6, 7]})
    said = judgments({"p": [0.0, 0.5, 0.5], "q": [None, 0.1, 0.2, math.nan]})
    found = described(sampled, said, 0.15)
    # Pairs of p: 0-0.5, 0-0.5 and a tie; of q one, within the margin.
    assert found["tied"] == 0.5
    assert found["unparsable"] == 1 / 7
    assert found["unjudged"] == 1
    assert found["flipped"] is None
    # Centred ranks of p: (-1/2, 1/4, 1/4) and (-1/2, 0, 1/2); of q (-1/2, 1/2) twice.
    expected = (1 / 4 + 1 / 8 + 1 / 2) / math.sqrt((3 / 8 + 1 / 2) * (1 / 2 + 1 / 2))
    assert found["length_correlation"] == pytest.approx(expected)


def test_prompts_in_which_all_tie_say_nothing_of_length() -> None:
    """In p the longer of two is better; in q all scores tie, in r all lengths: the correlation is that of p, 1."""
    sampled = candidates({"p": [3, 8], "q": [2, 5, 9], "r": [4, 4]})
    found = described(sampled, judgments({"p": [0.0, 1.0], "q": [0.5, 0.5, 0.5], "r": [0.0, 1.0]}))
    assert found["length_correlation"] == pytest.approx(1.0)


def test_a_margin_that_is_just_met_is_a_tie() -> None:
    # All exact in binary: a pair of p differs by the margin, its others by less, as that of s; of q and r by more.
    said = judgments({"p": [0.0, 0.25, 0.5], "q": [0.0, 0.75], "r": [0.5, 1.25], "s": [1.0, 1.0]})
    found = described(candidates({"p": [1, 1, 1], "q": [1, 1], "r": [1, 1], "s": [1, 1]}), said, 0.5)
    assert found["tied"] == 4 / 6


def test_of_a_ranking_the_best_is_compared_with_the_worst() -> None:
    found = RoundMetrics()
    config = PreferencesConfig(rule="full_ranking")
    found.add_preferences(
        build_preferences(candidates({"p": [9, 2, 5]}), judgments({"p": [1.0, 0.5, 0.25]}), config, seed=0)
    )
    assert (found.metrics()["margin"], found.metrics()["length_margin"]) == (0.75, 4)


def test_a_judge_of_length_is_seen() -> None:
    rng = random.Random(0)
    lengths = {f"p{n}": [rng.randint(1, 20) for _ in range(8)] for n in range(40)}
    longer: dict[str, list[float | None]] = {
        p: [float(n) + 100 * int(p[1:]) for n in found] for p, found in lengths.items()
    }
    shorter: dict[str, list[float | None]] = {p: [-float(n) for n in found] for p, found in lengths.items()}
    sampled = candidates(lengths)
    assert described(sampled, judgments(longer))["length_correlation"] == pytest.approx(1)
    assert described(sampled, judgments(shorter))["length_correlation"] == pytest.approx(-1)
    found = RoundMetrics()
    found.add_preferences(build_preferences(sampled, judgments(longer), PreferencesConfig(), seed=0))
    assert found.metrics()["length_margin"] == found.metrics()["margin"] > 0


def test_nothing_is_told_from_nothing() -> None:
    equal = described(candidates({"p": [3, 3]}), judgments({"p": [1.0, 0.0]}))
    assert equal["tied"] == equal["unparsable"] == 0
    assert equal["flipped"] is equal["length_correlation"] is equal["margin"] is equal["length_margin"] is None
    assert RoundMetrics().metrics() == {
        "sampled_reward": None, "sampled_length": None, "unjudged": 0, "preferences": 0, "margin": None,
        "length_margin": None, "dropped": {}, "tied": None, "unparsable": None, "flipped": None,
        "length_correlation": None,
    }  # fmt: skip


def test_flips_of_a_judge_and_of_a_member() -> None:
    components = [("comparisons", 3.0), ("flips", 1.0), ("llm.comparisons", 5.0), ("llm.flips", 1.0), ("llm", 0.3)]
    said = judgments({"p": [0.0, 1.0]}, components=components)
    assert described(candidates({"p": [1, 1]}), said)["flipped"] == 2 / 8


def test_shards_add_up() -> None:
    rng = random.Random(0)
    lengths = {f"p{n}": [rng.randint(1, 20) for _ in range(4)] for n in range(30)}
    scores = {p: [rng.choice([None, 0.0, 0.1, rng.random()]) for _ in found] for p, found in lengths.items()}
    together, apart = RoundMetrics(0.1), RoundMetrics(0.1)
    shards = [list(lengths)[start : start + 7] for start in range(0, 30, 7)]
    for found, parts in ((together, [list(lengths)]), (apart, shards)):
        for part in parts:
            sampled = candidates({p: lengths[p] for p in part})
            said = judgments({p: scores[p] for p in part}, components=[("comparisons", 2.0), ("flips", 1.0)])
            found.add_judged(sampled, said)
            found.add_preferences(build_preferences(sampled, said, PreferencesConfig(min_margin=0.1), seed=0))
    expected = together.metrics()
    assert len(shards) == 5
    assert 0 < expected["preferences"] < 30 > sum(expected["dropped"].values()) > 0
    # Sums of the same numbers in another order.
    assert apart.metrics() == {
        name: value if isinstance(value, dict) else pytest.approx(value, rel=1e-12) for name, value in expected.items()
    }


Scores = dict[str, list[float | None]]


def outcome(scores: Scores, *, verdicts: bool = True, **config: Any) -> dict[str, Any]:
    sampled, said, found = (
        candidates({p: [3] * len(row) for p, row in scores.items()}),
        judgments(scores),
        RoundMetrics(),
    )
    found.add_judged(sampled, said)
    found.add_preferences(build_preferences(sampled, said, PreferencesConfig(**config), seed=0))
    return found.outcome(verdicts=verdicts)


@pytest.mark.parametrize(
    ("scores", "verdicts", "reason"),
    [
        ({"p": [1.0, 1.0], "q": [1.0, None]}, True, "solved: .* is right (of 2 prompts 1 agree, 1 unjudged)"),
        ({"p": [0.0, 0.0], "q": [0.0, 0.0]}, True, "all failed: .* is wrong (of 2 prompts 2 agree)"),
        ({"p": [1.0, 1.0], "q": [0.0, 0.0]}, True, "all equal: .* (of 2 prompts 2 agree)"),
        ({"p": [1.0, 1.0], "q": [1.0, 1.0]}, False, "all equal: .* (of 2 prompts 2 agree)"),
        ({"p": [0.25, 0.25], "q": [0.0, 0.0]}, True, "all equal: .* (of 2 prompts 2 agree)"),  # partial credit
        ({"p": [0.5, 0.6], "q": [0.1, 0.2]}, False, "all equal: .* (of 2 prompts 2 tie)"),
        ({"p": [0.5, None], "q": [0.1, None]}, False, "all left out: .* (of 2 prompts 2 unjudged)"),
        ({"p": [None, None], "q": [None, None]}, True, "not judged: no completion has a score (4 unparsable)"),
    ],
)
def test_why_a_round_has_nothing_to_learn_from(scores: Scores, verdicts: bool, reason: str) -> None:
    """Solved or failed is said of judges whose scores are verdicts alone: a sentiment of 0 is no failure."""
    found = outcome(scores, verdicts=verdicts, min_margin=0.2)
    assert found["preference_share"] == 0
    begin, _, end = reason.partition(".* ")
    assert found["no_update"].startswith(begin)
    assert found["no_update"].endswith(end)


def test_the_share_of_prompts_counts_prompts_and_not_pairs() -> None:
    """Of three prompts two give preferences; by all pairs they are four."""
    scores: Scores = {"p": [0.0, 1.0, 2.0], "q": [0.0, 1.0], "r": [1.0, 1.0]}
    assert outcome(scores, rule="all_pairs") == {"preference_share": pytest.approx(2 / 3), "no_update": None}


def test_a_round_of_which_nothing_was_sampled() -> None:
    assert "none was sampled" in RoundMetrics().outcome(verdicts=True)["no_update"]


def test_candidates_that_were_cut_are_counted_over_all_shards() -> None:
    """One of two, then two of two: three of four."""
    found = RoundMetrics()
    assert found.truncated is None
    for reasons in (["stop", "length"], ["length", "length"]):
        sampled = candidates({"p": [2, 3]})
        place = sampled.column_names.index("finish_reason")
        cut = sampled.set_column(
            place, sampled.schema.field(place), pa.array(reasons, sampled.schema.field(place).type)
        )
        found.add_judged(cut, judgments({"p": [0.0, 1.0]}))
    assert found.truncated == 0.75
