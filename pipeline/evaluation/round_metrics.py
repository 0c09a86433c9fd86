"""What a round's table says of what was sampled, judged and preferred, added up shard by shard.

A prompt and all its candidates are in one shard, so that nothing is compared across shards, and no more than one shard
need be in memory.
"""

import math
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluation.rank_correlation import Spearman
from pipeline.evaluation.unscored import Unscored
from pipeline.preferences import drop_counts
from pipeline.preferences.candidates import EQUAL
from pipeline.records import components_of


@dataclass
class _Mean:
    """A mean of numbers that come in parts."""

    total: float = 0.0
    count: int = 0

    def add(self, *numbers: float) -> None:
        self.total = math.fsum((self.total, *numbers))
        self.count += len(numbers)

    @property
    def value(self) -> float | None:
        """Returns the mean; None if there are no numbers."""
        return self.total / self.count if self.count else None


@dataclass
class RoundMetrics:
    """The metrics of a round's candidates, judgments and preferences; None if there is nothing to tell from.

    - ``sampled_reward``, ``sampled_length``: mean score and mean length in tokens of the candidates.
    - ``unjudged``: candidates without a score.
    - ``preferences``, ``margin``: how many there are, and the mean difference of the scores of best and worst.
    - ``length_margin``: by how many tokens the best candidate of a preference is longer than the worst, on average.
    - ``dropped``: prompts without a preference, by reason.
    - ``tied``: share of the pairs of judged candidates of a prompt whose scores differ by no more than ``min_margin``.
    - ``unparsable``: share of the judgments whose reply could not be read.
    - ``flipped``: share of the comparisons whose verdict turned with the order in which the two were shown.
    - ``length_correlation``: Spearman's correlation of score and length in tokens within prompts.
    """

    min_margin: float = 0.0
    _scores: tuple[float, float] = (math.inf, -math.inf)
    _prompts: int = 0
    _preferring: int = 0
    _reward: _Mean = field(default_factory=_Mean)
    _length: _Mean = field(default_factory=_Mean)
    _truncated: _Mean = field(default_factory=_Mean)
    _margin: _Mean = field(default_factory=_Mean)
    _length_margin: _Mean = field(default_factory=_Mean)
    _tied: _Mean = field(default_factory=_Mean)
    _unscored: Unscored = field(default_factory=Unscored)
    _dropped: Counter[str] = field(default_factory=Counter)
    _compared: dict[str, float] = field(default_factory=lambda: {"flips": 0.0, "comparisons": 0.0})
    _by_length: Spearman = field(default_factory=Spearman)

    def add_judged(self, candidates: pa.Table, judgments: pa.Table) -> None:
        """Adds the ``CANDIDATES`` of a shard, of which tokens and ends are read, and what the judge said."""
        lengths = pc.list_value_length(candidates["token_ids"]).to_pylist()
        self._length.add(*lengths)
        self._truncated.add(*(reason == "length" for reason in candidates["finish_reason"].to_pylist()))
        self._reward.add(*judgments["score"].drop_null().to_pylist())
        self._unscored.add(judgments)
        self._add_comparisons(judgments)
        keys = zip(candidates["prompt_id"].to_pylist(), candidates["candidate"].to_pylist(), strict=True)
        length = dict(zip(keys, lengths, strict=True))
        for prompt_id, scores in scores_of(judgments).items():
            lowest, highest = self._scores
            self._scores = min(lowest, *scores.values()), max(highest, *scores.values())
            self._tied.add(*(abs(a - b) <= self.min_margin for a, b in combinations(scores.values(), 2)))
            self._by_length.add([*scores.values()], [length[prompt_id, index] for index in scores])

    def add_preferences(self, preferences: pa.Table) -> None:
        """Adds ``PREFERENCES`` of some of the round's prompts."""
        self._dropped.update(drop_counts(preferences))
        columns = ["prompt_id", "kind", "margin", "token_counts"]
        kept = preferences.select(columns).filter(pc.field("kind") != "dropped").to_pylist()
        self._prompts += len(pc.unique(preferences["prompt_id"]))
        self._preferring += len({row["prompt_id"] for row in kept})
        self._margin.add(*(row["margin"] for row in kept))
        self._length_margin.add(*(row["token_counts"][0] - row["token_counts"][-1] for row in kept))

    def metrics(self) -> dict[str, Any]:
        """Returns the metrics of all that was added."""
        statuses, compared = self._unscored.statuses, self._compared
        return {
            "sampled_reward": self._reward.value,
            "sampled_length": self._length.value,
            "unjudged": statuses.total() - statuses["ok"],
            "preferences": self._margin.count,
            "margin": self._margin.value,
            "length_margin": self._length_margin.value,
            "dropped": dict(sorted(self._dropped.items())),
            "tied": self._tied.value,
            "unparsable": statuses["unparsable"] / statuses.total() if statuses else None,
            "flipped": compared["flips"] / compared["comparisons"] if compared["comparisons"] else None,
            "length_correlation": self._by_length.value,
        }

    @property
    def truncated(self) -> float | None:
        """Returns the share of the candidates that were cut at the largest number of tokens; None if there are none."""
        return self._truncated.value

    def unscored(self, judge: str) -> list[str]:
        """Returns a sentence if the judge gave too few candidates a score."""
        return [said] if (said := self._unscored.alarm(judge, "sampled")) else []

    def outcome(self, *, verdicts: bool) -> dict[str, Any]:
        """Says whether there is something to learn from.

        Args:
            verdicts: whether the judge's scores of 1 and 0 mean right and wrong.

        Returns:
            The share of the prompts that gave a preference (``preference_share``), and if none did why (``no_update``).
        """
        share = self._preferring / self._prompts if self._prompts else None
        return {"preference_share": share, "no_update": None if self._margin.count else self._why_none(verdicts)}

    def _why_none(self, verdicts: bool) -> str:
        dropped = ", ".join(f"{count} {reason}" for reason, count in self._dropped.most_common())
        of = f"of {self._prompts} prompts {dropped}"
        if self._scores[0] > self._scores[1]:
            statuses = ", ".join(f"{count} {status}" for status, count in self._unscored.statuses.most_common())
            reason = f"; the commonest, {found}" if (found := self._unscored.reason()) else ""
            return f"not judged: no completion has a score ({statuses or 'none was sampled'}{reason})"
        if verdicts and self._scores == (1.0, 1.0):
            return f"solved: every completion that was judged is right ({of})"
        if verdicts and self._scores == (0.0, 0.0):
            return f"all failed: every completion that was judged is wrong ({of})"
        if self._dropped.most_common(1)[0][0] in EQUAL:
            return f"all equal: no completion of a prompt is better than another ({of})"
        return f"all left out: no prompt has two completions to compare ({of})"

    def _add_comparisons(self, judgments: pa.Table) -> None:
        """Adds the components of judges that compare in both orders, and of ensembles that have such a member."""
        for components in judgments["components"].to_pylist():
            for name, value in components_of(components).items():
                if (last := name.rpartition(".")[2]) in self._compared:
                    self._compared[last] += value


def scores_of(judgments: pa.Table) -> dict[str, dict[int, float]]:
    """Returns the scores of each prompt by candidate, of those that have one."""
    scores: dict[str, dict[int, float]] = {}
    for row in judgments.select(["prompt_id", "candidate", "score", "status"]).to_pylist():
        if row["status"] == "ok" and row["score"] is not None and math.isfinite(row["score"]):
            scores.setdefault(row["prompt_id"], {})[row["candidate"]] = row["score"]
    return scores
