"""What is said when a judge gave few answers a score, or none."""

import pytest

from pipeline.errors import DataError
from pipeline.evaluation.held_out import alarms, describe_evaluation, unscored_answers
from pipeline.evaluation.round_metrics import RoundMetrics
from pipeline.evaluation.unscored import Unscored
from pipeline.recipe import EvaluationConfig
from support.judged import candidates, judgments

FAILED = {"status": "failed", "rationale": "NameError: name 'x' is not defined"}


def test_the_commonest_status_with_its_reason() -> None:
    found = Unscored.of(judgments({"p": [1.0, None, None]}))
    found.add(judgments({"q": [None, None, None]}, **FAILED))
    assert found.commonest() == "3 failed, NameError: name 'x' is not defined"
    assert found.alarm("j", "sampled") == (
        "j gave 5 of 6 sampled completions no score; the commonest: 3 failed, NameError: name 'x' is not defined"
    )
    assert Unscored.of(judgments({"p": [1.0] * 9 + [None]})).alarm("j", "sampled") is None  # a tenth
    assert Unscored().alarm("j", "sampled") is None


def test_a_round_without_a_reward_says_why() -> None:
    with pytest.raises(DataError, match=r"j gave none of 2 held-out prompts a score.* 2 failed, NameError: name 'x'"):
        describe_evaluation(
            candidates=candidates({"p": [2], "q": [3]}), judgments=judgments({"p": [None], "q": [None]}, **FAILED),
            previous=None, initial=None, logps=None, judges=["j"],
        )  # fmt: skip


def test_alarms_of_a_round_that_was_hardly_scored() -> None:
    judged = judgments({"p": [1.0], "q": [None]})
    held_out = describe_evaluation(
        candidates=candidates({"p": [2], "q": [3]}), judgments=judged,
        previous=None, initial=None, logps=None, judges=["j"],
    )  # fmt: skip
    sampled = RoundMetrics()
    sampled.add_judged(candidates({"p": [2, 3]}), judgments({"p": [None, None]}, **FAILED))
    metrics = {**held_out, "chosen_fell": 0.0, "chosen_change": 0.0, "sampled_unscored": sampled.unscored("j")}
    metrics["unscored"] = unscored_answers(judged, ["j"])
    assert alarms(metrics, held_out, EvaluationConfig()) == [
        f"judge: j gave 2 of 2 sampled completions no score; the commonest: 2 failed, {FAILED['rationale']}",
        "judge: j gave 1 of 2 held-out completions no score; the commonest: 1 unparsable",
    ]
