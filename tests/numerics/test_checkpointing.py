"""Activations that are computed again in the backward pass: nothing else changes, whatever a layer does in training."""

import pytest
import torch
from numerics.test_lora import adapted
from numerics.test_update import SEED, SETTINGS, preferences, weights
from numerics.tiny_models import SHAPE, build, changed
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, MixtralConfig, MixtralForCausalLM

from pipeline.config.objectives import OBJECTIVES
from pipeline.dpo.update import run_update
from pipeline.model.logprobs import sequence_logps

RANDOM = {
    # Dropout by the layer itself, and whole layers left out.
    "opt": lambda: build("opt"),
    "gpt2": lambda: build("gpt2"),
    # Dropout by modules of the layer, and within attention.
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**SHAPE, hidden_dropout=0.3, attention_dropout=0.3, attn_implementation="sdpa")
    ),
    # Noise in the router's inputs.
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SHAPE, num_local_experts=4, router_jitter_noise=0.5, attn_implementation="sdpa")
    ),
}
"""Models that compute something else in each pass while they train."""


def random_model(name):
    torch.manual_seed(0)
    return RANDOM[name]()


def test_gradient_checkpointing_changes_nothing():
    """The same operations twice: equal to the bit. What is not kept is computed again, in each step once."""
    plain, saving = build(), build()
    passes = {plain: 0, saving: 0}
    groups = {model: preferences(model) for model in passes}
    for model in passes:

        def count(*_, model=model):
            passes[model] += 1

        model.model.layers[0].mlp.register_forward_pre_hook(count)
        settings = changed(SETTINGS, gradient_checkpointing=model is saving)
        steps = run_update(model, groups[model], settings, seed=SEED).steps
    torch.testing.assert_close(weights(saving), weights(plain), rtol=0, atol=0)
    assert passes[saving] == passes[plain] + len(steps)


@pytest.mark.parametrize("name", RANDOM)
def test_models_that_are_random_in_training_are_not(name):
    """Torch's seed is another one before each update, and every number is the same, with checkpointing and without."""
    groups = preferences(random_model(name))
    found = []
    for seed, gradient_checkpointing in ((1, False), (2, True), (3, True)):
        model = random_model(name).train()
        torch.manual_seed(seed)
        result = run_update(model, groups, changed(SETTINGS, gradient_checkpointing=gradient_checkpointing), seed=SEED)
        assert result.reference_drift < 1e-4
        found.append(weights(model))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_divergence_at_the_first_step(objective):
    """Policy and reference are one, and packs are made up otherwise: sums near 50 nats differ in their last digits."""
    model = build("opt")
    groups = preferences(model)
    smoothing = 0.1 if OBJECTIVES[objective].needs_smoothing else 0.0
    settings = changed(SETTINGS, objective={objective: 1.0}, label_smoothing=smoothing, gradient_checkpointing=True)
    first = run_update(model, groups, settings, seed=SEED).steps[0]
    assert first.kl < 1e-8
    assert first.logp_chosen_change == pytest.approx(0, abs=1e-4)


def test_an_adapter_learns_the_same_below_recomputed_layers():
    """Nothing before the first adapter needs a gradient, which a recomputation must not take for the whole layer's."""
    found = []
    for gradient_checkpointing in (False, True):
        model, _ = adapted("opt")
        groups = preferences(model)
        run_update(model, groups, changed(SETTINGS, gradient_checkpointing=gradient_checkpointing), seed=SEED)
        found.append(weights(model))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    first, _ = adapted("opt")
    assert any(not torch.equal(weight, found[0][name]) for name, weight in weights(first).items())


def test_the_model_scores_plainly_after_the_update():
    """No recomputation is left behind, and the model is in evaluation mode."""
    model = build("opt")
    groups = preferences(model)
    run_update(model, groups, changed(SETTINGS, gradient_checkpointing=True), seed=SEED)
    assert not any(module.training for module in model.modules())
    torch.manual_seed(1)
    once = sequence_logps(model, groups, 200)
    torch.manual_seed(2)
    assert sequence_logps(model, groups, 200) == once
