"""The log-probability of each token beside the sums, from one pass."""

import pytest
import torch
from numerics.tiny_models import build, token_groups

from pipeline.model.logprobs import sequence_logps, token_logps

BUDGET = 40
"""Tokens of a pack, so that the groups take several packs, and stand in them in another order than they were given."""


def test_tokens_are_those_of_the_plain_model_and_the_sums_stay_the_same_to_the_bit() -> None:
    model, groups = build(), token_groups(7, seed=3)
    sums, tokens = token_logps(model, groups, BUDGET)
    assert sums == sequence_logps(model, groups, BUDGET)
    for group, found in zip(groups, tokens, strict=True):
        for answer, logps in zip(group.candidate_token_ids, found, strict=True):
            ids = torch.tensor([[*group.prompt_token_ids, *answer]])
            with torch.no_grad():
                every = torch.log_softmax(model(ids).logits[0], dim=-1)
            start = len(group.prompt_token_ids) - 1
            expected = [every[start + place, token].item() for place, token in enumerate(answer)]
            assert logps == pytest.approx(expected, abs=1e-5)  # float32, packed and alone
