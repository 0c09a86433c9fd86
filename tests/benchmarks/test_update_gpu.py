"""The lines of the GPU benchmark, at tiny shapes on CPU, so that they run where there is a GPU."""

import json
from dataclasses import replace

import pytest
import torch
from benchmarks.update_gpu import (
    GpuPlan,
    GpuShape,
    gpu_json,
    gpu_table,
    measure_shape,
    peak_of,
    preferences,
    step_flops,
)
from rich.console import Console

TINY = GpuShape("tiny", hidden=64, intermediate=96, layers=2, heads=4, key_heads=2, vocabulary=100, tied=True)
PLAN = GpuPlan(shapes=(TINY,), prompt=12, answer=10, step_tokens=100, token_budget=96, steps=2)


def test_the_tables_are_made(capsys):
    rows = [measure_shape(TINY, PLAN, candidates, "cpu") for candidates in PLAN.candidates]
    for row, preferences_, tokens in zip(rows, (3, 2, 1), (3 * 30, 2 * 48, 84), strict=True):
        assert (row.layers, row.preferences, row.tokens, row.peak_bytes) == (2, preferences_, tokens, None)
        assert row.seconds > 0
    Console(width=200).print(gpu_table(rows, "cpu", 1e12), gpu_table(rows, "cpu", None))
    printed = capsys.readouterr().out
    assert "peak 1 TFLOP/s" in printed
    assert "give --peak" in printed
    assert json.loads(json.dumps(gpu_json(rows, 1e12)))[2]["candidates"] == 8


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
    from benchmarks.update_gpu import SHAPES

    sizes = []
    for shape in SHAPES:
        model = shape.build("meta")
        sizes.append(sum(weight.numel() for weight in model.parameters()) / 1e9)
    assert sizes == [pytest.approx(0.494, abs=0.001), pytest.approx(7.616, abs=0.001)]


def test_memory_that_does_not_hold_the_model_is_met_with_half_its_layers(monkeypatch):
    from benchmarks import update_gpu

    original = update_gpu.measure

    def small_memory(cut, *arguments):
        if cut.layers > 1:
            raise torch.OutOfMemoryError("full")
        return original(cut, *arguments)

    monkeypatch.setattr(update_gpu, "measure", small_memory)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    row = measure_shape(TINY, PLAN, 2, "cpu")
    assert (row.layers, row.shape.layers) == (1, 2)


def test_a_peak_that_is_given_comes_first():
    assert peak_of("cpu", 5e12) == 5e12
    assert peak_of("cpu", None) is None
