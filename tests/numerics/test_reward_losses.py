"""Losses of reward models: values by hand, gradients by finite differences, and trl's RewardTrainer."""

import math
from collections import defaultdict
from statistics import NormalDist
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from trl.trainer.reward_trainer import RewardTrainer

from pipeline.reward_model import losses as losses

PHI = NormalDist().cdf
# float64 on both sides, a handful of operations.
EXACT = {"rel": 1e-12, "abs": 1e-12}


def tensor(values: list[object]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_bradley_terry_by_hand() -> None:
    chosen, rejected = tensor([1.0, 0.0, -1.0]), tensor([0.0, 0.0, 1.0])
    # -log sigmoid(d) = log(1 + exp(-d)), for d = 1, 0, -2
    expected = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(2))]
    assert losses.bradley_terry(chosen, rejected).tolist() == pytest.approx(expected, **EXACT)
    # The expectation over both orders: 0.8 * log(1 + e^-1) + 0.2 * log(1 + e^1)
    soft = losses.bradley_terry(chosen[:1], rejected[:1], tensor([0.8])).item()
    assert soft == pytest.approx(0.8 * math.log(1 + math.exp(-1)) + 0.2 * math.log(1 + math.e), **EXACT)


def test_scaled_bradley_terry_weighs_by_the_margin() -> None:
    chosen, rejected = tensor([1.0, 0.0]), tensor([0.0, 0.0])
    found = losses.scaled_bradley_terry(chosen, rejected, tensor([3.0, 0.5])).tolist()
    assert found == pytest.approx([3 * math.log(1 + math.exp(-1)), 0.5 * math.log(2)], **EXACT)


def test_regression_by_hand() -> None:
    assert losses.regression(tensor([1.5, -1.0]), tensor([1.0, 1.0])).tolist() == [0.25, 4.0]


def test_uncertainty_ranking_by_hand() -> None:
    """Standard deviations 3 and 4 make one of 5: z = 2.5 / 5."""
    chosen = tensor([[2.5, math.log(3)]])
    rejected = tensor([[0.0, math.log(4)]])
    assert losses.standardised_difference(chosen, rejected).item() == pytest.approx(0.5, **EXACT)
    assert losses.uncertainty_ranking(chosen, rejected).item() == pytest.approx(-math.log(PHI(0.5)), **EXACT)
    assert losses.order_probability(rejected, chosen).item() == pytest.approx(PHI(-0.5), **EXACT)
    soft = losses.uncertainty_ranking(chosen, rejected, tensor([0.9])).item()
    assert soft == pytest.approx(-0.9 * math.log(PHI(0.5)) - 0.1 * math.log(PHI(-0.5)), **EXACT)
    # Where the answers are equally good, it is a coin's toss, whoever is unsure of it.
    assert losses.uncertainty_ranking(chosen, chosen).item() == pytest.approx(math.log(2), **EXACT)


def test_uncertainty_does_not_fix_the_scale_and_stays_finite_far_out() -> None:
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    scaled = [torch.stack([7 * side[:, 0], side[:, 1] + math.log(7)], dim=1) for side in (chosen, rejected)]
    found = losses.uncertainty_ranking(chosen, rejected)
    torch.testing.assert_close(losses.uncertainty_ranking(*scaled), found, rtol=1e-12, atol=0)
    far = torch.tensor([[-300.0, -2.0]], requires_grad=True)  # float32, as in training
    loss = losses.uncertainty_ranking(far, torch.tensor([[300.0, -2.0]])).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()


def test_order_probability_of_one_output_is_the_logistic_of_the_difference() -> None:
    found = losses.order_probability(tensor([[1.0]]), tensor([[0.0]])).item()
    assert found == pytest.approx(1 / (1 + math.exp(-1)), **EXACT)


@pytest.mark.parametrize("name", ["bradley_terry", "scaled_bradley_terry", "regression", "uncertainty_ranking"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(11)
    shape = (4, 2) if name == "uncertainty_ranking" else (4,)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    weights = torch.rand(4, generator=generator, dtype=torch.float64)
    more = {"regression": (), "scaled_bradley_terry": (3 * weights, weights)}.get(name, (weights,))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return getattr(losses, name)(a, b, *more)

    assert torch.autograd.gradcheck(loss, (first, second))


def test_bradley_terry_is_the_loss_of_trl() -> None:
    """Its ``compute_loss`` runs as it is, on a stand-in for the trainer with a model that hands out given rewards."""
    generator = torch.Generator().manual_seed(5)
    mine = torch.randn(12, generator=generator).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    found = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=theirs[:, None]), {})
    loss = losses.bradley_terry(mine[:6], mine[6:]).mean()
    loss.backward()
    found.backward()
    # float32 on both sides, the same operations but for a product with a label of 1.
    torch.testing.assert_close(loss, found, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-7)
