"""How fast an update is and what memory it takes, against what `rondo plan` says; and what a shared prefix saves."""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from statistics import median
from time import perf_counter
from typing import Any

import torch
from benchmarks.gpu_check.kernels import relative
from benchmarks.gpu_check.measure import GpuFigures, GpuPlan, GpuShape, measure, peak_of, preferences
from benchmarks.gpu_check.runner import Report, SkippedError
from benchmarks.gpu_check.sizes import Sizes

from pipeline.config import LoraConfig
from pipeline.dpo.types import PreferenceGroup
from pipeline.errors import OutOfMemoryError
from pipeline.model.logprobs import pack_logps, sum_by_sequence
from pipeline.packing.attention import shared_prefix_attention
from pipeline.packing.packing import Pack, TokenGroup, pack_groups
from pipeline.planning.devices import DEVICES, Parts
from pipeline.planning.memory import update_memory
from pipeline.planning.shapes import ModelShape
from pipeline.planning.work import Workload
from pipeline.recipe import Recipe

AIM_UTILISATION = 0.225
AIM_SHARING = 1.7
RANK = 16
ROOM = 0.97
"""Share of the free memory that a plan may fill."""
OVER_PLAN = 1.1
"""Times the planned bytes that the peak may have: the plan is what a recipe's token budget is chosen by."""


def small_all(report: Report, sizes: Sizes, device: str) -> None:
    _update(report, sizes, device, sizes.shapes[0], lora=None)


def small_lora(report: Report, sizes: Sizes, device: str) -> None:
    _update(report, sizes, device, sizes.shapes[0], lora=LoraConfig(rank=RANK))


def large_all(report: Report, sizes: Sizes, device: str) -> None:
    _update(report, sizes, device, sizes.shapes[-1], lora=None)


def large_lora(report: Report, sizes: Sizes, device: str) -> None:
    _update(report, sizes, device, sizes.shapes[-1], lora=LoraConfig(rank=RANK))


def _update(report: Report, sizes: Sizes, device: str, shape: GpuShape, *, lora: LoraConfig | None) -> None:
    """Measures steps of pairs, after one that compiles, of as much of the model as the memory holds."""
    prompt, answer, budget, tokens = sizes.speed
    plan = GpuPlan(prompt=prompt, answer=answer, token_budget=budget, step_tokens=tokens, lora=lora)
    free = torch.cuda.mem_get_info()[0] if device != "cpu" else None
    report.note(model=shape.name, free_bytes=free, prompt=prompt, answer=answer, token_budget=budget)
    for cut, trial, said in _smaller(shape, plan):
        parts = planned(cut, trial)
        bytes_ = int(sum(parts.values()))
        if free is not None and bytes_ > ROOM * free:
            report.note(did_not_fit={said: bytes_})
            continue
        try:
            figures = measure(cut, trial, 2, device)
        except (torch.OutOfMemoryError, OutOfMemoryError) as error:
            report.note(ran_out={said: str(error)[:200]})
        else:
            _note(report, figures, parts, said, device, layers=cut.layers)
            return
        gc.collect()  # outside of the handler, whose traceback would keep the tensors alive
        torch.cuda.empty_cache()
    raise SkippedError("the card's memory holds no part of this model that is worth measuring")


def _smaller(shape: GpuShape, plan: GpuPlan) -> Iterator[tuple[GpuShape, GpuPlan, str]]:
    """Yields what is measured, from the whole to less of it: 8-bit moments, if they are installed, and fewer layers."""
    moments = f"adapter of rank {RANK}" if plan.lora else "float32 moments"
    yield shape, plan, f"all {shape.layers} layers, {moments}"
    if plan.lora is None and find_spec("bitsandbytes"):
        yield shape, replace(plan, optimizer="adamw_8bit"), f"all {shape.layers} layers, 8-bit moments"
    for layers in (shape.layers * 6 // 7, shape.layers * 5 // 7, shape.layers // 2, shape.layers // 4):
        if 0 < layers < shape.layers:
            yield replace(shape, layers=layers), plan, f"{layers} of {shape.layers} layers, {moments}"


def planned(shape: GpuShape, plan: GpuPlan) -> Parts:
    """Counts the bytes of the update as `rondo plan` does, without those of a process before it has a model."""
    width = shape.hidden // shape.heads
    policy = ModelShape(
        shape.layers, shape.hidden, shape.hidden, shape.key_heads * width, shape.intermediate, shape.vocabulary,
        tied=shape.tied,
    )  # fmt: skip
    count = len(preferences(plan, 2, 2))
    recipe = Recipe.model_validate({
        "name": "gpu-check", "policy": {"source": "pretrained", "path": shape.name}, "judge": {"kind": "vader"},
        "prompts": {"source": "generated", "corpus": "instructions", "train": max(64, count)},
        "sampling": {"candidates": 2, "max_tokens": plan.answer, "prompts_per_round": max(16, count)},
        "devices": {"sampler": "cuda", "trainer": "cuda"},
        "update": plan.settings(2, count).model_dump(),
    })  # fmt: skip
    each = plan.prompt + 2 * (plan.answer - 1)
    work = Workload(recipe, policy, None, plan.prompt, plan.answer, preferences=count, preference_tokens=each)
    parts = update_memory(work, DEVICES["h200"], 1)
    del parts["framework"]
    return parts


def _note(report: Report, figures: GpuFigures, parts: Parts, said: str, device: str, *, layers: int) -> None:
    peak = None if device == "cpu" else peak_of(torch.cuda.get_device_name())
    utilisation = None if peak is None else figures.flops / figures.seconds / peak
    report.note(
        measured=said, layers=layers, preferences=figures.preferences, tokens=figures.tokens,
        ms=round(1e3 * figures.seconds, 1), tokens_per_second=round(figures.tokens / figures.seconds, 1),
        flops=figures.flops, utilisation=utilisation, aim=AIM_UTILISATION, used_budget=figures.token_budget,
        aim_met=None if utilisation is None else utilisation >= AIM_UTILISATION,
        planned_bytes=int(sum(parts.values())), planned={name: int(size) for name, size in parts.items()},
    )  # fmt: skip
    if figures.peak_bytes is None:
        report.note(peak_bytes=None, why_no_peak="a processor's memory is not torch's to count")
        return
    ratio = figures.peak_bytes / sum(parts.values())
    report.note(peak_bytes=figures.peak_bytes, peak_over_plan=round(ratio, 3))
    report.hold(ratio <= OVER_PLAN, f"the peak is {ratio:.2f} times what rondo plan says")


def prefix_sharing(report: Report, sizes: Sizes, device: str) -> None:
    """Measures forward and backward pass of four completions, with their prompt once and with it four times."""
    prompt, answer = sizes.shared
    model = sizes.sharing.build(device)
    (group,) = preferences(GpuPlan(prompt=prompt, answer=answer, step_tokens=1), 4, sizes.sharing.vocabulary)
    packs = {"shared": _pack([group]), "repeated": _pack(_each_with_its_prompt(group))}
    found = {name: _passes(model, pack, device) for name, pack in packs.items()}
    seconds = {name: took for name, (took, _) in found.items()}
    ratio = seconds["repeated"] / seconds["shared"]
    report.note(
        model=sizes.sharing.name, prompt=prompt, completions=4, completion=answer,
        tokens={name: len(pack.input_ids_T) for name, pack in packs.items()},
        ms={name: round(1e3 * took, 2) for name, took in seconds.items()},
        times_as_fast=round(ratio, 3), aim=AIM_SHARING, aim_met=ratio >= AIM_SHARING,
    )  # fmt: skip
    off = relative(found["shared"][1], found["repeated"][1])
    report.note(logps_apart=off)
    # Sums of some 12 nats a token, with noise of 0.05 nats a token: 0.4% of one token, less of a sum of many.
    report.hold(off <= 4e-3, f"log-probabilities differ by {off:.2g} with the prefix shared")


def _pack(groups: Sequence[TokenGroup]) -> Pack:
    (pack,) = pack_groups(groups, sum(group.packed_tokens for group in groups))
    return pack


def _each_with_its_prompt(group: PreferenceGroup) -> list[TokenGroup]:
    return [
        TokenGroup(f"{group.prompt_id}-{number}", group.prompt_token_ids, [answer])
        for number, answer in enumerate(group.candidate_token_ids)
    ]


def _passes(model: Any, pack: Pack, device: str, repetitions: int = 3) -> tuple[float, torch.Tensor]:
    """Returns the median seconds of passes after one that compiles, and the completions' log-probabilities."""
    on_gpu, seconds = device != "cpu", []
    for _ in range(repetitions + 1):
        if on_gpu:
            torch.cuda.synchronize()
        started = perf_counter()
        with shared_prefix_attention(model):
            logps_S = sum_by_sequence(pack_logps(model, pack, precision="bfloat16")[0], pack)
            logps_S.sum().backward()
        model.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(perf_counter() - started)
    return median(seconds[1:]), logps_S.detach()
