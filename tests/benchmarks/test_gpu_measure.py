"""What the GPU's script measures an update by, at tiny shapes on CPU: operations by hand, and the shapes' sizes."""

from dataclasses import replace

import pytest
from benchmarks.gpu_check.measure import SHAPES, GpuPlan, GpuShape, measure, peak_of, preferences, step_flops

TINY = GpuShape("tiny", hidden=64, intermediate=96, layers=2, heads=4, key_heads=2, vocabulary=100, tied=True)
PLAN = GpuPlan(prompt=12, answer=10, step_tokens=100, token_budget=96, steps=2)


@pytest.mark.parametrize(("candidates", "preferences_", "tokens"), [(2, 3, 3 * 30), (4, 2, 2 * 48), (8, 1, 84)])
def test_steps_are_measured(candidates, preferences_, tokens):
    found = measure(TINY, PLAN, candidates, "cpu")
    assert (found.preferences, found.tokens, found.peak_bytes, found.token_budget) == (preferences_, tokens, None, 96)
    assert found.seconds > 0


def test_operations_by_hand():
    """A prompt of 2 and answers of 3 and 2 tokens: 2 + 2 + 1 inputs, 5 predictions.

    Weights of a layer: queries and outputs 64*64 each, keys and values 64*32 each, feed-forward 3*64*96: 30,720.
    Pairs of query and key: prompt 1 + 2; first answer 3 + 4; second 3: 13.
    """
    (group, *_) = preferences(PLAN, 2, 100)
    group = replace(group, prompt_token_ids=[1, 2], candidate_token_ids=[[3, 4, 5], [6, 7]])
    expected = 6 * 2 * 30_720 * 5 + 6 * 100 * 64 * 5 + 12 * 2 * 64 * 13
    assert step_flops(TINY, [group]) == expected
    # Of an adapted base, the gradients of weights are left out: a third of what is not attention.
    adapted = 4 * 2 * 30_720 * 5 + 4 * 100 * 64 * 5 + 12 * 2 * 64 * 13
    assert step_flops(TINY, [group], lora=True) == adapted
    model = TINY.build("cpu")
    matrices = [weight for name, weight in model.named_parameters() if weight.ndim == 2 and "embed" not in name]
    assert sum(weight.numel() for weight in matrices) == 2 * 30_720


def test_shapes_have_the_sizes_they_are_named_for():
    sizes = []
    for shape in SHAPES:
        model = shape.build("meta")
        sizes.append(sum(weight.numel() for weight in model.parameters()) / 1e9)
    assert sizes == [pytest.approx(0.494, abs=0.001), pytest.approx(7.616, abs=0.001)]


def test_a_peak_is_that_of_the_longest_name():
    """Cards of one kind differ by their form."""
    names = ("NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3", "NVIDIA H200", "Unknown 9")
    assert [peak_of(name) for name in names] == [756e12, 989e12, 989e12, None]
