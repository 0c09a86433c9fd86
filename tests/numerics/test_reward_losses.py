"""Losses of reward models: values by hand, gradients by finite differences, and trl's RewardTrainer."""

import math
from collections import defaultdict
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from trl.trainer.reward_trainer import RewardTrainer

from pipeline.reward_model import losses as losses

PHI = NormalDist().cdf
# float64 on both sides, a handful of operations.
EXACT = {"rel": 1e-12, "abs": 1e-12}


REWARD_LOSSES = ("bradley_terry", "scaled_bradley_terry", "regression", "thurstone", "expected_logistic")


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


def test_thurstone_by_hand() -> None:
    """Standard deviations 3 and 4 make one of 5: z = 2.5 / 5."""
    chosen = tensor([[2.5, math.log(3)]])
    rejected = tensor([[0.0, math.log(4)]])
    assert losses.standardised_difference(chosen, rejected).item() == pytest.approx(0.5, **EXACT)
    assert losses.thurstone(chosen, rejected).item() == pytest.approx(-math.log(PHI(0.5)), **EXACT)
    assert losses.order_probability(rejected, chosen).item() == pytest.approx(PHI(-0.5), **EXACT)
    soft = losses.thurstone(chosen, rejected, tensor([0.9])).item()
    assert soft == pytest.approx(-0.9 * math.log(PHI(0.5)) - 0.1 * math.log(PHI(-0.5)), **EXACT)
    # Where the answers are equally good, it is a coin's toss, whoever is unsure of it.
    assert losses.thurstone(chosen, chosen).item() == pytest.approx(math.log(2), **EXACT)


def test_thurstone_does_not_fix_the_scale_and_stays_finite_far_out() -> None:
    generator = torch.Generator().manual_seed(3)
    chosen, rejected = torch.randn(2, 5, 2, generator=generator, dtype=torch.float64)
    scaled = [torch.stack([7 * side[:, 0], side[:, 1] + math.log(7)], dim=1) for side in (chosen, rejected)]
    found = losses.thurstone(chosen, rejected)
    torch.testing.assert_close(losses.thurstone(*scaled), found, rtol=1e-12, atol=0)
    far = torch.tensor([[-300.0, -2.0]], requires_grad=True)  # float32, as in training
    loss = losses.thurstone(far, torch.tensor([[300.0, -2.0]])).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(far.grad).all()


@pytest.mark.parametrize(
    ("difference", "stds"),
    [(0.0, (0.5, 0.5)), (0.43, (0.4, 0.39)), (1.0, (1e-9, 1e-9)), (-2.0, (3.0, 4.0)), (9.0, (8.0, 6.0))],
)
def test_expected_logistic_by_quadrature(difference: float, stds: tuple[float, float]) -> None:
    """Against Gauss-Legendre panels of 20 points over 200 stretches, up to 12 deviations: another rule, far finer."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    edges = np.linspace(-12, 12, 201)
    half = (edges[1] - edges[0]) / 2
    place = ((edges[:-1] + half)[:, None] + half * nodes).ravel()
    density = np.tile(half * weights, 200) * np.exp(-(place**2) / 2) / np.sqrt(2 * np.pi)
    d = difference + math.hypot(*stds) * place
    right, wrong = (np.logaddexp(0, -d) * density).sum(), (np.logaddexp(0, d) * density).sum()
    chosen = tensor([[difference + 5.0, math.log(stds[0])]])
    rejected = tensor([[5.0, math.log(stds[1])]])
    # The rule of `losses` is within 1e-6 up to a deviation of 10 logits.
    assert losses.expected_logistic(chosen, rejected).item() == pytest.approx(right, abs=1e-6)
    soft = losses.expected_logistic(chosen, rejected, tensor([0.8])).item()
    assert soft == pytest.approx(0.8 * right + 0.2 * wrong, abs=1e-6)
    probability = (density / (1 + np.exp(-d))).sum()
    found = losses.order_probability(chosen, rejected, logits=True).item()
    assert found == pytest.approx(probability, abs=1e-6)
    # What the judge makes of it for soft labels: Phi with the deviation of a logistic choice added.
    spread = math.hypot(*(math.hypot(std, 1.702 / math.sqrt(2)) for std in stds))
    assert PHI(difference / spread) == pytest.approx(found, abs=0.01)


def test_expected_logistic_fixes_the_scale_and_stays_finite_far_out() -> None:
    """Exact rewards give Bradley-Terry; the probit of the same is certain. Doubled rewards are another statement."""
    exact = tensor([[1.0, -20.0]]), tensor([[0.0, -20.0]])
    assert losses.expected_logistic(*exact).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert losses.thurstone(*exact).item() == pytest.approx(0, abs=1e-9)
    unsure = tensor([[1.0, 0.0]]), tensor([[0.0, 0.0]])
    doubled = [side + tensor([[0.0, math.log(2)]]) for side in (2 * unsure[0] * tensor([[1.0, 0.0]]), unsure[1])]
    assert losses.thurstone(*doubled).item() == pytest.approx(losses.thurstone(*unsure).item(), **EXACT)
    assert losses.expected_logistic(*doubled).item() > losses.expected_logistic(*unsure).item() + 0.01
    far = torch.tensor([[-300.0, 2.0]], requires_grad=True)  # float32, as in training
    loss = losses.expected_logistic(far, torch.tensor([[300.0, 2.0]])).sum()
    loss.backward()
    assert loss.item() == pytest.approx(600, rel=1e-5)
    assert torch.isfinite(far.grad).all()


def test_order_probability_of_one_output_is_the_logistic_of_the_difference() -> None:
    found = losses.order_probability(tensor([[1.0]]), tensor([[0.0]])).item()
    assert found == pytest.approx(1 / (1 + math.exp(-1)), **EXACT)


@pytest.mark.parametrize("name", [*REWARD_LOSSES])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(11)
    shape = (4, 2) if name in ("thurstone", "expected_logistic") else (4,)
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
