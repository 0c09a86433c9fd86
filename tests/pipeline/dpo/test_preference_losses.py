"""The loss of single preferences beside the steps, against numbers that were worked out by hand."""

import math
from typing import Any

import pytest

from pipeline.config import UpdateConfig
from pipeline.dpo.checks import check_inputs
from pipeline.dpo.preference_losses import preference_losses
from pipeline.dpo.types import PreferenceGroup

EXACT = 1e-12
"""They are computed in float64, from a handful of operations."""


def group(*reference: float, lengths: tuple[int, ...] = (), **more: Any) -> PreferenceGroup:
    answers = [[5] * length for length in lengths or (1,) * len(reference)]
    return PreferenceGroup(
        prompt_id="p", prompt_token_ids=[1], candidate_token_ids=answers, reference_logps=reference, **more
    )


def losses(groups: list[PreferenceGroup], logps: list[list[float]], **update: Any) -> list[float]:
    config = UpdateConfig.model_validate({"beta": 0.5, **update})
    return preference_losses(groups, logps, check_inputs(groups, config), config)


def test_a_pair() -> None:
    """The chosen one rose from -8 to -6, the rejected one fell from -20 to -22: the margin is 0.5 (2 + 2) = 2."""
    pair = group(-8.0, -20.0)
    assert losses([pair], [[-6.0, -22.0]]) == pytest.approx([math.log(1 + math.exp(-2))], abs=EXACT)
    assert losses([pair], [[-8.0, -20.0]]) == pytest.approx([math.log(2)], abs=EXACT)
    assert losses([pair], [[-6.0, -22.0]], objective="hinge") == pytest.approx([0.0], abs=EXACT)
    # (margin of log-ratios per token - 1 / (2 beta))^2: of answers of one token 4 - 1.
    assert losses([pair], [[-6.0, -22.0]], objective="ipo") == pytest.approx([9.0], abs=EXACT)


def test_a_soft_label_weighs_both_orders() -> None:
    """With probability 3/4: 3/4 of -log sigmoid(2), and 1/4 of -log sigmoid(-2), which is 2 more."""
    (found,) = losses([group(-8.0, -20.0, soft_label=0.75)], [[-6.0, -22.0]])
    assert found == pytest.approx(math.log(1 + math.exp(-2)) + 2 / 4, abs=EXACT)


def test_terms_are_weighed_and_what_is_added_to_them_is_left_out() -> None:
    pair = group(-8.0, -20.0)
    mixed = losses([pair], [[-6.0, -22.0]], objective={"sigmoid": 2.0, "hinge": 3.0}, nll_weight=1.0, wpo=True)
    assert mixed == pytest.approx([2 * math.log(1 + math.exp(-2))], abs=EXACT)


def test_rankings_of_several_lengths_stand_beside_one_another() -> None:
    """Rewards 1, 0.5 and 0: log(e^1 + e^.5 + e^0) - 1 for the first, log(e^.5 + e^0) - .5 for the second."""
    three, two = group(-4.0, -4.0, -4.0), group(-1.0, -1.0)
    first = math.log(math.e + math.exp(0.5) + 1) - 1 + math.log(math.exp(0.5) + 1) - 0.5
    found = losses([three, two], [[-2.0, -3.0, -4.0], [-1.0, -1.0]], objective="plackett_luce")
    assert found == pytest.approx([first, math.log(2)], abs=EXACT)
