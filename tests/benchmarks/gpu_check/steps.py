"""An update of three steps: its first loss, its packs, memory that runs out, and a rank under FSDP."""

import gc
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import torch
import torch.distributed as dist
from benchmarks.gpu_check.measure import SEED, GpuPlan, preferences
from benchmarks.gpu_check.runner import Report, SkippedError
from benchmarks.gpu_check.sizes import Sizes

from pipeline.config import UpdateConfig
from pipeline.dpo.types import PreferenceGroup, UpdateResult
from pipeline.dpo.update import Update, run_update
from pipeline.errors import OutOfMemoryError
from pipeline.model.distributed import DIRECTORY, World, cut_layers
from pipeline.model.logprobs import sequence_logps, token_logps

STEPS = 3
TOKEN_NOISE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Standard deviation that a token's log-probability may have between packings, in nats. Sums in another order leave
some 1e-6 in float32. In bfloat16 engines differ by 0.03 to 0.05, and one with itself, packed otherwise, by no more."""


def pairs(sizes: Sizes) -> list[PreferenceGroup]:
    """Makes pairs of random tokens, with completions of several lengths; a reference is still to be filled in."""
    plan = GpuPlan(
        prompt=sizes.prompt, answer=sizes.answer, step_tokens=sizes.pairs * (sizes.prompt + 2 * sizes.answer)
    )
    groups = preferences(plan, 2, sizes.model.vocabulary)
    cut = [sizes.answer - row * sizes.answer // (2 * len(groups)) for row in range(len(groups))]
    return [
        replace(group, candidate_token_ids=[group.candidate_token_ids[0], group.candidate_token_ids[1][:length]])
        for group, length in zip(groups, cut, strict=True)
    ]


def settings(groups: Sequence[PreferenceGroup], precision: str, *, parts: int = 1) -> UpdateConfig:
    """Makes the settings of three steps over all pairs, in about so many packs each."""
    budget = -(-sum(group.packed_tokens for group in groups) // parts) + max(group.packed_tokens for group in groups)
    return UpdateConfig(
        precision=precision, learning_rate=1e-4, epochs=STEPS, batch_size=len(groups), token_budget=budget
    )


def referenced(model: Any, groups: Sequence[PreferenceGroup], config: UpdateConfig) -> list[PreferenceGroup]:
    """Fills in what the model itself gives."""
    found = sequence_logps(model, groups, config.token_budget, precision=config.precision)
    return [replace(group, reference_logps=logps) for group, logps in zip(groups, found, strict=True)]


def first_loss(report: Report, sizes: Sizes, device: str) -> None:
    """Takes three steps in each precision: the first loss is ln 2, and it falls."""
    for precision in ("bfloat16", "float32"):
        model, groups = sizes.model.build(device), pairs(sizes)
        config = settings(groups, precision, parts=4)
        groups = referenced(model, groups, config)
        result = run_update(model, groups, config, seed=SEED)  # which checks its first loss itself
        losses = [step.loss for step in result.steps]
        report.note(**{precision: {"first_loss": result.first_loss, "drift": result.reference_drift, "losses": losses}})
        report.note(**{f"{precision}_off_ln2": abs(result.first_loss - math.log(2))})
        report.hold(losses[-1] < losses[0], f"{precision}: the loss did not fall in {STEPS} steps: {losses}")


def packings(report: Report, sizes: Sizes, device: str) -> None:
    """Compares log-probabilities of each token between one pair a pack, all pairs in one, and plain passes."""
    model, groups = sizes.model.build(device), pairs(sizes)
    single, together = (max(group.packed_tokens for group in groups), sum(group.packed_tokens for group in groups))
    for precision in ("bfloat16", "float32"):
        _, apart = token_logps(model, groups, single, precision=precision)
        _, packed = token_logps(model, groups, together, precision=precision)
        plain = [_plain(model, group, precision, device) for group in groups[:4]]
        for name, other in (("packings", packed), ("plain", plain)):
            gaps = [
                a - b
                for one, two in zip(apart, other, strict=False)
                for first, second in zip(one, two, strict=True)
                for a, b in zip(first, second, strict=True)
            ]
            noise = pstdev(gaps)
            report.note(**{
                f"{precision}_{name}_noise": noise,
                f"{precision}_{name}": {"largest": max(map(abs, gaps)), "mean": fmean(gaps), "tokens": len(gaps)},
            })  # fmt: skip
            report.hold(noise <= TOKEN_NOISE[precision], f"{precision}, {name}: a token is off by {noise:.2g} nats")


def _plain(model: Any, group: PreferenceGroup, precision: str, device: str) -> list[list[float]]:
    """Computes the same by `transformers` alone, one sequence at a time."""
    kind, found = torch.device(device).type, []
    for answer in group.candidate_token_ids:
        ids = torch.tensor([[*group.prompt_token_ids, *answer]], device=device)
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_token_ids) - 1 : -1]
        targets = torch.tensor(answer, device=device)[:, None]
        found.append(torch.log_softmax(logits.float(), dim=-1).gather(1, targets)[:, 0].tolist())
    return found


def out_of_memory(report: Report, sizes: Sizes, device: str) -> None:
    """Lets memory run out: packs of half the size give the same update, and a pair that does not fit is named."""
    groups = pairs(sizes)
    whole = settings(groups, "bfloat16")
    half = whole.model_copy(update={"token_budget": whole.token_budget // 2})
    groups = referenced(sizes.model.build(device), groups, half)
    expected, small = _peak_of_update(sizes, groups, half, device)
    _, large = _peak_of_update(sizes, groups, whole, device)
    if device == "cpu":  # which torch knows no limit of: a layer refuses passes above these tokens
        small = large = half.token_budget
    else:
        report.note(peak_half_bytes=small, peak_whole_bytes=large)
    if device != "cpu" and large < 1.05 * small:
        raise SkippedError(f"packs twice as large take {large - small} bytes more, too little to draw a line between")
    said: list[str] = []
    result = _limited(sizes, groups, whole, device, (small + large) // 2, said)
    report.note(token_budget=whole.token_budget, went_on_with=result.token_budget, said=said[:1])
    report.hold(result.token_budget < whole.token_budget, "memory did not run out")
    report.hold(bool(said) and said[0].startswith("out of memory at step"), "nobody was told")
    gap = max(abs(a - b) for one, two in zip(result.final_logps, expected.final_logps, strict=True)
              for a, b in zip(one, two, strict=True))  # fmt: skip
    bound = 6 * TOKEN_NOISE["bfloat16"] * sizes.answer**0.5  # six deviations of a completion's noise
    report.note(final_gap_nats=gap)
    report.hold(gap <= bound, f"the update ended {gap:.3g} nats a sequence away from one of small packs")
    try:
        _limited(sizes, groups, whole, device, 0, [])
        report.hold(False, "a pair that does not fit was trained on")
    except OutOfMemoryError as error:
        report.note(refused=str(error)[:200])
        report.hold("update.gradient_checkpointing" in str(error), f"no remedy is named: {error}")


def _peak_of_update(
    sizes: Sizes, groups: Sequence[PreferenceGroup], config: UpdateConfig, device: str
) -> tuple[UpdateResult, int]:
    if device != "cpu":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    result = run_update(sizes.model.build(device), groups, config, seed=SEED)
    return result, 0 if device == "cpu" else torch.cuda.max_memory_reserved()


def _limited(
    sizes: Sizes, groups: Sequence[PreferenceGroup], config: UpdateConfig, device: str, limit: int, said: list[str]
) -> UpdateResult:
    """Runs the update with so many bytes, or on a processor tokens, to use."""
    gc.collect()  # what an earlier one left
    model = sizes.model.build(device)
    update = Update(model, groups, config, seed=SEED, say=said.append)
    if device == "cpu":
        _refuse(model, limit)
        return update.run()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    least = torch.cuda.memory_reserved() + 2**26  # what is there, and nothing that a pass could use
    torch.cuda.set_per_process_memory_fraction(max(limit, least) / total)
    try:
        return update.run()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def _refuse(model: Any, longest: int) -> None:
    def refuse(_module: Any, inputs: Any) -> None:
        if torch.is_grad_enabled() and inputs[0].shape[1] > longest:
            raise torch.OutOfMemoryError("out of memory, as this check wants it")

    model.model.layers[-1].register_forward_pre_hook(refuse)


def one_rank(report: Report, sizes: Sizes, device: str) -> None:
    """Runs an update under FSDP with a single rank: NCCL on a GPU, gloo on a processor."""
    if device != "cpu" and not dist.is_nccl_available():
        raise SkippedError("torch was built without NCCL")
    groups, model = pairs(sizes), sizes.model.build(device)
    config = settings(groups, "bfloat16", parts=4)
    groups = referenced(model, groups, config)
    alone = run_update(model, groups, config, seed=SEED)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as directory:
        os.environ |= {
            DIRECTORY: directory,
            "RANK": "0",
            "WORLD_SIZE": "1",
            "LOCAL_RANK": "0",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        world = World.join(torch.device(device).type)
        model = sizes.model.build("cpu")
        model.load_state_dict(sizes.model.build(device).state_dict())  # a card draws other numbers
        cut_layers(model, world, precision="bfloat16")
        ranked = run_update(model, groups, config, seed=SEED)
        report.note(backend=dist.get_backend(), first_loss=ranked.first_loss)
        dist.destroy_process_group()
    gap = max(abs(a - b) for one, two in zip(ranked.final_logps, alone.final_logps, strict=True)
              for a, b in zip(one, two, strict=True))  # fmt: skip
    bound = 6 * TOKEN_NOISE["bfloat16"] * sizes.answer**0.5
    report.note(final_gap_nats=gap)
    report.hold(gap <= bound, f"a rank ended {gap:.3g} nats a sequence away from an update without ranks")
