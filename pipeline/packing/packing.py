"""Shared-prefix packing: the prompt of a group is processed once, however many candidates it has.

A pack is one flat row ``prompt | candidate 0 | candidate 1 | ... | prompt | ...`` without padding. Positions
restart after each prompt, and attention lets every candidate see its prompt and itself (see
``pipeline/packing/attention.py``), so that every token sees exactly what it would see in a plain sequence of prompt
and candidate. The last token of a candidate predicts nothing and is left out of the input.

Axes: ``T`` input tokens of a pack, ``N`` predicted candidate tokens, ordered by group, then by candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import DataError, PromptTooLongError
from pipeline.packing.attention import Layout, Row, SequenceLayout, lay_out
from pipeline.packing.block_attention import BLOCK_DEVICES, BlockLayout


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
        """Input tokens that the group takes in a pack."""
        return len(self.prompt_token_ids) + sum(len(candidate) - 1 for candidate in self.candidate_token_ids)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the prompt with its longest candidate."""
        return len(self.prompt_token_ids) + max(map(len, self.candidate_token_ids))


@dataclass(frozen=True)
class Pack:
    """The tensors of one forward pass, and which groups they belong to.

    ``source_N`` is the input token whose hidden state predicts ``target_N``; ``sequence_N`` numbers the
    candidate it belongs to, over all groups of the pack. ``candidates`` is the number of candidates of each
    group. ``segment_T`` is the place where the prompt or candidate begins that an input token is part of, ``prompt_T``
    where its prompt begins.
    """

    groups: list[int]
    candidates: list[int]
    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    layout: SequenceLayout
    segment_T: torch.Tensor
    prompt_T: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    sequence_N: torch.Tensor

    def layout_on(self, device: torch.device) -> Layout:
        """How attention finds its tokens on this device: by a mask of blocks, or by gathering."""
        if device.type not in BLOCK_DEVICES:
            return self.layout.to(device)
        segment_T, prompt_T, position_T = (
            part.to(device) for part in (self.segment_T, self.prompt_T, self.position_ids_T)
        )
        return BlockLayout(segment_T, prompt_T, position_T, self.layout.longest)


def pack_groups(groups: Sequence[TokenGroup], token_budget: int) -> list[Pack]:
    """Lay groups out in as few packs of at most ``token_budget`` tokens as first fit by falling length finds.

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
    return [_build_pack(groups, pack) for pack in members]


def check_budget(groups: Sequence[TokenGroup], token_budget: int) -> None:
    """Raise PromptTooLongError, naming the prompt, where a group is longer than the budget."""
    for group in groups:
        if group.packed_tokens > token_budget:
            raise PromptTooLongError(
                f"prompt {group.prompt_id} with its {len(group.candidate_token_ids)} candidates takes "
                f"{group.packed_tokens} tokens, and the token budget is {token_budget}: raise token_budget, "
                "or take shorter or fewer candidates"
            )


def _build_pack(groups: Sequence[TokenGroup], members: list[int]) -> Pack:
    ids: list[int] = []
    positions: list[int] = []
    rows: list[Row] = []
    segments: list[int] = []
    prompts: list[int] = []
    source: list[int] = []
    target: list[int] = []
    lengths: list[int] = []
    for index in members:
        prompt = groups[index].prompt_token_ids
        prompt_places = list(range(len(ids), len(ids) + len(prompt)))
        rows.append(Row(prompt_places))
        segments.extend([len(ids)] * len(prompt))
        prompts.extend([len(ids)] * groups[index].packed_tokens)
        ids.extend(prompt)
        positions.extend(range(len(prompt)))
        for candidate in groups[index].candidate_token_ids:
            inputs = len(candidate) - 1
            places = list(range(len(ids), len(ids) + inputs))
            segments.extend([len(ids)] * inputs)
            ids.extend(candidate[:-1])
            positions.extend(range(len(prompt), len(prompt) + inputs))
            rows.append(Row([*prompt_places, *places], before=len(prompt)))
            source.append(prompt_places[-1])
            source.extend(places)
            target.extend(candidate)
            lengths.append(len(candidate))
    return Pack(
        groups=members,
        candidates=[len(groups[index].candidate_token_ids) for index in members],
        input_ids_T=torch.tensor(ids),
        position_ids_T=torch.tensor(positions),
        layout=lay_out(rows, len(ids)),
        segment_T=torch.tensor(segments),
        prompt_T=torch.tensor(prompts),
        source_N=torch.tensor(source),
        target_N=torch.tensor(target),
        sequence_N=torch.repeat_interleave(torch.tensor(lengths)),
    )
