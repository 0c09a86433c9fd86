"""Log-probabilities of candidates under a `transformers` causal language model.

Hidden states are projected on the vocabulary only where a candidate token is predicted, and in chunks. No ``[N, V]``
tensor outlives a chunk in the forward pass, nor in the backward pass, which computes the chunk's logits again.

Liger's fused linear cross-entropy (0.8.5, ``reduction="none"``) takes a gradient for each token and computes the logits
again in the backward pass, as here. It has no squares of probabilities for WPO, and what it saves are passes over a
chunk of logits, not products of matrices. It needs Triton; as long as nobody has measured it on a GPU against this, it
is left out.

Axes: ``R`` rows of a pack, ``L`` tokens of a row, ``N`` predicted tokens, ``S`` candidates, ``D`` width of
the hidden state, ``V`` vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from pipeline.errors import PromptTooLongError, UnsupportedModelError
from pipeline.model.distributed import World, own_packs, reshard, run_whole, world_of
from pipeline.model.model_config import context_limits, length_boundaries, logit_scale, logit_softcap
from pipeline.model.output_head import head_weight
from pipeline.packing.attention import shared_prefix_attention
from pipeline.packing.packing import Pack, TokenGroup
from pipeline.packing.text_decoder import text_decoder

Precision = Literal["float32", "bfloat16"]
"""Of the forward pass; the weights are float32 either way."""

CHUNK_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}
"""Logits that may exist at one time: 16 MiB in float32, unless that is less than CHUNK_ROWS rows. On a GPU 512 MiB, so
that a chunk of a large vocabulary has enough rows for each reading of the weights (reckoned, not measured).
"""

CHUNK_ROWS = 128
"""Fewest rows of a chunk: with 32 the products take half as long again on CPU, as each chunk reads all weights."""


class _ChunkedLogProbs(torch.autograd.Function):  # type: ignore[misc]
    """log softmax(softcap(hidden @ weight.T + bias))[target], and its gradient, chunk by chunk over N.

    The logits of a single chunk are kept for the backward pass: it would need that memory anyway.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_N_D: torch.Tensor,
        weight_V_D: torch.Tensor,
        bias_V: torch.Tensor | None,
        target_N: torch.Tensor,
        softcap: float | None,
        chunk: int,
        squares: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        wide = torch.promote_types(hidden_N_D.dtype, torch.float32)
        normalizer_N = torch.empty(len(target_N), dtype=wide, device=hidden_N_D.device)
        logps_N = torch.empty_like(normalizer_N)
        square_N = torch.empty_like(normalizer_N) if squares else None
        chunks = _chunks(len(target_N), chunk)
        for rows in chunks:
            kept = _logits(hidden_N_D[rows], weight_V_D, bias_V, softcap)
            logits, _ = kept
            normalizer_N[rows] = torch.logsumexp(logits, dim=-1)
            logps_N[rows] = logits.gather(1, target_N[rows, None])[:, 0] - normalizer_N[rows]
            if square_N is not None:
                square_N[rows] = torch.logsumexp(2 * logits, dim=-1) - 2 * normalizer_N[rows]
        ctx.save_for_backward(hidden_N_D, weight_V_D, bias_V, target_N, normalizer_N)
        ctx.softcap, ctx.chunks, ctx.kept = softcap, chunks, kept if len(chunks) == 1 else None
        if square_N is not None:
            ctx.mark_non_differentiable(square_N)
        return logps_N, square_N

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_N: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        hidden_N_D, weight_V_D, bias_V, target_N, normalizer_N = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_N_D)
        # Sums over chunks are float32: in bfloat16 the error grows with their number, to 1% over a hundred.
        wide = normalizer_N.dtype
        grad_weight = torch.zeros_like(weight_V_D, dtype=wide) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias_V) if ctx.needs_input_grad[2] else None
        for rows in ctx.chunks:
            logits, slope = ctx.kept or _logits(hidden_N_D[rows], weight_V_D, bias_V, ctx.softcap)
            # d logp / d logits = onehot(target) - softmax
            grad_logits = (logits - normalizer_N[rows, None]).exp_().mul_(-grad_N[rows, None])
            grad_logits.scatter_add_(1, target_N[rows, None], grad_N[rows, None])
            if slope is not None:
                grad_logits.mul_(slope)
            grad_logits = grad_logits.to(hidden_N_D.dtype)
            torch.mm(grad_logits, weight_V_D, out=grad_hidden[rows])
            if grad_weight is not None:
                if grad_logits.dtype == wide:
                    grad_weight.addmm_(grad_logits.T, hidden_N_D[rows])
                else:
                    grad_weight.add_(grad_logits.T @ hidden_N_D[rows])
            if grad_bias is not None:
                grad_bias.add_(grad_logits.sum(0))
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _chunks(length: int, chunk: int) -> list[slice]:
    return [slice(start, min(start + chunk, length)) for start in range(0, length, chunk)]


def _logits(
    hidden_N_D: torch.Tensor, weight_V_D: torch.Tensor, bias_V: torch.Tensor | None, softcap: float | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes logits in at least float32, and their slope with respect to the uncapped logits if there is a cap."""
    with torch.autocast(hidden_N_D.device.type, enabled=False):
        logits = hidden_N_D @ weight_V_D.T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if bias_V is not None:
        logits = logits + bias_V
    if softcap is None:
        return logits, None
    bent = torch.tanh(logits / softcap)
    return bent * softcap, 1 - bent * bent


def chunked_logps(
    hidden_N_D: torch.Tensor,
    weight_V_D: torch.Tensor,
    target_N: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    softcap: float | None = None,
    squares: bool = False,
    chunk_rows: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes the log-probability of each target under ``softmax(hidden @ weight.T + bias)``, in nats.

    It has shape ``[N]``, and is float32 or wider. ``softcap`` c replaces each logit z by ``c * tanh(z / c)``. With
    ``squares`` also ``log sum_v p(v)^2`` of each distribution, shape ``[N]``, without gradient; else None. The logits
    of ``chunk_rows`` targets exist at a time, by default about `CHUNK_ELEMENTS` in all. Values and gradient equal those
    of the plain formula.
    """
    device = hidden_N_D.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_N_D, weight_V_D = hidden_N_D.to(dtype), weight_V_D.to(dtype)
    chunk = chunk_rows or max(CHUNK_ROWS, CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS["cpu"]) // weight_V_D.shape[0])
    logps_N: torch.Tensor
    square_N: torch.Tensor | None
    logps_N, square_N = _ChunkedLogProbs.apply(hidden_N_D, weight_V_D, bias_V, target_N, softcap, chunk, squares)
    return logps_N, square_N


def pack_logps(
    model: Any, pack: Pack, *, squares: bool = False, precision: Precision = "float32"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Computes `chunked_logps` of each predicted token of a pack, differentiable in the model's weights."""
    if pack.parts:
        found = [pack_logps(model, part.pack, squares=squares, precision=precision) for part in pack.parts]
        back_N = torch.cat([part.places_N for part in pack.parts]).argsort().to(found[0][0].device)
        logps_N = torch.cat([logps for logps, _ in found])[back_N]
        return logps_N, torch.cat([square for _, square in found if square is not None])[back_N] if squares else None
    device = output_head(model).weight.device.type
    with shared_prefix_attention(model), torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
        both: tuple[torch.Tensor, torch.Tensor | None] = run_whole(model, _pack_logps, pack, squares)
        return both


def _pack_logps(model: Any, pack: Pack, squares: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    head, scale = output_head(model), logit_scale(model.config)
    device, bias_V = head.weight.device, getattr(head, "bias", None)
    inputs = pack.on(device)
    hidden_1_T_D = text_decoder(model)(
        input_ids=inputs.input_ids_T[None],
        position_ids=inputs.position_ids_T[None],
        sequence_layout=inputs.layout,
        use_cache=False,
    ).last_hidden_state
    hidden_N_D = hidden_1_T_D[0].index_select(0, pack.source_N.to(device))
    return chunked_logps(
        hidden_N_D if scale == 1 else hidden_N_D * scale,
        head_weight(head),
        pack.target_N.to(device),
        bias_V=bias_V if bias_V is None or scale == 1 else bias_V * scale,
        softcap=logit_softcap(model.config),
        squares=squares,
    )


def output_head(model: Any) -> Any:
    """Returns the projection of hidden states on the vocabulary.

    Raises:
        UnsupportedModelError: there is none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no vocabulary: load it with AutoModelForCausalLM")
    return head


def pack_sums(model: Any, pack: Pack, *, precision: Precision = "float32") -> torch.Tensor:
    """Computes the log-probability of each candidate of a pack, summed over its tokens, in nats, shape ``[S]``."""
    return sum_by_sequence(pack_logps(model, pack, precision=precision)[0], pack)


def sum_by_sequence(logps_N: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Sums over the tokens of each candidate, shape ``[S]``."""
    sums_S = torch.zeros(sum(pack.candidates), dtype=logps_N.dtype, device=logps_N.device)
    return sums_S.index_add(0, pack.sequence_N.to(logps_N.device), logps_N)


def sequence_logps(
    model: Any, groups: Sequence[TokenGroup], token_budget: int, *, precision: Precision = "float32"
) -> list[list[float]]:
    """Computes the log-probability of each candidate given its prompt, in nats, summed over its tokens, for each group.

    The model is put into evaluation mode. No gradient is kept. Over several ranks each has all of the result.

    Raises:
        PromptTooLongError: a group is longer than the budget, or a sequence longer than the model's context.
    """
    result = [[0.0] * len(group.candidate_token_ids) for group in groups]
    for pack, logps_N in _passes(model, groups, token_budget, precision):
        sums = iter(sum_by_sequence(logps_N, pack).tolist())
        for index in pack.groups:
            result[index] = [next(sums) for _ in result[index]]
    return _of_all_ranks(result, world_of(model))


def token_logps(
    model: Any, groups: Sequence[TokenGroup], token_budget: int, *, precision: Precision = "float32"
) -> tuple[list[list[float]], list[list[list[float]]]]:
    """Computes the same as `sequence_logps`, to the bit, and beside it the log-probability of each token, in nats."""
    sums = [[0.0] * len(group.candidate_token_ids) for group in groups]
    tokens = [[[0.0] * len(answer) for answer in group.candidate_token_ids] for group in groups]
    for pack, logps_N in _passes(model, groups, token_budget, precision):
        of_pack, each = iter(sum_by_sequence(logps_N, pack).tolist()), iter(logps_N.tolist())
        for index in pack.groups:
            sums[index] = [next(of_pack) for _ in sums[index]]
            tokens[index] = [[next(each) for _ in answer] for answer in tokens[index]]
    world = world_of(model)
    flat = iter(_of_all_ranks([answer for group in tokens for answer in group], world))
    return _of_all_ranks(sums, world), [[next(flat) for _ in group] for group in tokens]


def _passes(
    model: Any, groups: Sequence[TokenGroup], token_budget: int, precision: Precision
) -> Iterator[tuple[Pack, torch.Tensor]]:
    """Yields each pack of this rank with the log-probabilities of its predicted tokens, without gradient."""
    model.eval()
    check_context(model, groups)
    for pack in own_packs(groups, token_budget, world_of(model), length_boundaries(model.config)):
        with torch.no_grad():
            logps_N, _ = pack_logps(model, pack, precision=precision)
        yield pack, logps_N
    reshard(model)


def _of_all_ranks(found: list[list[float]], world: World) -> list[list[float]]:
    """Adds up the numbers of all ranks; each has zeros in place of those that others computed."""
    if world.size == 1:
        return found
    flat = torch.tensor([number for row in found for number in row], dtype=torch.float64, device=world.device)
    numbers = iter(world.sum(flat).tolist())
    return [[next(numbers) for _ in row] for row in found]


def check_context(model: Any, groups: Sequence[TokenGroup]) -> None:
    """Raises PromptTooLongError if a prompt with its longest candidate exceeds the model's context."""
    known = context_limits(model.config)
    if not known or not groups:
        return
    name, limit = min(known.items(), key=lambda item: item[1])
    longest = max(groups, key=lambda group: group.longest_sequence)
    if longest.longest_sequence > limit:
        raise PromptTooLongError(
            f"prompt {longest.prompt_id} with its longest candidate has {longest.longest_sequence} tokens, "
            f"and the model's {name} is {limit}: shorten the prompt or the candidates"
        )
