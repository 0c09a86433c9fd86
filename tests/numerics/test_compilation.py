"""Compiled layers compute what the plain ones do, and packs of other lengths do not compile again."""

import shutil

import pytest
import torch
from numerics.tiny_models import build, gradients, token_groups, with_reference

from pipeline.config import UpdateConfig
from pipeline.dpo.checks import check_inputs
from pipeline.dpo.gradients import accumulate_gradient
from pipeline.errors import ConfigError, UnsupportedModelError
from pipeline.model.compilation import check_compiler, compile_layers
from pipeline.packing.attention import shared_prefix_attention

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler on this machine"
)


@pytest.fixture(autouse=True)
def compilation(monkeypatch):
    """Not left off, as by a test that has a sampler for the CPU in this process."""
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)


def step(model, count, token_budget):
    groups = with_reference(token_groups(count, seed=count), [[-20.0, -20.0]] * count)
    settings = UpdateConfig(token_budget=token_budget)
    with shared_prefix_attention(model):
        outcome, _ = accumulate_gradient(model, groups, check_inputs(groups, settings), settings, step=0)
    return outcome.loss, gradients(model)


@needs_compiler
def test_compiled_equals_plain_and_a_third_length_compiles_nothing():
    plain, compiled = build(), build()
    check_compiler("cpu")
    compile_layers(compiled)
    seen = []
    for count, budget in ((2, 60), (5, 60), (9, 300)):
        loss, gradient = step(plain, count, budget)
        other_loss, other_gradient = step(compiled, count, budget)
        # Fused loops sum in another order: the last bits of float32, over sums of up to 9 log-probabilities of 5 nats.
        torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-4, atol=1e-5)
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        seen.append(graphs)
    assert 0 < seen[1] == seen[2], "the third length was compiled again"


def test_a_missing_compiler_is_said_before_any_work(monkeypatch, tmp_path):
    from torch._inductor import config, cpp_builder

    torch.compiler.reset()
    monkeypatch.setattr(config.cpp, "cxx", (str(tmp_path / "no-such-compiler"),))
    monkeypatch.setattr(config, "fx_graph_cache", False)  # else a line compiled earlier would do without
    cpp_builder.cpp_compiler_search.cache_clear()
    with pytest.raises(ConfigError, match=r"update\.compile needs a working C\+\+ compiler"):
        check_compiler("cpu")


def test_a_model_without_layers_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"Linear.*update\.compile to false"):
        compile_layers(torch.nn.Linear(2, 2))
