"""The output head: log-probabilities by chunks of several sizes, against all logits at once, and against others'."""

from collections.abc import Callable
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from benchmarks.gpu_check.kernels import relative
from benchmarks.gpu_check.runner import Report
from benchmarks.gpu_check.sizes import Sizes
from torch import Tensor

from pipeline.model.logprobs import CHUNK_ELEMENTS, chunked_logps

Head = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From hidden states, weight and targets to log-probabilities."""

REPETITIONS = 3
TOLERANCE = 1e-2
"""Of gradients in bfloat16, relative to those of float32 logits from the same inputs: a product is rounded to 8 bits
once for logits and once for their gradient, 0.1% each on average; of log-probabilities near 12 nats far less."""
LARGEST_CHUNK = 1 << 28
"""Logits of a chunk, 1 GiB in float32."""


def variants(report: Report, sizes: Sizes, device: str) -> None:
    """Times forward and backward pass of the head, in bfloat16, and says what each holds at its peak."""
    rows, width, vocabulary = sizes.head
    hidden, weight, target = _drawn(rows, width, vocabulary, device)
    usual = CHUNK_ELEMENTS[torch.device(device).type]
    few = max(1, min(rows, LARGEST_CHUNK // vocabulary))  # so that all logits at once fit
    right = _gradients(_plain, hidden[:few], weight, target[:few], torch.float32)
    found = _gradients(_chunked(usual // 4), hidden[:few], weight, target[:few], torch.bfloat16)
    names = ("logps", "hidden_gradient", "weight_gradient")
    errors = {name: relative(a, b) for name, a, b in zip(names, found, right, strict=True)}
    report.note(**errors, rows_compared=few)
    report.hold(max(errors.values()) <= TOLERANCE, f"the head is off by {errors}, more than {TOLERANCE:g}")
    del right, found
    sizes_of_chunk = {f"{elements >> 20} million logits": elements for elements in (usual // 4, usual, LARGEST_CHUNK)}
    for name, elements in sizes_of_chunk.items():
        report.note(**{name: _timed(_chunked(elements), hidden, weight, target, device)})
    others = [name for name in ("liger_kernel", "cut_cross_entropy") if find_spec(name)]
    if "liger_kernel" in others:
        report.note(liger=_timed(_liger, hidden, weight, target, device))
    report.note(not_here=[name for name in ("liger_kernel", "cut_cross_entropy") if name not in others])


def _drawn(rows: int, width: int, vocabulary: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(rows, width, generator=generator, device=device)
    weight = torch.randn(vocabulary, width, generator=generator, device=device) * width**-0.5
    target = torch.randint(vocabulary, (rows,), generator=generator, device=device)
    return hidden.bfloat16(), weight.bfloat16(), target


def _plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return torch.log_softmax((hidden @ weight.T).float(), dim=-1).gather(1, target[:, None])[:, 0]


def _chunked(elements: int) -> Head:
    def chunked(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return chunked_logps(hidden, weight, target, chunk_rows=max(1, elements // len(weight)))[0]

    return chunked


def _liger(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    return -LigerFusedLinearCrossEntropyLoss(reduction="none")(weight, hidden, target)


def _gradients(function: Head, hidden: Tensor, weight: Tensor, target: Tensor, kind: torch.dtype) -> list[Tensor]:
    leaves = [part.detach().to(kind).requires_grad_() for part in (hidden, weight)]
    logps = function(*leaves, target)
    (logps * torch.linspace(-1, 1, len(target), device=logps.device)).sum().backward()
    return [logps.detach(), *(leaf.grad for leaf in leaves)]


def _timed(function: Head, hidden: Tensor, weight: Tensor, target: Tensor, device: str) -> dict[str, Any]:
    """Returns the least milliseconds of some passes after one that is not counted, and the bytes of its peak."""
    on_gpu, seconds, before = device != "cpu", [], 0
    for _ in range(REPETITIONS + 1):
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        started = perf_counter()
        _gradients(function, hidden, weight, target, torch.bfloat16)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(perf_counter() - started)
    peak = torch.cuda.max_memory_allocated() - before if on_gpu else None
    return {"ms": round(1e3 * min(seconds[1:]), 3), "peak_bytes": peak}
