"""Moments in main memory make no difference to a step, and few of them are on the device at a time.

On a CPU both memories are one, so numbers are seen there, and places on fake tensors. A GPU has not been tried. Ranks
are in `test_distributed`.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from numerics.test_update import SEED, SETTINGS, preferences, weights
from numerics.tiny_models import build, changed
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from pipeline.dpo.host_moments import HostAdamW
from pipeline.dpo.optimizer import build_optimizer
from pipeline.dpo.types import RoundFacts
from pipeline.dpo.update import Update, run_update
from pipeline.model.distributed import full_tensor

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


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """Two cards that are not there, in a group that says nothing to anyone."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        yield dist.init_device_mesh("cuda", (2,))
    finally:
        dist.destroy_process_group()


@pytest.fixture(params=["whole", "spread"])
def cards(request: pytest.FixtureRequest, mesh: DeviceMesh) -> Iterator[list[nn.Parameter]]:
    """Weights on such a card, 3 rows of 4 each, or 5 rows of which this rank of two has 3.

    torch's fake tensors have shapes and devices, and no numbers; all that is done with them is done by torch itself.
    """
    whole: dict[str, Any] = {"shape": torch.Size((5, 4)), "stride": (4, 1)}
    with FakeTensorMode():
        pieces = [torch.empty(3, 4, device="cuda:0") for _ in range(3)]
        if request.param == "spread":
            pieces = [DTensor.from_local(piece, mesh, [Shard(0)], run_check=False, **whole) for piece in pieces]
        yield [nn.Parameter(piece, requires_grad=False) for piece in pieces]


def is_beside(state: dict[str, torch.Tensor], weight: nn.Parameter) -> bool:
    """Whether moments are on the weight's card and spread as it is; else they are this rank's, in main memory."""
    devices = {value.device.type for value in state.values()}
    kinds = {isinstance(state[name], DTensor) for name in ("exp_avg", "exp_avg_sq")}
    if devices == {"cuda"} and kinds == {isinstance(weight, DTensor)}:
        assert state["exp_avg"].shape == weight.shape
        return True
    assert (devices, kinds, state["exp_avg"].shape) == ({"cpu"}, {False}, (3, 4))
    return False


def test_a_card_has_the_moments_of_one_part_at_a_time(
    cards: list[nn.Parameter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two moments of 3 x 4 floats are 96 bytes, so that 200 hold those of two weights, of which a rank has no more."""
    seen, step = list[list[bool]](), torch.optim.AdamW.step

    def look(self: HostAdamW) -> None:
        step(self)
        seen.append([bool(self.state[weight]) and is_beside(self.state[weight], weight) for weight in cards])

    monkeypatch.setattr(torch.optim.AdamW, "step", look)
    monkeypatch.setattr(HostAdamW, "part_bytes", 200)
    optimizer = HostAdamW(cards, fused=True)
    for weight in cards:
        weight.grad = torch.zeros_like(weight)
    for _ in range(2):
        optimizer.step()
        assert not any(is_beside(optimizer.state[weight], weight) for weight in cards)
    assert seen == 2 * [[True, True, False], [False, False, True]]
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda _self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        optimizer.step()
    assert not any(is_beside(optimizer.state[weight], weight) for weight in cards), "put back though it failed"


def test_what_is_saved_and_loaded_passes_the_card(cards: list[nn.Parameter]) -> None:
    """It is gathered there, and what is loaded does not stay there until the first step."""
    optimizer, weight = HostAdamW(cards, fused=True), cards[0]
    state = {field: torch.zeros_like(weight) for field in ("exp_avg", "exp_avg_sq")}
    optimizer.keep(weight, {"step": torch.zeros((), device="cuda:0"), **state})
    assert not is_beside(optimizer.state[weight], weight)
    brought = {field: optimizer.brought(weight, field) for field in ("step", *state)}
    assert is_beside(brought, weight)
    assert full_tensor(brought["exp_avg"]).device.type == "cuda"


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
    assert len(groups) == 2, "with the rate that a schedule sets"
    with pytest.raises(ValueError, match="takes no closure"):
        optimizer.step(lambda: 0.0)
