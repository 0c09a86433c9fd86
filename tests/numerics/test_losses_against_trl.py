"""Agreement with the loss code of `trl`'s DPOTrainer, in value and in gradient with respect to every token.

Its ``_compute_loss`` runs as it is, on a stand-in for the trainer that carries the settings it reads and a
model that hands out given log-probabilities.
"""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl.trainer.dpo_trainer import DPOTrainer

from pipeline.config import UpdateConfig
from pipeline.dpo.loss_table import LOSSES, PreferenceBatch
from pipeline.dpo.losses import nll, wpo_weights

PAIRS, TOKENS = 6, 24
# Both sides work in float32 on the same numbers; the issue is the order of operations alone.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}

THEIR_DIVERGENCE = {
    "reverse_kl": ("reverse_kl", 0.0),
    "forward_kl": ("forward_kl", 0.0),
    "jensen_shannon": ("js_divergence", 0.0),
    "alpha": ("alpha_divergence", 0.7),  # their coefficient is 1 minus the paper's alpha, here 0.3
}


def sequences(equal_lengths: bool = False):
    """Log-probabilities of tokens, which of them count, and reference sums: the chosen half first."""
    generator = torch.Generator().manual_seed(17)
    logps = -5 * torch.rand(2 * PAIRS, TOKENS, generator=generator)
    lengths = torch.randint(4, TOKENS, (2 * PAIRS,), generator=generator)
    if equal_lengths:
        lengths[:] = 11
    counts = torch.arange(TOKENS) < lengths[:, None]
    # within a few nats of the policy, as in training
    reference = (logps * counts).sum(1) + 2 * torch.randn(2 * PAIRS, generator=generator)
    squares = -2 * torch.rand(2 * PAIRS, TOKENS, generator=generator)
    return logps.requires_grad_(), counts, reference, squares


def their_loss(logps, counts, reference, squares, *, loss_types, weights, settings, wpo=False):
    divergence, coefficient = THEIR_DIVERGENCE[settings.divergence]
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type=divergence,
        f_alpha_divergence_coef=coefficient,
        loss_types=loss_types,
        loss_weights=weights,
        beta=settings.beta,
        label_smoothing=settings.label_smoothing,
        use_weighting=wpo,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
    )
    outputs = SimpleNamespace(
        log_probs=logps * counts,
        log_sum_sq_probs=squares,
        entropy=torch.zeros_like(logps),
        mean_logits=torch.zeros_like(logps),
        is_top1=torch.zeros_like(counts),
    )
    completion = torch.cat([torch.zeros(2 * PAIRS, 1), counts], dim=1).long()
    inputs = {
        "input_ids": torch.ones_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "ref_chosen_logps": reference[:PAIRS],
        "ref_rejected_logps": reference[PAIRS:],
    }
    return DPOTrainer._compute_loss(trainer, lambda **keywords: outputs, inputs, return_outputs=False)


def our_batch(logps, counts, reference) -> PreferenceBatch:
    def paired(values):
        return torch.stack(values.split(PAIRS), dim=1)

    return PreferenceBatch(
        logps_P_K=paired((logps * counts).sum(1)),
        reference_logps_P_K=paired(reference),
        lengths_P_K=paired(counts.sum(1).float()),
        ranks_P_K=torch.tensor([[0, 1]] * PAIRS),
    )


def assert_same(ours, theirs, logps):
    torch.testing.assert_close(ours, theirs, **CLOSE)
    (our_gradient,) = torch.autograd.grad(ours, logps)
    (their_gradient,) = torch.autograd.grad(theirs, logps)
    assert their_gradient.abs().max() > 1e-4
    torch.testing.assert_close(our_gradient, their_gradient, **CLOSE)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(name, name) for name in ("sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair", "nca_pair", "bco_pair")]
    + [("apo_zero", "apo_zero"), ("apo_down", "apo_down"), ("sppo", "sppo_hard")],
)
def test_objective(ours, theirs, beta):
    # their plain sigmoid knows no smoothing
    smoothing = 0.2 if ours in ("robust", "exo_pair") else 0.0
    settings = UpdateConfig(beta=beta, label_smoothing=smoothing)
    logps, *rest = sequences()
    expected = their_loss(logps, *rest, loss_types=[theirs], weights=[1.0], settings=settings)
    assert_same(LOSSES[ours].function(our_batch(logps, *rest[:2]), settings).mean(), expected, logps)


@pytest.mark.parametrize("name", ["sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "exo_pair"])
@pytest.mark.parametrize("divergence", ["forward_kl", "jensen_shannon", "alpha"])
def test_divergence(name, divergence):
    smoothing = 0.2 if name in ("robust", "exo_pair") else 0.0
    alpha = {"divergence_alpha": 0.3} if divergence == "alpha" else {}
    settings = UpdateConfig(beta=0.5, label_smoothing=smoothing, divergence=divergence, **alpha)
    logps, *rest = sequences()
    expected = their_loss(logps, *rest, loss_types=[name], weights=[1.0], settings=settings)
    assert_same(LOSSES[name].function(our_batch(logps, *rest[:2]), settings).mean(), expected, logps)


def test_weighted_sum():
    settings = UpdateConfig(beta=0.3)
    logps, *rest = sequences()
    expected = their_loss(logps, *rest, loss_types=["sigmoid", "bco_pair"], weights=[0.8, 0.2], settings=settings)
    batch = our_batch(logps, *rest[:2])
    ours = 0.8 * LOSSES["sigmoid"].function(batch, settings) + 0.2 * LOSSES["bco_pair"].function(batch, settings)
    assert_same(ours.mean(), expected, logps)


def test_nll():
    """Their term is a mean over all tokens of a batch, ours a mean over tokens, then over answers: equal at
    equal lengths.
    """
    logps, *rest = sequences(equal_lengths=True)
    expected = their_loss(logps, *rest, loss_types=["sft"], weights=[1.0], settings=UpdateConfig())
    batch = our_batch(logps, *rest[:2])
    assert_same(nll(batch.logps_P_K[:, 0], batch.lengths_P_K[:, 0]).mean(), expected, logps)


def test_wpo():
    settings = UpdateConfig(beta=0.3)
    logps, counts, reference, squares = sequences()
    expected = their_loss(
        logps, counts, reference, squares, loss_types=["sigmoid"], weights=[1.0], settings=settings, wpo=True
    )
    batch = our_batch(logps, counts, reference)
    aligned = torch.stack(((logps - squares) * counts).sum(1).split(PAIRS), dim=1) / batch.lengths_P_K
    ours = LOSSES["sigmoid"].function(batch, settings) * wpo_weights(aligned)
    assert_same(ours.mean(), expected, logps)
