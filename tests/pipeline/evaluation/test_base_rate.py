"""What the initial policy's answers score, and what is said if that leaves nothing to prefer."""

import re

import pytest

from pipeline.evaluation.base_rate import BaseRate, first_preferences


def rate(scores: list[float | None], *, verdicts: bool = True) -> BaseRate:
    return BaseRate.of({f"p{row}": score for row, score in enumerate(scores)}, "j", verdicts=verdicts)


def test_answers_that_score_and_answers_that_are_right_are_counted() -> None:
    """By hand: of four with a score three are above 0, and one is right; one has none."""
    found = rate([0.0, 0.5, None, 1.0, 0.25])
    assert found.sentence == "base rate: of 4 held-out answers 3 (75%) score above 0 by j, 1 (25%) are right"
    assert found.alarm is None


@pytest.mark.parametrize(
    ("scores", "verdicts", "said"),
    [
        ([2.0, 4.0], True, "from 2 to 4, with a standard deviation of 1"),  # no verdicts, whatever the judge says
        ([0.0, 1.0], False, "from 0 to 1, with a standard deviation of 0.5"),
    ],
)
def test_a_judge_without_verdicts_has_a_spread(scores: list[float | None], verdicts: bool, said: str) -> None:
    assert rate(scores, verdicts=verdicts).sentence.endswith(said)


@pytest.mark.parametrize(
    ("scores", "verdicts", "begins", "remedy"),
    [
        # 0.05 ** (1 / 20) is 0.861: a rate of 14% gives twenty answers without one in a case of twenty.
        ([0.0] * 20, True, "base rate 0: none of 20 .* fewer than 14% would", "example of a good answer .* half right"),
        ([1.0] * 3, True, "base rate 1: all 3", "harder prompts"),
        ([0.5] * 3, True, "base rate: j gives all 3 held-out answers the same score, 0.5", "finer differences"),
        ([0.0] * 3, False, "base rate: j gives all 3 held-out answers the same score, 0", "finer differences"),
    ],
)
def test_what_leaves_nothing_to_prefer_has_a_remedy(
    scores: list[float | None], verdicts: bool, begins: str, remedy: str
) -> None:
    alarm = rate(scores, verdicts=verdicts).alarm
    assert alarm is not None
    assert re.match(f"{begins}.*: .*{remedy}", alarm), alarm


def test_the_first_preferences_are_counted_by_prompt() -> None:
    assert first_preferences(9, 12) == "9 of 12 prompts give a preference (75%)"
    assert "0 of 12 prompts give a preference (0%), so that there is nothing to learn" in first_preferences(0, 12)
