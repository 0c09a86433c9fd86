"""Shared-prefix packing: the prompt of a group is processed once, however many candidates it has.

A group is laid out as ``prompt | candidate 0 | candidate 1 | ...`` in one row. Each candidate attends to the
prompt and to itself, and its positions restart after the prompt, so that every token sees exactly what it
would see in a plain sequence of prompt and candidate. The last token of a candidate predicts nothing and is
left out of the input. Several groups may share a row, and rows of similar length share a pack (one forward
pass).

Axes: ``R`` rows of a pack, ``L`` tokens of its longest row, ``N`` predicted candidate tokens in a pack, ``S``
candidates in a pack, ordered by group and then by candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import DataError, PromptTooLongError

PADDING = -1


@dataclass(frozen=True)
class TokenGroup:
    """A prompt and its candidates, as token ids. Each has at least one token."""

    prompt_id: str
    prompt_token_ids: Sequence[int]
    candidate_token_ids: Sequence[Sequence[int]]

    def __post_init__(self) -> None:
        if not self.prompt_token_ids:
            raise DataError(
                f"prompt {self.prompt_id} has no tokens: begin it with a beginning-of-sequence token"
            )
        for index, candidate in enumerate(self.candidate_token_ids):
            if not candidate:
                raise DataError(
                    f"candidate {index} of prompt {self.prompt_id} has no tokens: drop it before the update"
                )

    @property
    def packed_tokens(self) -> int:
        """Input tokens that the group takes in a row."""
        return len(self.prompt_token_ids) + sum(len(candidate) - 1 for candidate in self.candidate_token_ids)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the prompt with its longest candidate."""
        return len(self.prompt_token_ids) + max(map(len, self.candidate_token_ids), default=0)


@dataclass(frozen=True)
class Pack:
    """The tensors of one forward pass, and which group each part belongs to.

    ``mask_R_1_L_L`` is True where a query (third axis) sees a key (fourth axis). ``source_N`` is the flat
    index into ``R * L`` of the position whose hidden state predicts ``target_N``; ``sequence_N`` is the
    candidate it belongs to.
    """

    groups: list[int]
    candidates: list[int]
    tokens: int
    input_ids_R_L: torch.Tensor
    position_ids_R_L: torch.Tensor
    mask_R_1_L_L: torch.Tensor
    source_N: torch.Tensor
    target_N: torch.Tensor
    sequence_N: torch.Tensor


def pack_groups(groups: Sequence[TokenGroup], token_budget: int, *, row_tokens: int = 0) -> list[Pack]:
    """Lay groups out in packs of at most ``token_budget`` positions (rows times longest row, padding
    included).

    Rows are filled to ``row_tokens``, or to the longest group where that is more, by first fit in order of
    decreasing length. The layout depends on the lengths and their order alone.

    Raises:
        PromptTooLongError: a group is longer than the budget.
    """
    check_budget(groups, token_budget)
    rows = _fill_rows(groups, min(row_tokens, token_budget))
    packs: list[Pack] = []
    while rows:
        width = sum(groups[index].packed_tokens for index in rows[0])
        height = max(1, token_budget // width)
        packs.append(_build_pack(groups, rows[:height], width))
        rows = rows[height:]
    return packs


def check_budget(groups: Sequence[TokenGroup], token_budget: int) -> None:
    """Raise PromptTooLongError, naming the prompt, where a group is longer than the budget."""
    for group in groups:
        if group.packed_tokens > token_budget:
            raise PromptTooLongError(
                f"prompt {group.prompt_id} with its {len(group.candidate_token_ids)} candidates takes "
                f"{group.packed_tokens} tokens, and the token budget is {token_budget}: raise token_budget, "
                "or take shorter or fewer candidates"
            )


def _fill_rows(groups: Sequence[TokenGroup], row_tokens: int) -> list[list[int]]:
    """Group indices of each row, the longest row first."""
    by_length = sorted(range(len(groups)), key=lambda index: -groups[index].packed_tokens)
    capacity = max(row_tokens, groups[by_length[0]].packed_tokens) if groups else 0
    rows: list[list[int]] = []
    free: list[int] = []
    for index in by_length:
        tokens = groups[index].packed_tokens
        row = next((row for row, room in enumerate(free) if room >= tokens), None)
        if row is None:
            rows.append([])
            free.append(capacity)
            row = len(rows) - 1
        rows[row].append(index)
        free[row] -= tokens
    order = sorted(range(len(rows)), key=lambda row: free[row])
    return [rows[row] for row in order]


def _build_pack(groups: Sequence[TokenGroup], rows: list[list[int]], width: int) -> Pack:
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    owners: list[list[int]] = []  # the group of a token, by its place in the pack
    branches: list[list[int]] = []  # 0 in a prompt, k + 1 in candidate k
    source: list[int] = []
    target: list[int] = []
    lengths: list[int] = []
    members = [index for row in rows for index in row]
    place = iter(range(len(members)))
    for row_number, row in enumerate(rows):
        row_ids: list[int] = []
        row_positions: list[int] = []
        row_owners: list[int] = []
        row_branches: list[int] = []
        for index in row:
            group, owner = groups[index], next(place)
            prompt = group.prompt_token_ids
            last_of_prompt = row_number * width + len(row_ids) + len(prompt) - 1
            row_ids.extend(prompt)
            row_positions.extend(range(len(prompt)))
            row_branches.extend([0] * len(prompt))
            for branch, candidate in enumerate(group.candidate_token_ids, start=1):
                inputs = len(candidate) - 1
                start = row_number * width + len(row_ids)
                source.append(last_of_prompt)
                source.extend(range(start, start + inputs))
                target.extend(candidate)
                lengths.append(len(candidate))
                row_ids.extend(candidate[:-1])
                row_positions.extend(range(len(prompt), len(prompt) + inputs))
                row_branches.extend([branch] * inputs)
            row_owners.extend([owner] * group.packed_tokens)
        missing = width - len(row_ids)
        ids.append(row_ids + [0] * missing)
        positions.append(row_positions + [0] * missing)
        owners.append(row_owners + [PADDING] * missing)
        branches.append(row_branches + [0] * missing)
    return Pack(
        groups=members,
        candidates=[len(groups[index].candidate_token_ids) for index in members],
        tokens=sum(groups[index].packed_tokens for index in members),
        input_ids_R_L=torch.tensor(ids),
        position_ids_R_L=torch.tensor(positions),
        mask_R_1_L_L=_visible(torch.tensor(owners), torch.tensor(branches)),
        source_N=torch.tensor(source),
        target_N=torch.tensor(target),
        sequence_N=torch.repeat_interleave(torch.tensor(lengths)),
    )


def _visible(owners_R_L: torch.Tensor, branches_R_L: torch.Tensor) -> torch.Tensor:
    """Which key each query sees. Padding sees earlier padding and itself: a query that sees nothing would
    give NaN.
    """
    query_owner, key_owner = owners_R_L[:, :, None], owners_R_L[:, None, :]
    query_branch, key_branch = branches_R_L[:, :, None], branches_R_L[:, None, :]
    length = owners_R_L.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    shared = (key_branch == 0) | (key_branch == query_branch)
    return (causal & (query_owner == key_owner) & shared)[:, None]
