"""Policies that judge: they must be there, and be two, before a run begins."""

from typing import Any

import pytest

from flows.run.check_judges import check_judge_policies
from pipeline.errors import ConfigError
from support.finished_run import small_recipe


def check(first: int, *, held_out: bool = False, **judge: Any) -> None:
    settings = {"kind": "implicit", **judge}
    recipe = small_recipe(**({"evaluation": {"prompts": 5, "judges": [settings]}} if held_out else {"judge": settings}))
    check_judge_policies(recipe, "run", first)


def test_a_policy_that_another_judge_has_trained() -> None:
    check(2)
    check(4, policy=3)
    check(4, policy=3, reference=1)
    check(0, held_out=True)  # its first metrics are 0, and nothing is learned from them


@pytest.mark.parametrize("first", [0, 1])
def test_a_policy_that_nothing_has_trained(first: int) -> None:
    with pytest.raises(ConfigError, match="would compare the policy of round 0 with itself"):
        check(first)


@pytest.mark.parametrize("held_out", [False, True])
def test_a_round_that_is_not_finished(held_out: bool) -> None:
    with pytest.raises(ConfigError, match="names the policy of round 3, and run 'run' goes on after round 2"):
        check(3, policy=3, held_out=held_out)
