"""What another judge, or another rule, would have changed: pairs, agreement and correlations, by round.

Before is what the run has: its judgments, and the preferences that it was trained on. After is what the other judge
says, and the preferences that follow from that under the rule that is asked for.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

import pyarrow as pa

from flows.analysis.agreement import cohens_kappa
from flows.analysis.rejudge import Rejudged
from flows.registry.inherited import trainer
from flows.registry.resume import recipe_of
from pipeline.evaluation.rank_correlation import Kendall, Spearman
from pipeline.evaluation.round_metrics import RoundMetrics, scores_of
from pipeline.preferences import build_preferences
from pipeline.records import prompt_seed
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.shards import read_table

Scores = Mapping[str, Mapping[int, float]]
"""Scores by prompt and completion."""
Pair = tuple[str, int, int]
"""A prompt, the completion that is preferred, and the other."""
Change = Literal["flipped", "appeared", "vanished"]
_CHANGES: tuple[Change, ...] = ("flipped", "appeared", "vanished")


@dataclass(frozen=True)
class ChangedPair:
    """A pair of completions of a prompt whose order another judge, or another rule, changes.

    Attributes:
        change: *flipped*: it was preferred the other way round; *appeared*: it is a preference only after; *vanished*:
            it was one only before.
        chosen, rejected: by their indices; of a pair that vanished, as it was before.
        before, after: difference of the scores of chosen and rejected; None if one has none.
    """

    round: int
    prompt_id: str
    change: Change
    chosen: int
    rejected: int
    before: float | None
    after: float | None


@dataclass(frozen=True)
class WhatIf:
    """What changes in a round, or in all rounds together.

    Attributes:
        round: None for all of them.
        completions: how many were judged.
        scored: how many both judges gave a score.
        reward: mean score, before and after.
        pairs: preferred pairs, before and after; a ranking counts all pairs that it orders.
        prompts: prompts that give a preference, before and after.
        same, flipped, appeared, vanished: pairs, see `ChangedPair`.
        compared: pairs of completions of a prompt that both judges scored.
        agreement: the share of these on whose order, or tie, both say the same.
        kappa: the same beyond chance, see `flows.analysis.agreement.cohens_kappa`.
        spearman, kendall: correlation of the two judges' scores within prompts.
        length: Spearman's correlation of score and length in tokens within prompts, before and after.
    """

    round: int | None
    completions: int
    scored: int
    reward: tuple[float | None, float | None]
    pairs: tuple[int, int]
    prompts: tuple[int, int]
    same: int
    flipped: int
    appeared: int
    vanished: int
    compared: int
    agreement: float | None
    kappa: float | None
    spearman: float | None
    kendall: float | None
    length: tuple[float | None, float | None]


@dataclass
class _Sum:
    """What is added up over rounds."""

    metrics: tuple[RoundMetrics, RoundMetrics] = field(default_factory=lambda: (RoundMetrics(), RoundMetrics()))
    completions: int = 0
    scored: int = 0
    pairs: tuple[set[tuple[int, Pair]], set[tuple[int, Pair]]] = field(default_factory=lambda: (set(), set()))
    prompts: tuple[set[tuple[int, str]], set[tuple[int, str]]] = field(default_factory=lambda: (set(), set()))
    said: list[tuple[str, str]] = field(default_factory=list)
    spearman: Spearman = field(default_factory=Spearman)
    kendall: Kendall = field(default_factory=Kendall)

    def add(self, number: int, candidates: pa.Table, sides: Sequence[tuple[pa.Table, pa.Table]]) -> None:
        """Adds a round: of each side its judgments and its preferences."""
        self.completions += candidates.num_rows
        for metrics, pairs, prompts, (judgments, preferences) in zip(
            self.metrics, self.pairs, self.prompts, sides, strict=True
        ):
            metrics.add_judged(candidates, judgments)
            ordered = set(ordered_pairs(preferences))
            pairs |= {(number, pair) for pair in ordered}
            prompts |= {(number, prompt_id) for prompt_id, _, _ in ordered}
        before, after = (scores_of(judgments) for judgments, _ in sides)
        for prompt_id in before.keys() & after.keys():
            both = sorted(before[prompt_id].keys() & after[prompt_id].keys())
            one, other = ([scores[prompt_id][index] for index in both] for scores in (before, after))
            self.scored += len(both)
            self.spearman.add(one, other)
            self.kendall.add(one, other)
            self.said += [
                (_verdict(a, b), _verdict(x, y)) for (a, x), (b, y) in combinations(zip(one, other, strict=True), 2)
            ]

    def whole(self, round: int | None) -> WhatIf:
        """Returns what it adds up to."""
        before, after = self.pairs
        changes = Counter(change for change, _ in _changes(before, after))
        measured = [metrics.metrics() for metrics in self.metrics]
        return WhatIf(
            round=round, completions=self.completions, scored=self.scored,
            reward=(measured[0]["sampled_reward"], measured[1]["sampled_reward"]),
            pairs=(len(before), len(after)), prompts=(len(self.prompts[0]), len(self.prompts[1])),
            same=len(before & after), **{change: changes[change] for change in _CHANGES},
            compared=len(self.said),
            agreement=sum(a == b for a, b in self.said) / len(self.said) if self.said else None,
            kappa=cohens_kappa(self.said), spearman=self.spearman.value, kendall=self.kendall.value,
            length=(measured[0]["length_correlation"], measured[1]["length_correlation"]),
        )  # fmt: skip


def what_if(store: Store, found: Rejudged) -> tuple[list[WhatIf], list[ChangedPair]]:
    """Says what another judge, or another rule, changes: a row for each round, and one for all if there are several.

    Returns:
        The rows, and the pairs that change: those that flip first, the largest new difference first.
    """
    rows, changed, total = [], list[ChangedPair](), _Sum()
    for number, files in found.files.items():
        candidates = read_table(store, found.run.files(number, "candidates"))
        sides = [_before(store, found, number), _after(store, found, number, candidates, files)]
        of_round = _Sum()
        for sum_ in (of_round, total):
            sum_.add(number, candidates, sides)
        rows.append(of_round.whole(number))
        changed += changed_pairs(number, *sides)
    if len(rows) > 1:
        rows.append(total.whole(None))
    return rows, sorted(changed, key=_order)


def changed_pairs(
    number: int, before: tuple[pa.Table, pa.Table], after: tuple[pa.Table, pa.Table]
) -> Iterator[ChangedPair]:
    """Yields the pairs of a round whose order changes.

    Args:
        before, after: ``JUDGMENTS`` and ``PREFERENCES``.
    """
    scores = [scores_of(judgments) for judgments, _ in (before, after)]
    pairs = [{(number, pair) for pair in ordered_pairs(preferences)} for _, preferences in (before, after)]
    for change, (_, (prompt_id, chosen, rejected)) in _changes(*pairs):
        differences = [_difference(of.get(prompt_id, {}), chosen, rejected) for of in scores]
        yield ChangedPair(number, prompt_id, change, chosen, rejected, differences[0], differences[1])


def ordered_pairs(preferences: pa.Table) -> Iterator[Pair]:
    """Yields each two completions of which a ``PREFERENCES`` table prefers one; places that are shared give none."""
    columns = [name for name in ("prompt_id", "kind", "candidates", "ranks") if name in preferences.column_names]
    for row in preferences.select(columns).to_pylist():
        places = row.get("ranks") or range(len(row["candidates"]))
        for (better, place), (worse, behind) in combinations(zip(row["candidates"], places, strict=True), 2):
            if place != behind:
                yield row["prompt_id"], better, worse


def _before(store: Store, found: Rejudged, number: int) -> tuple[pa.Table, pa.Table]:
    judgments, preferences = (
        read_table(store, found.run.files(number, stage)) for stage in ("judgments", "preferences")
    )
    return judgments, preferences


def _after(
    store: Store, found: Rejudged, number: int, candidates: pa.Table, files: Sequence[FileRef]
) -> tuple[pa.Table, pa.Table]:
    judgments = read_table(store, files)
    made_by = trainer(store, found.run, number)  # a fork may have another seed than its parent
    seed = recipe_of(made_by).seed if made_by is not None else found.recipe.seed
    seed = prompt_seed(seed, number, "round")
    return judgments, build_preferences(candidates, judgments, found.recipe.preferences, seed=seed)


def _changes(
    before: Iterable[tuple[int, Pair]], after: Iterable[tuple[int, Pair]]
) -> Iterator[tuple[Change, tuple[int, Pair]]]:
    """Yields the pairs that are not in both, each with what became of it; one that flips is told once, as it is now."""
    old, new = set(before), set(after)
    for number, (prompt_id, chosen, rejected) in sorted(new - old):
        flipped = (number, (prompt_id, rejected, chosen)) in old
        yield "flipped" if flipped else "appeared", (number, (prompt_id, chosen, rejected))
    for number, (prompt_id, chosen, rejected) in sorted(old - new):
        if (number, (prompt_id, rejected, chosen)) not in new:
            yield "vanished", (number, (prompt_id, chosen, rejected))


def _difference(scores: Mapping[int, float], chosen: int, rejected: int) -> float | None:
    return scores[chosen] - scores[rejected] if chosen in scores and rejected in scores else None


def _verdict(one: float, other: float) -> str:
    return "tie" if one == other else "first" if one > other else "second"


def _order(pair: ChangedPair) -> tuple[int, float, int, str, int, int]:
    size = pair.before if pair.change == "vanished" else pair.after
    return _CHANGES.index(pair.change), -abs(size or 0.0), pair.round, pair.prompt_id, pair.chosen, pair.rejected
