"""Shared-prefix packing: the prompt of a group is processed once, however many candidates it has.

A pack is one flat row ``prompt | candidate 0 | candidate 1 | ... | prompt | ...`` without padding. Positions
restart after each prompt, and attention lets every candidate see its prompt and itself (see
``pipeline/packing/attention.py``). So every token sees exactly what it would see in a plain sequence of prompt and
candidate. The last token of a candidate predicts nothing and is left out of the input.

Some types treat a whole forward pass by the longest sequence in it (`model_config.length_boundaries`). A pack of such a
model has a part for each class of length, which is computed by itself. There the last token stays in the input, so that
a pass is as long as the plain one. A prompt with candidates of two classes is in both.

Axes: ``T`` input tokens of a pack, ``N`` predicted candidate tokens, ordered by group, then by candidate.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from pipeline.errors import DataError, PromptTooLongError
from pipeline.packing.attention import Layout, Rows, SequenceLayout, lay_out
from pipeline.packing.block_attention import BLOCK_DEVICES, BlockLayout, whole_blocks


@dataclass(frozen=True)
class TokenGroup:
    """A prompt and its candidates, at least one, as token ids. Each has at least one token."""

    prompt_id: str
    prompt_token_ids: Sequence[int]
    candidate_token_ids: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise DataError(f"prompt {self.prompt_id} has no tokens: begin it with a beginning-of-sequence token")
        if not self.candidate_token_ids:
            raise DataError(f"prompt {self.prompt_id} has no candidates: drop it before the update")
        for index, candidate in enumerate(self.candidate_token_ids):
            if not candidate:
                raise DataError(
                    f"candidate {index} of prompt {self.prompt_id} has no tokens: drop it before the update"
                )

    @property
    def packed_tokens(self) -> int:
        """Counts the input tokens that the group takes in a pack."""
        return len(self.prompt_token_ids) + sum(len(candidate) - 1 for candidate in self.candidate_token_ids)

    @property
    def longest_sequence(self) -> int:
        """Counts the tokens of the prompt with its longest candidate."""
        return len(self.prompt_token_ids) + max(map(len, self.candidate_token_ids))


@dataclass(frozen=True)
class Pack:
    """The tensors of one forward pass, and which groups they belong to.

    ``source_N`` is the input token whose hidden state predicts ``target_N``; ``sequence_N`` numbers the
    candidate it belongs to, over all groups of the pack. ``candidates`` is the number of candidates of each
    group, ``rows`` are prompts and candidates by their places. ``segment_T`` is the place where the prompt or candidate
    begins that an input token is part of, ``prompt_T`` where its prompt begins. With ``parts`` these are computed in
    its place.
    """

    groups: list[int]
    candidates: list[int]
    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    rows: Rows
    segment_T: torch.Tensor
    prompt_T: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    sequence_N: torch.Tensor
    parts: tuple["PackPart", ...] = ()

    @cached_property
    def layout(self) -> SequenceLayout:
        """Where the gathering attention finds its tokens; not made for a device that takes a mask of blocks."""
        return lay_out(self.rows)

    def on(self, device: torch.device) -> "PackInputs":
        """Puts on a device what a forward pass reads.

        Attention gathers its tokens, or has a mask of blocks, whatever the device takes. With blocks the row is padded
        to whole ones. The padding is a segment by itself, which nobody else sees and nobody reads.
        """
        if device.type not in BLOCK_DEVICES:
            return PackInputs(self.input_ids_T.to(device), self.position_ids_T.to(device), self.layout.to(device))
        tokens = len(self.input_ids_T)
        padding = (0, whole_blocks(tokens) - tokens)
        ids_T, position_T = (F.pad(part, padding).to(device) for part in (self.input_ids_T, self.position_ids_T))
        segment_T, prompt_T = (
            F.pad(part, padding, value=tokens).to(device) for part in (self.segment_T, self.prompt_T)
        )
        return PackInputs(ids_T, position_T, BlockLayout(segment_T, prompt_T, position_T, self.rows.longest))


@dataclass(frozen=True)
class PackInputs:
    """What a forward pass reads of a pack, on its device: token ids, positions, and how attention finds its tokens.

    They may be longer than the pack, at the end.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    layout: Layout


@dataclass(frozen=True)
class PackPart:
    """The candidates of a pack that are of one class of length, and which of its predicted tokens theirs are."""

    pack: Pack
    places_N: torch.Tensor


def length_class(tokens: int, boundaries: Sequence[int]) -> int:
    """Counts the boundaries, in rising order, that a sequence of so many tokens exceeds."""
    return bisect_left(boundaries, tokens)


def pack_groups(groups: Sequence[TokenGroup], token_budget: int, boundaries: Sequence[int] = ()) -> list[Pack]:
    """Lays groups out in as few packs of at most ``token_budget`` tokens as first fit by falling length finds.

    Args:
        boundaries: lengths in tokens on both sides of which no two sequences may share a forward pass. What a pack's
            parts repeat of its prompts is not counted.

    Raises:
        PromptTooLongError: a group is longer than the budget.
    """
    check_budget(groups, token_budget)
    members: list[list[int]] = []
    free: list[int] = []
    for index in sorted(range(len(groups)), key=lambda index: -groups[index].packed_tokens):
        tokens = groups[index].packed_tokens
        place = next((place for place, room in enumerate(free) if room >= tokens), None)
        if place is None:
            members.append([])
            free.append(token_budget)
            place = len(members) - 1
        members[place].append(index)
        free[place] -= tokens
    packs = [_build_pack(groups, pack) for pack in members]
    return [replace(pack, parts=_parts(groups, pack.groups, boundaries)) for pack in packs] if boundaries else packs


def check_budget(groups: Sequence[TokenGroup], token_budget: int) -> None:
    """Raises PromptTooLongError, naming the prompt, if a group is longer than the budget."""
    for group in groups:
        if group.packed_tokens > token_budget:
            raise PromptTooLongError(
                f"prompt {group.prompt_id} with its {len(group.candidate_token_ids)} candidates takes "
                f"{group.packed_tokens} tokens, and the token budget is {token_budget}: raise token_budget, "
                "or take shorter or fewer candidates"
            )


def _parts(groups: Sequence[TokenGroup], members: list[int], boundaries: Sequence[int]) -> tuple[PackPart, ...]:
    parts: dict[int, list[TokenGroup]] = defaultdict(list)
    places: dict[int, list[int]] = defaultdict(list)
    first = 0
    for index in members:
        group = groups[index]
        candidates: dict[int, list[Sequence[int]]] = defaultdict(list)
        for candidate in group.candidate_token_ids:
            kind = length_class(len(group.prompt_token_ids) + len(candidate), boundaries)
            candidates[kind].append(candidate)
            places[kind].extend(range(first, first + len(candidate)))
            first += len(candidate)
        for kind, kept in candidates.items():
            parts[kind].append(TokenGroup(group.prompt_id, group.prompt_token_ids, kept))
    return tuple(
        PackPart(_build_pack(kept, list(range(len(kept))), with_last=True), torch.tensor(places[kind]))
        for kind, kept in parts.items()
    )


def _build_pack(groups: Sequence[TokenGroup], members: list[int], *, with_last: bool = False) -> Pack:
    flat: list[int] = []  # prompts and candidates one after the other
    lengths: list[int] = []  # of each of them, which are the segments ``R`` of the pack
    for index in members:
        group = groups[index]
        for part in (group.prompt_token_ids, *group.candidate_token_ids):
            flat.extend(part)
            lengths.append(len(part))
    candidates = [len(groups[index].candidate_token_ids) for index in members]
    tokens, length_R = np.fromiter(flat, np.int64, len(flat)), np.array(lengths)
    first_G = np.cumsum([0, *(count + 1 for count in candidates[:-1])])
    group_R = np.repeat(np.arange(len(members)), np.array(candidates) + 1)
    is_candidate_R = np.ones(len(lengths), dtype=bool)
    is_candidate_R[first_G] = False
    own_R = length_R - (is_candidate_R & (not with_last))
    start_R = np.cumsum(own_R) - own_R
    before_R = np.where(is_candidate_R, length_R[first_G][group_R], 0)
    rows = Rows(start_R[first_G][group_R], before_R, start_R, own_R)
    segment_T = np.repeat(start_R, own_R)
    kept = np.ones(len(flat), dtype=bool)
    if not with_last:
        kept[np.cumsum(length_R)[is_candidate_R] - 1] = False
    columns = {
        "input_ids_T": tokens[kept],
        "position_ids_T": np.arange(len(segment_T)) + np.repeat(before_R - start_R, own_R),
        "segment_T": segment_T,
        "prompt_T": np.repeat(rows.prompt_R, own_R),
        "source_N": _sources(rows.take(np.flatnonzero(is_candidate_R)), length_R[is_candidate_R]),
        "target_N": tokens[np.repeat(is_candidate_R, length_R)],
        "sequence_N": np.repeat(np.arange(sum(candidates)), length_R[is_candidate_R]),
    }
    return Pack(
        groups=members,
        candidates=candidates,
        rows=rows,
        **{name: torch.from_numpy(column) for name, column in columns.items()},
    )


def _sources(candidates: Rows, length_S: NDArray[np.int64]) -> NDArray[np.int64]:
    """Finds the place that predicts each token of each candidate: the first one's is the last of the prompt."""
    first_S = np.cumsum(length_S) - length_S
    source_N: NDArray[np.int64] = np.arange(length_S.sum()) + np.repeat(candidates.start_R - 1 - first_S, length_S)
    source_N[first_S] = candidates.prompt_R + candidates.before_R - 1
    return source_N
