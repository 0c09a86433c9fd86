"""Answers that a judge gave no score: how many, and the commonest reason, in a sentence for people."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import pyarrow as pa

SHARE = 0.1
"""Share of answers without a score above which a person is told."""
_REASON_LENGTH = 300


@dataclass
class Unscored:
    """Statuses of judgments, and of each the first reason that was given."""

    statuses: Counter[str] = field(default_factory=Counter)
    _reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, judgments: pa.Table) -> "Unscored":
        """Counts the judgments of one table."""
        found = cls()
        found.add(judgments)
        return found

    def add(self, judgments: pa.Table) -> None:
        """Adds ``JUDGMENTS``, of which status and rationale are read."""
        statuses = judgments["status"].to_pylist()
        self.statuses.update(statuses)
        reasons: Iterable[str | None] = judgments["rationale"].to_pylist()
        for status, reason in zip(statuses, reasons, strict=True):
            if reason and status != "ok":
                self._reasons.setdefault(status, reason[:_REASON_LENGTH])

    def commonest(self) -> str | None:
        """Names the commonest status of those without a score, with a reason; None if all have one."""
        failed = Counter({status: count for status, count in self.statuses.items() if status != "ok"})
        if not failed:
            return None
        ((status, count),) = failed.most_common(1)
        return f"{count} {status}" + (f", {reason}" if (reason := self.reason()) else "")

    def reason(self) -> str | None:
        """Returns the reason of the commonest status of those without a score; None if there was none."""
        failed = [status for status, _ in self.statuses.most_common() if status != "ok"]
        return self._reasons.get(failed[0]) if failed else None

    def alarm(self, judge: str, kind: str) -> str | None:
        """Returns a sentence if more than `SHARE` of the answers have no score.

        Args:
            kind: which answers they are: sampled or held-out.
        """
        total = self.statuses.total()
        missing = total - self.statuses["ok"]
        if not total or missing <= SHARE * total:
            return None
        return f"{judge} gave {missing} of {total} {kind} completions no score; the commonest: {self.commonest()}"
