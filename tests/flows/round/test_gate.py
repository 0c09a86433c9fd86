"""The verdict of the gate: by hand, and its rate of errors over a run in which no policy is better or worse."""

from typing import Any

import numpy as np
import pytest

from flows.registry.gate_result import GateResult, gate_words
from flows.round.gate import Best, _conditions, verdict
from pipeline.errors import DataError
from pipeline.evaluation.gate_measures import Measured, measure
from pipeline.recipe import Recipe
from support.contexts import round_context
from support.recipes import TINY

GATE: dict[str, Any] = {
    "prompts": {"source": "generated", "corpus": "film_reviews"}, "count": 40,
    "judges": [{"kind": "grammar"}, {"kind": "vader"}], "on_failure": "retry", "failures": 2,
}  # fmt: skip


def recipe(rounds: int = 10, **gate: Any) -> Recipe:
    return Recipe.model_validate({**TINY, "rounds": rounds, "gate": {**GATE, **gate}})


def judged(*scores: float) -> dict[str, float | None]:
    return {f"p{index}": score for index, score in enumerate(scores)}


def test_a_measure_by_hand() -> None:
    """All ten got worse: p is 1 / 1024. Nothing is said of the first round."""
    found = measure(judged(*[0.25] * 10), judged(*[0.75] * 10))
    assert found == Measured(0.25, 10, 0, 0.75, loss=2**-10, gain=1.0)
    assert measure(judged(1.0, 0.0), None) == Measured(0.5, 2, 0)


def test_an_answer_without_a_score_counts_as_the_lowest() -> None:
    """Else a policy whose answers cannot be scored any more would pass. Of 1, -, - against 1, 1, 0: 1, 0, 0."""
    found = measure({"a": 1.0, "b": None, "c": None}, {"a": 1.0, "b": 1.0, "c": 0.0})
    assert (found.mean, found.unscored, found.loss) == (pytest.approx(1 / 3), 2, 0.5)
    with pytest.raises(DataError, match="no score of any answer"):
        measure({"a": None}, {"a": None})
    with pytest.raises(DataError, match="the same prompts"):
        measure({"a": 1.0}, {"b": 1.0})


def passing(loss: float, *, fell: float, number: int = 3, start: int = 2, gain: float = 1.0, **gate: Any) -> GateResult:
    """The verdict on a round of which one measure fell by so much, at this p-value."""
    found = {"grammar": Measured(0.5 - fell, 40, 0, 0.5, loss, gain), "vader": Measured(0.5, 40, 0, 0.5, 1.0, 1.0)}
    return verdict(recipe(**gate), number, start, found, Best({"grammar": 1, "vader": 0}, 0), "c")


def test_a_loss_must_be_certain_and_above_the_tolerance() -> None:
    """The level is 0.05 over 10 rounds of 2 tests, 0.0025."""
    failed = passing(0.0025, fell=0.1)
    assert (failed.passed, failed.failures, failed.ends) == (False, 1, None)
    assert failed.why == (
        "gate failed: grammar fell from 0.5 in round 1 to 0.4 on the same 40 prompts (p 0.0025, level 0.0025); the "
        "last good policy is that of round 2"
    )
    assert [measure.next_best for measure in failed.measures] == [1, 0], "what failed is never the best"
    assert gate_words(failed) == "failed"
    for passed in (passing(0.0026, fell=0.1), passing(0.0001, fell=0.1, tolerance=0.1)):
        assert (passed.passed, passed.failures, passed.why) == (True, 0, None)


def test_scores_under_other_conditions_are_not_compared() -> None:
    """Judges see what comes after a thought, so that other marks around it are other conditions; a tempo is none."""
    marks = [f"sampling.thought={{begin: {begin}, end: </think>}}" for begin in ("<think>", "<thought>")]
    found = []
    for changes in ([], ["update.learning_rate=1.0e-9"], *([mark] for mark in marks)):
        asked = ["gate={patience: 2}", *changes]
        with round_context(asked, judge_versions=["1", "1"]) as context:
            assert context.recipe.gate is not None
            found.append(_conditions(context, context.recipe.gate, ()))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_failures_in_a_row_end_the_run() -> None:
    """Round 5 started from round 2: rounds 3 and 4 failed before it. By default the first failure ends it."""
    third = passing(0.0, fell=0.1, number=5, start=2, failures=4, learning_rate_factor=0.5, beta_factor=3)
    assert (third.failures, third.ends) == (3, None)
    assert (third.learning_rate, third.beta) == (pytest.approx(1e-3 / 4), pytest.approx(0.1 * 9))
    assert passing(0.0, fell=0.1, number=4, start=2).ends == "failures"
    more = [passing(0.0, fell=0.1, number=number, start=2) for number in (5, 6, 7)]
    assert [(one.failures, one.ends) for one in more] == [(3, None), (4, "failures"), (5, None)], (
        "two failures end it; who resumes it has two rounds more, and what they ask for goes on where it was"
    )
    assert passing(0.0, fell=0.1, on_failure="stop").ends == "failures"


def test_patience_counts_from_the_last_gain() -> None:
    """Rewards of round 1 are the best. In round 4 three rounds are without a gain, unless it has one itself."""
    for gain, best, ends in ((0.5, 1, "patience"), (0.001, 4, None)):
        found = {"reward": Measured(0.6, 40, 0, 0.5, 1.0, gain)}
        gate = {"prompts": None, "judges": (), "patience": 3}
        result = verdict(recipe(**gate), 4, 3, found, Best({"reward": 1}, 0), "c")
        assert (result.measure("reward").next_best, result.ends, result.passed) == (best, ends, True)
    found = {"reward": Measured(0.6, 40, 0, 0.5, 1.0, 1.0)}
    best_1 = Best({"reward": 1}, 0)
    ends = [verdict(recipe(**gate), number, number - 1, found, best_1, "c").ends for number in (5, 6, 7)]
    assert ends == [None, None, "patience"], "who resumes the run in round 4 has three rounds more"
    lost = {"reward": Measured(0.1, 40, 0, 0.5, 0.0, 1.0)}
    assert verdict(recipe(**gate), 2, 1, lost, Best({"reward": 1}, 0), "c").passed, "the reward is no guard"


def failures(rng: np.random.Generator, rounds: int, fall: float = 0.0) -> int:
    """How many rounds fail of a run whose scores are 0 to 4 by one law; a part of the last round's fall to 0."""
    asked, best, failed = recipe(rounds), Best({"grammar": 0, "vader": 0}, 0), 0
    scores = {0: {name: rng.integers(0, 5, 40) for name in best.rounds}}
    for number in range(1, rounds + 1):
        scores[number] = {name: rng.integers(0, 5, 40) for name in best.rounds}
        if number == rounds:
            scores[number] = {name: drawn * (rng.random(40) >= fall) for name, drawn in scores[number].items()}
        found = {
            name: measure(judged(*map(float, scores[number][name])), judged(*map(float, scores[before][name])))
            for name, before in best.rounds.items()
        }
        result = verdict(asked, number, number - 1, found, best, "c")
        failed += not result.passed
        best = Best({one.name: one.next_best for one in result.measures}, 0)
    return failed


def test_error_rate_of_whole_runs_without_a_change() -> None:
    """Of 400 runs of ten rounds, seed 0, at most 5% fail at all: with three standard errors of 0.011, 8.3%.

    Were each test at the level 0.05, two thirds of the runs would fail. And a real loss is seen: half of the answers
    fall to 0, so that the mean halves.
    """
    rng = np.random.default_rng(0)
    assert np.mean([failures(rng, 10) > 0 for _ in range(400)]) < 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5
    assert np.mean([failures(rng, 10, fall=0.5) > 0 for _ in range(50)]) > 0.8
