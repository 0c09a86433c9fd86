"""The GPU's script in miniature on a processor: every check runs, and one that fails, hangs or dies stops no other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.gpu_check import kernels
from benchmarks.gpu_check.measure import GpuPlan
from benchmarks.gpu_check.runner import Check, Result, SkippedError, run_all
from benchmarks.gpu_check.sizes import FULL
from benchmarks.gpu_check.speed import planned
from torch.nn.attention import flex_attention as torch_flex

from pipeline.config import LoraConfig
from pipeline.packing import packing

TESTS = Path(__file__).parents[1]
NAMES = [
    "device", "compilation", "first loss", "attention", "packings", "speed, small, all weights", "speed, large, LoRA",
    "speed, large, all weights", "prefix sharing", "out of memory", "head", "ranks", "speed, small, LoRA",
]  # fmt: skip
HOUR = 3600  # seconds; what is given to a check that is not to be stopped, on however busy a machine


def run_script(out, *arguments):
    variables = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_check", "--out", str(out), *arguments],
        env={**os.environ, **variables}, capture_output=True, text=True, timeout=1500, check=False,
    )  # fmt: skip


def test_every_check_runs_in_miniature(tmp_path):
    """A line of JSON each, in the order of the script; the same lines in the file; a table after them."""
    done = run_script(tmp_path / "deep" / "found.json", "--miniature", "--budget", str(HOUR))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["name"] for line in lines] == NAMES
    assert all(line["ok"] and not line["faults"] for line in lines)
    written = json.loads((tmp_path / "deep" / "found.json").read_text())
    assert written["checks"] == lines
    assert {"before", "after", "budget"} <= written.keys()
    assert done.stdout.count("| ok ") == len(NAMES)
    found = {line["name"]: line["values"] for line in lines}
    assert found["first loss"]["bfloat16_off_ln2"] < 0.03 * 0.7  # the tolerance of the update's own check
    memory = found["out of memory"]
    assert memory["went_on_with"] == memory["token_budget"] // 2
    assert "turn on update.gradient_checkpointing" in memory["refused"]
    assert found["prefix sharing"]["tokens"] == {"shared": 32 + 4 * 7, "repeated": 4 * (32 + 7)}
    assert found["ranks"]["backend"] == "gloo"


def test_without_a_gpu_it_says_what_to_do(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run_script(tmp_path / "none.json")
    assert done.returncode == 2
    assert "torch finds no GPU here: --miniature" in done.stderr


def right(report, _sizes, _device):
    report.note(value=1)


def wrong(report, _sizes, _device):
    report.note(value=2)
    report.hold(False, "it does not hold")


def broken(report, _sizes, _device):
    report.note(value=3)
    raise RuntimeError("something broke")


def dead(report, _sizes, _device):
    report.note(value=4)
    os.kill(os.getpid(), signal.SIGKILL)


def endless(report, _sizes, _device):
    report.note(value=5, parts={"first": 1})
    report.note(parts={"second": 2})
    time.sleep(HOUR)


def absent(_report, _sizes, _device):
    raise SkippedError("a card with wings is not here")


def test_a_check_that_fails_hangs_or_dies_stops_no_other():
    checks = [Check(run.__name__, run, 5.0 if run is endless else HOUR) for run in
              (wrong, broken, dead, endless, absent, right)]  # fmt: skip
    told: list[Result] = []
    results = run_all(checks, "cpu", HOUR, miniature=True, told=told.append)
    assert told == results
    by_name = {result.name: result for result in results}
    assert {name: result.ok for name, result in by_name.items()} == {
        "wrong": False, "broken": False, "dead": False, "endless": False, "absent": None, "right": True,
    }  # fmt: skip
    assert by_name["wrong"].faults == ["it does not hold"]
    assert by_name["broken"].faults == ["RuntimeError: something broke"]
    assert by_name["dead"].faults == ["its process died of signal 9"]
    assert by_name["endless"].faults == ["stopped after 5 s"]
    assert by_name["absent"].skipped == "a card with wings is not here"
    # What was found before it ended is kept.
    assert [by_name[name].values["value"] for name in ("wrong", "broken", "dead", "right")] == [2, 3, 4, 1]
    assert by_name["endless"].values == {"value": 5, "parts": {"first": 1, "second": 2}}


def test_what_the_budget_does_not_hold_is_skipped():
    results = run_all([Check("right", right, HOUR)] * 2, "cpu", 1.0, miniature=True, told=lambda _result: None)
    assert [result.skipped for result in results] == ["the budget of 1 s is spent"] * 2
    assert [result.ok for result in results] == [None, None]


@pytest.mark.parametrize("tokens", [1, 2, 3, 128, 129, 1000])
def test_packs_have_the_length_that_is_compiled_for(tokens):
    assert len(kernels.pack_of(tokens).input_ids_T) == tokens


def test_a_wrong_mask_is_found(monkeypatch):
    """A token that sees the block after its own one, as if the mask were not causal."""
    for module, name in ((packing, "BLOCK_DEVICES"), (torch_flex, "_validate_device")):
        monkeypatch.setattr(module, name, getattr(module, name))  # to be as it was, after `blocks_on`
    place = kernels.blocks_on("cpu")
    layout = kernels.pack_of(300).on(place).layout
    assert kernels._mask_is_right(layout, None)
    right_one = layout._sees(None)
    monkeypatch.setattr(type(layout), "_sees", lambda *_: lambda b, h, q, k: right_one(b, h, q, k) | (k == q + 100))
    assert not kernels._mask_is_right(layout, None)


def test_seven_billion_weights_are_counted_before_they_are_made():
    """16 bytes a weight, 2 of a copy in bfloat16, and what a pack keeps: more than a card of 141 GB. With an adapter
    the base alone is there, without gradients and moments.
    """
    prompt, answer, budget, tokens = FULL.speed
    plan = GpuPlan(prompt=prompt, answer=answer, token_budget=budget, step_tokens=tokens)
    parts = planned(FULL.shapes[1], plan)
    assert parts["weights"] == parts["gradients"] == parts["moments"] / 2 == pytest.approx(4 * 7.615e9, rel=1e-3)
    assert 141e9 < sum(parts.values()) < 160e9
    adapted = planned(FULL.shapes[1], GpuPlan(**{**vars(plan), "lora": LoraConfig(rank=16)}))
    assert sum(adapted.values()) < 60e9
