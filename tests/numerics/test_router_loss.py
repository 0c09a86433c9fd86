"""The balancing loss of a mixture of experts, against transformers on one sequence at a time."""

from dataclasses import replace

import pytest
import torch
from numerics.test_update import SEED, SETTINGS, preferences, weights
from numerics.tiny_models import build, changed, gradients, token_groups
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from pipeline.dpo.update import Update, run_update
from pipeline.errors import ConfigError
from pipeline.model.logprobs import pack_sums
from pipeline.model.router_loss import check_router, keep_router_logits, router_losses
from pipeline.packing import packing
from pipeline.packing.packing import pack_groups

MIXTURES = ["mixtral", "qwen3_moe"]
WEIGHT = 0.5


def plain_loss(model, group):
    """Of a group: its prompt's tokens once and its candidates' but the last, each candidate in a pass of its own."""
    prompt, layers = len(group.prompt_token_ids), []
    for place, candidate in enumerate(group.candidate_token_ids):
        ids = torch.tensor([[*group.prompt_token_ids, *candidate[:-1]]])
        found = model(input_ids=ids, use_cache=False, output_router_logits=True).router_logits
        layers.append([logits[0 if place == 0 else prompt :] for logits in found])
    return load_balancing_loss_func(tuple(map(torch.cat, zip(*layers, strict=True))), 4, 2)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("budget", [40, 200])
def test_values_and_gradients_equal_those_of_plain_passes(name, budget):
    model, groups = build(name), token_groups(7, 3)
    expected = torch.stack([plain_loss(model, group) for group in groups])
    expected.sum().backward()
    by_autograd = gradients(model)
    for pack in pack_groups(groups, budget):
        with keep_router_logits(model) as logits:
            pack_sums(model, pack)
        found = router_losses(model, logits, pack)
        torch.testing.assert_close(found, expected[pack.groups], rtol=1e-5, atol=1e-6)
        found.sum().backward()
    torch.testing.assert_close(gradients(model), by_autograd, rtol=1e-3, atol=1e-5)
    assert by_autograd["model.layers.0.mlp.gate.weight"].abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_what_a_pass_is_padded_with_balances_nothing(monkeypatch):
    """As on a GPU, where a pack of some hundred tokens is padded to whole blocks."""
    model, groups = build("mixtral"), token_groups(3, 3)
    (pack,) = pack_groups(groups, 200)
    found = []
    for devices in (frozenset(), frozenset({"cpu"})):
        monkeypatch.setattr(packing, "BLOCK_DEVICES", devices)
        with torch.no_grad(), keep_router_logits(model) as logits:
            pack_sums(model, pack)
        found.append((router_losses(model, logits, pack), len(logits[0])))
    (plain, tokens), (padded, blocks) = found
    assert (tokens, blocks) == (len(pack.input_ids_T), 256)
    torch.testing.assert_close(padded, plain)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_it_is_part_of_the_loss_and_stands_in_the_metrics(name, gradient_checkpointing):
    """The first loss that theory gives is that of the objective alone: ln 2."""
    model = build(name)
    groups = preferences(model, count=6)
    expected = sum(plain_loss(model, group).item() for group in groups) / 6
    settings = changed(SETTINGS, batch_size=6, router_loss_weight=WEIGHT, gradient_checkpointing=gradient_checkpointing)
    result = run_update(model, groups, settings, seed=SEED)
    (row,) = result.steps
    assert row.router_loss == pytest.approx(expected, rel=1e-5)
    assert row.loss == pytest.approx(0.6931472 + WEIGHT * expected, rel=1e-5)
    assert result.first_loss == pytest.approx(0.6931472, abs=1e-5)


def test_routers_become_more_even():
    """Experts of a random router are used unevenly; 8 epochs with little but this loss bring it down."""
    model = build("mixtral")
    groups = preferences(model)
    settings = changed(SETTINGS, epochs=8, learning_rate=3e-3, router_loss_weight=10.0)
    steps = run_update(model, groups, settings, seed=SEED).steps
    assert steps[-1].router_loss < steps[0].router_loss - 0.05


def test_without_a_weight_nothing_is_kept_or_changed(tmp_path):
    """Packs of any make-up, a saved state, and ranks know the loss as a column of the step, which is empty."""
    found = []
    for settings in (SETTINGS, changed(SETTINGS, router_loss_weight=0.0)):
        model = build("mixtral")
        groups = preferences(model)
        result = run_update(model, groups, settings, seed=SEED)
        assert {row.router_loss for row in result.steps} == {None}
        found.append(weights(model))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_an_interrupted_update_of_a_mixture_goes_on_to_the_bit(tmp_path):
    settings = changed(SETTINGS, router_loss_weight=WEIGHT)
    whole = build("mixtral")
    groups = preferences(whole)
    update = Update(whole, groups, settings, seed=SEED)
    rows = update.run(lambda row: update.save(tmp_path) if row.step == 0 else None).steps
    again = build("mixtral", seed=5)
    rest = Update(again, groups, settings, seed=SEED)
    rest.load(tmp_path)
    assert [replace(row, seconds=0) for row in rest.run().steps] == [replace(row, seconds=0) for row in rows]
    torch.testing.assert_close(weights(again), weights(whole), rtol=0, atol=0)


def test_a_model_without_experts_is_refused():
    with pytest.raises(ConfigError, match=r"router_loss_weight is set, .* no balancing loss for LlamaForCausalLM"):
        check_router(build())
