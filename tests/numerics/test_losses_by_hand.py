"""Objectives against values worked out by hand; the arithmetic stands in each docstring.

Unless said otherwise the log-ratios are 0.5 (chosen) and -1.5 (rejected) and beta is 0.5: rewards 0.25 and
-0.75, margin 1. sigmoid(1) = 0.7310586, log sigmoid(1) = -0.3132617, log sigmoid(-1) = -1.3132617.
"""

import math

import pytest
import torch
from pydantic import ValidationError

from pipeline.config import OBJECTIVES, UpdateConfig
from pipeline.dpo import losses
from pipeline.dpo.loss_table import LOSSES, PreferenceBatch

CHOSEN, REJECTED, BETA = torch.tensor([0.5]).double(), torch.tensor([-1.5]).double(), 0.5
# Seven digits are written below, and the computation is in float64.
CLOSE = {"abs": 1e-6}


def test_reward_of_a_rejected_answer():
    """Policy 0.25, reference 0.30, beta 0.1: 0.1 ln(0.25 / 0.30) = 0.1 * -0.1823216 = -0.0182322."""
    logratio = math.log(0.25) - math.log(0.30)
    assert 0.1 * logratio == pytest.approx(-0.0182322, abs=1e-7)
    assert round(0.1 * logratio, 3) == -0.018


def test_loss_of_a_small_gap():
    """Gap 0.059: sigmoid = 1 / (1 + exp(-0.059)) = 1 / 1.9427068 = 0.5147457, loss = -ln 0.5147457 = 0.6640823."""
    loss = losses.sigmoid(torch.tensor([0.59]).double(), torch.zeros(1).double(), beta=0.1).item()
    assert loss == pytest.approx(0.6640823, **CLOSE)
    assert round(math.exp(-loss), 3) == 0.515


def test_sigmoid():
    """-log sigmoid(1) = 0.3132617."""
    assert losses.sigmoid(CHOSEN, REJECTED, beta=BETA).item() == pytest.approx(0.3132617, **CLOSE)


def test_sigmoid_with_label_smoothing():
    """0.9 * 0.3132617 + 0.1 * 1.3132617 = 0.4132617."""
    assert losses.sigmoid(CHOSEN, REJECTED, beta=BETA, label_smoothing=0.1).item() == pytest.approx(0.4132617, **CLOSE)


def test_sigmoid_with_soft_label():
    """0.8 * 0.3132617 + 0.2 * 1.3132617 = 0.5132617."""
    soft = losses.sigmoid(CHOSEN, REJECTED, beta=BETA, soft_labels_P=torch.tensor([0.8]).double())
    assert soft.item() == pytest.approx(0.5132617, **CLOSE)


def test_soft_label_and_smoothing_together():
    """A label that is right with 0.8, flipped with 0.1, is right with 0.8 * 0.9 + 0.2 * 0.1 = 0.74: 0.3132617
    + 0.26.
    """
    both = losses.sigmoid(CHOSEN, REJECTED, beta=BETA, label_smoothing=0.1, soft_labels_P=torch.tensor([0.8]).double())
    assert both.item() == pytest.approx(0.5732617, **CLOSE)


def test_sigmoid_norm():
    """Lengths 2 and 3: 0.5 / 2 + 1.5 / 3 = 0.75, times 0.5 is 0.375; ln(1 + exp(-0.375)) = ln 1.6872893 = 0.5231232."""
    lengths = torch.tensor([2.0]).double(), torch.tensor([3.0]).double()
    assert losses.sigmoid_norm(CHOSEN, REJECTED, *lengths, beta=BETA).item() == pytest.approx(0.5231232, **CLOSE)


def test_robust():
    """(0.9 * 0.3132617 - 0.1 * 1.3132617) / 0.8 = (0.2819355 - 0.1313262) / 0.8 = 0.1882617."""
    assert losses.robust(CHOSEN, REJECTED, beta=BETA, label_smoothing=0.1).item() == pytest.approx(0.1882617, **CLOSE)


def test_hinge():
    """Margin 1 gives max(0, 1 - 1) = 0; with beta 0.25 the margin is 0.5 and the loss 0.5."""
    assert losses.hinge(CHOSEN, REJECTED, beta=BETA).item() == 0
    assert losses.hinge(CHOSEN, REJECTED, beta=0.25).item() == pytest.approx(0.5, **CLOSE)


def test_ipo():
    """Lengths 2 and 3: (0.25 + 0.5 - 1 / (2 * 0.5))^2 = (-0.25)^2 = 0.0625."""
    lengths = torch.tensor([2.0]).double(), torch.tensor([3.0]).double()
    assert losses.ipo(CHOSEN, REJECTED, *lengths, beta=BETA).item() == pytest.approx(0.0625, **CLOSE)


def test_simpo():
    """Log-probabilities -4 over 2 and -9 over 3 tokens, beta 2, margin 1: 2 (-2 + 3) - 1 = 1; loss 0.3132617."""
    values = [torch.tensor([value]).double() for value in (-4.0, -9.0, 2.0, 3.0)]
    assert losses.simpo(*values, beta=2.0, target_margin=1.0).item() == pytest.approx(0.3132617, **CLOSE)


def test_sppo():
    """(0.5 - 0.5 / 0.5)^2 + (-1.5 + 0.5 / 0.5)^2 = 0.25 + 0.25; with p = 0.6: (0.5 - 0.2)^2 + (-1.5 + 0.2)^2 = 1.78."""
    assert losses.sppo(CHOSEN, REJECTED, beta=BETA).item() == pytest.approx(0.5, **CLOSE)
    soft = losses.sppo(CHOSEN, REJECTED, beta=BETA, soft_labels_P=torch.tensor([0.6]).double())
    assert soft.item() == pytest.approx(1.78, **CLOSE)


def test_dpop():
    """No penalty while the chosen answer rose: 0.3132617. Fallen by 0.1, penalty 5: 0.5 (-0.1 + 1.5 - 0.5) =
    0.45, ln(1 + exp(-0.45)) = ln 1.6376282 = 0.4932489.
    """
    assert losses.dpop(CHOSEN, REJECTED, beta=BETA, penalty=5.0).item() == pytest.approx(0.3132617, **CLOSE)
    fallen = torch.tensor([-0.1]).double()
    assert losses.dpop(fallen, REJECTED, beta=BETA, penalty=5.0).item() == pytest.approx(0.4932489, **CLOSE)
    # Of the fall of 0.1, a margin of 0.04 is free: 0.5 (-0.1 + 1.5 - 5 * 0.06) = 0.55, ln 1.5769498 = 0.4554925.
    spared = losses.dpop(fallen, REJECTED, beta=BETA, penalty=5.0, margin_P=0.04)
    assert spared.item() == pytest.approx(0.4554925, **CLOSE)


@pytest.mark.parametrize(("precision", "noise"), [("float32", 1e-6), ("float32", 5e-3), ("bfloat16", 0.1)])
def test_noise_does_not_decide_the_first_step_of_dpop(precision, noise):
    """At log-ratios of 0 the gradient is that of DPO, -beta / 2, on whichever side of 0 noise puts the chosen answer;
    with a fall that is none, of 1 nat, it is -beta (1 + penalty) sigmoid(beta (1 + penalty)).

    In bfloat16 a sum over 9 tokens has a standard deviation of 0.05 * 3 nats.
    """
    config = UpdateConfig(objective="dpop", precision=precision)

    def gradient(ratio):
        logps = torch.tensor([[-5.0 + ratio, -7.0]], dtype=torch.float64, requires_grad=True)
        batch = PreferenceBatch(
            logps, torch.tensor([[-5.0, -7.0]]).double(), torch.tensor([[9.0, 4.0]]).double(), torch.tensor([[0, 1]])
        )
        (loss,) = LOSSES["dpop"].function(batch, config)
        (found,) = torch.autograd.grad(loss, logps)
        return loss.item(), found[0, 0].item()

    for side in (-noise, noise):
        loss, slope = gradient(side)
        # The loss moves by beta / 2 times the noise, and its slope by beta^2 / 4 times that.
        assert loss == pytest.approx(math.log(2), abs=0.05 * noise * 1.01)
        assert slope == pytest.approx(-0.05, abs=0.0025 * noise * 1.01)
    margin = 1e-2 if precision == "float32" else 0.3
    pull = 0.1 * (1 + 50 * (1 - margin))
    assert gradient(-1.0)[1] == pytest.approx(-0.1 * 51 / (1 + math.exp(-pull)))


def test_apo():
    """sigmoid(0.25) = 0.5621765, sigmoid(-0.75) = 0.3208213. Zero: 1 - 0.5621765 + 0.3208213 = 0.7586448;
    down: 0.5621765 + 1 - 0.7310586 = 0.8311179."""
    assert losses.apo_zero(CHOSEN, REJECTED, beta=BETA).item() == pytest.approx(0.7586448, **CLOSE)
    assert losses.apo_down(CHOSEN, REJECTED, beta=BETA).item() == pytest.approx(0.8311179, **CLOSE)


def test_exo_pair():
    """e = 0.1: 0.7310586 (-0.3132617 - ln 0.9) + 0.2689414 (-1.3132617 - ln 0.1)
    = 0.7310586 * -0.2079012 + 0.2689414 * 0.9893234 = -0.1519880 + 0.2660701 = 0.1140821."""
    loss = losses.exo_pair(CHOSEN, REJECTED, beta=BETA, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.1140821, **CLOSE)


def test_nca_and_bco_pair():
    """-log sigmoid(0.25) = 0.5759394, -log sigmoid(-0.25) = 0.8259394, -log sigmoid(0.75) = 0.3868706.
    NCA: 0.5759394 + (0.8259394 + 0.3868706) / 2 = 1.1823444. BCO: 0.5759394 + 0.3868706 = 0.9628100."""
    assert losses.nca_pair(CHOSEN, REJECTED, beta=BETA).item() == pytest.approx(1.1823444, **CLOSE)
    assert losses.bco_pair(CHOSEN, REJECTED, beta=BETA).item() == pytest.approx(0.9628100, **CLOSE)


def ranking(*logratios: float) -> torch.Tensor:
    return torch.tensor([logratios]).double()


def test_plackett_luce_of_three():
    """Rewards 1, 0, -1: ln(e + 1 + 1/e) - 1 + ln(1 + 1/e) - 0 = 1.4076060 - 1 + 0.3132617 = 0.7208677."""
    loss = losses.plackett_luce(ranking(2.0, 0.0, -2.0), torch.tensor([[0, 1, 2]]), beta=BETA)
    assert loss.item() == pytest.approx(0.7208677, **CLOSE)


def test_plackett_luce_of_a_partial_ranking():
    """Only the first place is known, the other two tie for the last: ln(e + 1 + 1/e) - 1 = 0.4076060."""
    loss = losses.plackett_luce(ranking(2.0, 0.0, -2.0), torch.tensor([[0, 1, 1]]), beta=BETA)
    assert loss.item() == pytest.approx(0.4076060, **CLOSE)


def test_plackett_luce_with_a_tie_for_the_first_place():
    """Rewards 1 and 0 tie above -1: ln(e + 1/e) - 1 + ln(1 + 1/e) = 1.1269280 - 1 + 0.3132617 = 0.4401897."""
    loss = losses.plackett_luce(ranking(2.0, 0.0, -2.0), torch.tensor([[0, 0, 1]]), beta=BETA)
    assert loss.item() == pytest.approx(0.4401897, **CLOSE)


def test_absent_candidates_do_not_count():
    full = losses.plackett_luce(ranking(2.0, 0.0), torch.tensor([[0, 1]]), beta=BETA)
    padded = losses.plackett_luce(ranking(2.0, 0.0, 9.0), torch.tensor([[0, 1, -1]]), beta=BETA)
    assert padded.item() == full.item()
    full = losses.all_pairs(ranking(2.0, 0.0), torch.tensor([[0, 1]]), beta=BETA)
    padded = losses.all_pairs(ranking(2.0, 0.0, 9.0), torch.tensor([[0, 1, -1]]), beta=BETA)
    assert padded.item() == full.item()


@pytest.mark.parametrize("candidates", [2, 3, 5, 8])
def test_equal_rewards_give_the_log_of_the_number_of_rankings(candidates):
    """K! rankings are equally likely: ln K!."""
    loss = losses.plackett_luce(torch.zeros(1, candidates).double(), torch.arange(candidates)[None], beta=BETA)
    assert loss.item() == pytest.approx(math.lgamma(candidates + 1), **CLOSE)


def test_all_pairs_of_three():
    """Rewards 1, 0, -1: margins 1, 2, 1: 0.3132617 + 0.1269280 + 0.3132617 = 0.7534514; a tie of the last two
    drops one: 0.4401897.
    """
    values = ranking(2.0, 0.0, -2.0)
    assert losses.all_pairs(values, torch.tensor([[0, 1, 2]]), beta=BETA).item() == pytest.approx(0.7534514, **CLOSE)
    assert losses.all_pairs(values, torch.tensor([[0, 1, 1]]), beta=BETA).item() == pytest.approx(0.4401897, **CLOSE)


def test_nll_and_exploration():
    """-(-6) / 3 = 2 nats a token; the mean of -6 and -2 is -4, and the absent -9 does not count."""
    assert losses.nll(torch.tensor([-6.0]), torch.tensor([3.0])).item() == 2
    assert losses.exploration(torch.tensor([[-6.0, -2.0, -9.0]]), torch.tensor([[0, 1, -1]])).item() == -4


def test_wpo_weights():
    """exp(-0.5 - 0.2) = 0.4965853."""
    weight = losses.wpo_weights(torch.tensor([[-0.5, -0.2]], requires_grad=True))
    assert weight.item() == pytest.approx(0.4965853, **CLOSE)
    assert not weight.requires_grad


def test_wpo_weighs_no_pair_above_1():
    """Answers of one token each, of probability 0.9 beside one of 0.1: log 0.9 - log 0.82 = 0.0930904 each, and
    exp(0.1861809) = 1.2046; a policy near uniform over 61 tokens, with one of 0.05, gives more.
    """
    aligned = torch.tensor([[0.0930904, 0.0930904], [-0.5, 0.5], [1.5, -0.04]])
    assert losses.wpo_weights(aligned).tolist() == [1.0, 1.0, 1.0]
    assert losses.wpo_weights(torch.tensor([[0.5, -0.6]])).item() == pytest.approx(math.exp(-0.1))


def test_importance_weights():
    """Log-ratios -0.5 and 0.2: exp(-0.3) = 0.7408182. 1 and 0.5 would weigh e^1.5 = 4.48, and weigh 2. A place that is
    absent does not count: exp(-0.1 - 0.2) and not with the third.
    """
    pairs = torch.tensor([[-0.5, 0.2], [1.0, 0.5], [0.0, 0.0]], requires_grad=True)
    weights = losses.importance_weights(pairs, torch.tensor([[0, 1]] * 3), bound=2.0)
    assert weights.tolist() == [pytest.approx(0.7408182, **CLOSE), pytest.approx(2.0), 1.0]
    assert not weights.requires_grad
    ragged = losses.importance_weights(torch.tensor([[-0.1, -0.2, 5.0]]), torch.tensor([[0, 1, -1]]), bound=2.0)
    assert ragged.item() == pytest.approx(math.exp(-0.3), **CLOSE)


@pytest.mark.parametrize(
    ("divergence", "alpha", "score"),
    [
        ("reverse_kl", 0.5, 1.0),
        ("forward_kl", 0.5, 0.6321206),  # 1 - 1/e
        ("jensen_shannon", 0.5, 0.3798855),  # ln 2 - 0.3132617
        ("alpha", 0.5, 0.7869387),  # (1 - exp(-0.5)) / 0.5
        ("alpha", 1.0, 0.6321206),  # forward KL
    ],
)
def test_divergence_scores(divergence, alpha, score):
    one, zero = torch.ones(1).double(), torch.zeros(1).double()
    assert losses.divergence_scores(one, divergence, alpha).item() == pytest.approx(score, **CLOSE)
    assert losses.divergence_scores(zero, divergence, alpha).item() == pytest.approx(0, **CLOSE)


def batch(logratios: torch.Tensor, soft: float | None = None) -> PreferenceBatch:
    """Preferences over K candidates with those log-ratios, all best first, reference log-probability -7, 3 to
    7 tokens.
    """
    preferences, candidates = logratios.shape
    return PreferenceBatch(
        logps_P_K=logratios - 7,
        reference_logps_P_K=torch.full_like(logratios, -7),
        lengths_P_K=torch.linspace(3, 7, preferences * candidates).to(logratios).view(preferences, candidates),
        ranks_P_K=torch.arange(candidates).expand(preferences, candidates),
        soft_labels_P=None if soft is None else torch.full((preferences,), soft).to(logratios),
    )


def test_supervised_takes_the_chosen_answer_alone():
    """Log-probabilities -6 and -1 of 3 and 2 tokens: 6 / 3 = 2, whatever reference and rejected answer are."""
    config = UpdateConfig(objective="supervised")
    logps = torch.tensor([[-6.0, -1.0]], dtype=torch.float64, requires_grad=True)
    lengths, ranks = torch.tensor([[3.0, 2.0]]).double(), torch.tensor([[0, 1]])
    loss = LOSSES["supervised"].function(PreferenceBatch(logps, logps.detach() - 5, lengths, ranks), config)
    assert loss.tolist() == pytest.approx([2.0])
    loss.sum().backward()
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-1 / 3, 0.0])


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.first_loss])
def test_first_loss_is_the_value_at_equal_policies(name):
    settings = UpdateConfig(beta=0.3, label_smoothing=0.2)
    expected = LOSSES[name].first_loss(settings, [0, 1])
    values = LOSSES[name].function(batch(torch.zeros(2, 2).double()), settings)
    assert values.tolist() == pytest.approx([expected] * 2, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "divergence"),
    [(name, "reverse_kl") for name in OBJECTIVES]
    + [(name, "alpha") for name, objective in OBJECTIVES.items() if objective.margin],
)
def test_gradients_in_float64(name, divergence):
    objective = OBJECTIVES[name]
    settings = UpdateConfig(beta=0.3, label_smoothing=0.1, divergence=divergence)
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(4, 4 if objective.rankings else 2, generator=generator, dtype=torch.float64)
    soft = 0.7 if objective.soft else None
    assert torch.autograd.gradcheck(
        lambda logratios: LOSSES[name].function(batch(logratios, soft), settings), points.requires_grad_()
    )


@pytest.mark.parametrize("name", ["plackett_luce", "all_pairs"])
def test_rankings_of_two_are_pairs(name):
    """Value to the last digits of float64, and the same gradient."""
    points = torch.randn(16, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    settings = UpdateConfig(beta=0.7)
    values, gradients = {}, {}
    for each in (name, "sigmoid"):
        values[each] = LOSSES[each].function(batch(points), settings)
        (gradients[each],) = torch.autograd.grad(values[each].sum(), points)
    torch.testing.assert_close(values[name], values["sigmoid"], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradients[name], gradients["sigmoid"], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_huge_log_ratios_stay_finite(name):
    """1,000 nats in float32, beyond what exp can hold."""
    rankings = OBJECTIVES[name].rankings
    points = torch.tensor([[1000.0, -1000.0, 0.0], [-1000.0, 1000.0, 0.0]])[:, : 3 if rankings else 2].requires_grad_()
    values = LOSSES[name].function(batch(points), UpdateConfig(beta=1.0, label_smoothing=0.1))
    (gradient,) = torch.autograd.grad(values.sum(), points)
    assert torch.isfinite(values).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective": "dpo"}, "no objective 'dpo': choose among sigmoid"),
        ({"objective": "exo_pair"}, r"label_smoothing 0 makes update.objective 'exo_pair' infinite.*above 0"),
        ({"objective": "apo_zero", "divergence": "forward_kl"}, r"'apo_zero', which is defined for reverse_kl alone"),
        ({"beta": 0}, r"(?s)beta\b.*greater than 0"),
        ({"objective": "robust", "label_smoothing": 0.5}, r"(?s)label_smoothing\b.*less than 0\.5"),
        ({"divergence": "alpha", "divergence_alpha": 1.0}, r"(?s)divergence_alpha\b.*less than 1"),
    ],
)
def test_constants_are_checked(fields, words):
    with pytest.raises(ValidationError, match=words):
        UpdateConfig(**fields)
