"""Moments in main memory make no difference to a step, and few of them are on the device at a time.

On a CPU both memories are one: what is seen here is the order of the parts, and what is brought and put back. A GPU has
not been tried.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from numerics.test_update import SEED, SETTINGS, preferences, weights
from numerics.tiny_models import build, changed
from torch import nn

from pipeline.dpo.host_moments import HostAdamW
from pipeline.dpo.optimizer import build_optimizer
from pipeline.dpo.types import RoundFacts
from pipeline.dpo.update import Update, run_update

FAST = changed(SETTINGS, learning_rate=1e-2, weight_decay=0.1, schedule="linear")


@pytest.mark.parametrize("part_bytes", [1, 40_000, 2**30])
def test_an_update_ends_with_the_same_bits(monkeypatch: pytest.MonkeyPatch, part_bytes: int) -> None:
    """With a part for each tensor, with some of several tensors, and with all in one."""
    plain, host = build(), build()
    run_update(plain, preferences(plain), FAST, seed=SEED)
    monkeypatch.setattr(HostAdamW, "part_bytes", part_bytes)
    update = Update(host, preferences(host), FAST, seed=SEED, facts=RoundFacts(host_moments=True))
    assert isinstance(update._optimizer, HostAdamW)
    assert len(update.run().steps) > 1
    expected = weights(plain)
    assert all(torch.equal(weight, expected[name]) for name, weight in weights(host).items())


def test_the_device_has_those_of_one_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by what is brought and what is put back, in bytes of both moments."""
    model, there, most = build(), set[int](), 0
    put = HostAdamW._put

    def count(self: HostAdamW, part: Sequence[nn.Parameter], device: torch.device) -> None:
        nonlocal most, there
        assert not there or {id(weight) for weight in part} == there, "the part before was put back"
        there = set() if there else {id(weight) for weight in part}
        if there:
            most = max(most, sum(2 * weight.nbytes for weight in part))
        put(self, part, device)

    monkeypatch.setattr(HostAdamW, "_put", count)
    monkeypatch.setattr(HostAdamW, "part_bytes", 40_000)
    optimizer = build_optimizer(model, FAST, host_moments=True)
    largest = max(2 * weight.nbytes for weight in model.parameters())
    for _ in range(2):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert not there
    assert 0 < most <= max(40_000, largest) < sum(2 * weight.nbytes for weight in model.parameters())
    assert {int(state["step"]) for state in optimizer.state.values()} == {2}
    assert len(optimizer.param_groups) == 2, "they are all there again, with the rate that a schedule sets"


def test_a_step_that_fails_leaves_the_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    optimizer: Any = build_optimizer(model, FAST, host_moments=True)
    groups = optimizer.param_groups
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert optimizer.param_groups is groups
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)
