"""Whether a model can be trained exactly: a packed forward pass gives what each sequence gives alone.

Asked before any work, and again, shortly, when an update opens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from pipeline.errors import RondoError, UnsupportedModelError
from pipeline.model.distributed import reshard, world_of
from pipeline.model.logprobs import output_head, pack_sums
from pipeline.model.model_config import context_limits, length_boundaries, named_lengths, special_token_ids
from pipeline.packing.attention import attention_of
from pipeline.packing.packing import TokenGroup, pack_groups

CLOSE, CLOSE_IN_HALF = 1e-3, 0.25
"""Nats over the few tokens of a probe: float32 agrees to 1e-5, and half precision to 0.1."""

PROBE_WORK = 3e12
"""Most additions and multiplications that the probes of one length may take, times two: about a minute of a slow core.
A length that would take more is not tried.
"""

LONGEST_PROBE = 8192
"""Tokens. Plain attention holds a square of them for each head."""

_TOKENS_COMPUTED = 12  # of the probes of a length, as multiples of it
_PROMPT = 32  # tokens of a prompt in a pack of many


def check_model(model: Any) -> None:
    """Compares a packed forward pass with the model's own on three short sequences.

    This finds models whose attention cannot be replaced, and models whose layers mix tokens in another way. It also
    finds models that change the logits after the projection in a way that is not handled here.

    Raises:
        UnsupportedModelError: the two differ.
    """
    _compare(model, _short_probe(model))


def check_before_work(model: Any, context: int, token_budget: int) -> list[str]:
    """Compares packed sequences with the same ones alone, under plain attention, at each length that the type names.

    A pack of short sequences is made longer than the length, as a type may look at the pass rather than at a sequence.
    And sequences on both sides of it share a pack.

    Args:
        context: tokens of the longest sequence of the run; one that is shorter than a length is never changed by it.
        token_budget: tokens of the longest pack.

    Returns:
        The lengths that were not tried, as this would take too long for a model of this size.

    Raises:
        UnsupportedModelError: the two differ, or the model cannot compute a pack at all.
    """
    _compare(model, _short_probe(model), plainly=True)
    weights = sum(parameter.numel() for parameter in model.parameters())
    longest = min(LONGEST_PROBE, int(PROBE_WORK / (2 * weights * _TOKENS_COMPUTED)))
    longest_sequence = min([context, *context_limits(model.config).values()])
    untried = []
    for length, name in sorted(named_lengths(model.config).items()):
        if length >= max(longest_sequence, token_budget):
            break
        if length > longest:
            untried.append(f"{name} {length}")
            continue
        if length < token_budget:
            with _advising(f"packs of at most {length} tokens ({name}) agree: set update.token_budget to {length}"):
                _compare(model, _probes_beyond(model, length, longest_sequence), plainly=True)
        if length < longest_sequence:
            with _advising(f"sequences of at most {length} tokens ({name}) agree: set sampling.context to {length}"):
                _compare(model, _probes_around(model, length), plainly=True)
    return untried


@contextmanager
def _advising(remedy: str) -> Iterator[None]:
    try:
        yield
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error}; {remedy} or less") from error


def _compare(model: Any, groups: Sequence[TokenGroup], *, plainly: bool = False) -> None:
    """Compares a pack of these groups with each sequence alone.

    If ``plainly``, eager attention computes the sequences alone, and the model's own attention has to agree with it.
    """
    model.eval()
    weight = output_head(model).weight
    budget = sum(group.packed_tokens for group in groups)
    (pack,) = pack_groups(groups, budget, length_boundaries(model.config))
    # Layers that are gathered in half precision compute in nothing else.
    precision = world_of(model).precision
    half = torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    exact = precision == "float32" and weight.dtype in (torch.float32, torch.float64)
    tolerance = CLOSE if exact else CLOSE_IN_HALF
    ordered = [groups[index] for index in pack.groups]
    with _refusing(model), torch.no_grad(), half:
        packed_S = pack_sums(model, pack, precision=precision)
        alone_S = _plain_sums(model, ordered)
        if plainly:
            own_S = alone_S
            with attention_of(model, "eager"):
                alone_S = _plain_sums(model, ordered)
            _check_close(model, alone_S, own_S, "its own attention, which samples, and the plain one", tolerance)
    reshard(model)
    what = (
        f"a packed and a plain forward pass of {len(pack.input_ids_T)} tokens: its attention cannot be replaced, its "
        "layers mix tokens in another way or look at the whole pass, or it changes its logits after the projection; "
        "use another model"
    )
    _check_close(model, packed_S, alone_S, what, tolerance)


def _check_close(model: Any, one_S: torch.Tensor, other_S: torch.Tensor, between: str, tolerance: float) -> None:
    difference = (one_S - other_S).abs().max().item()
    if not difference <= tolerance:
        raise UnsupportedModelError(
            f"{type(model).__name__} gives log-probabilities that differ by {difference:.3g} nats between {between}"
        )


@contextmanager
def _refusing(model: Any) -> Iterator[None]:
    """Raises UnsupportedModelError for what a type raises when it is given a pack: it cannot take one."""
    try:
        yield
    except (RondoError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot compute several sequences in one forward pass "
            f"({type(error).__name__}: {reason}): use another model"
        ) from error


def _short_probe(model: Any) -> list[TokenGroup]:
    top = output_head(model).weight.shape[0] - 1
    candidates = [[top // 2, top // 3, 1], [top // 5, top], [0, top // 2, top // 2]]
    return [TokenGroup("probe", [top, 1, 0], candidates)]


def _probes_beyond(model: Any, length: int, longest_sequence: int) -> list[TokenGroup]:
    """Makes short prompts, each with an answer of two tokens, that together have more tokens than the length."""
    size = max(1, min(_PROMPT, length - 2, longest_sequence - 2))
    ids, count = _plain_ids(model), length // (size + 1) + 1  # the last token of an answer is no input
    return [TokenGroup(f"probe {row}", _any_of(ids, size, row), [_any_of(ids, 2, row)]) for row in range(count)]


def _probes_around(model: Any, length: int) -> list[TokenGroup]:
    """Makes a prompt with answers that end at the length, one and four tokens beyond it, and a short prompt beside it.

    Four, as the token that leaves a sliding window is first missed two tokens later.
    """
    ids = _plain_ids(model)
    limit = min(context_limits(model.config).values(), default=length + 4)
    prompt = _any_of(ids, max(1, length - 2), length)
    ends = [end for end in (length, length + 1, length + 4) if end <= limit]
    around = TokenGroup("probe", prompt, [_any_of(ids, end - len(prompt), end) for end in ends])
    return [around, TokenGroup("short probe", ids[-2:], [ids[:2]])]


def _plain_ids(model: Any) -> list[int]:
    """Lists the tokens that stand for text: all but the special ones that the configuration names."""
    special = special_token_ids(model.config)
    return [token for token in range(output_head(model).weight.shape[0]) if token not in special]


def _any_of(ids: Sequence[int], count: int, seed: int) -> list[int]:
    drawn = torch.randint(len(ids), (count,), generator=torch.Generator().manual_seed(seed))
    return [ids[place] for place in drawn.tolist()]


def _plain_sums(model: Any, groups: Sequence[TokenGroup]) -> torch.Tensor:
    """Computes the log-probability of each candidate, in nats, one sequence at a time."""
    sums = []
    for group in groups:
        for candidate in group.candidate_token_ids:
            ids = torch.tensor([[*group.prompt_token_ids, *candidate]], device=model.device)
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_token_ids) - 1 : -1].float()
            logps = torch.log_softmax(logits, dim=-1).gather(1, ids[0, len(group.prompt_token_ids) :, None])
            sums.append(logps.sum())
    return torch.stack(sums)
