"""What ran when in a round, and on which device: from the spans that commits carry.

A commit's meta has ``span``, begin and end of its work in seconds since the epoch (UTC), and ``device``. If the work
was done in pieces, ``busy`` has the span of each. Runs of earlier versions have no spans, and so no timeline.

A lane is a part of the system on one of its devices; what it works for has a kind.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from flows.host.work_spans import busy_seconds, union
from storage.log.manifest import Entry
from storage.log.run import Run

Kind = Literal["training", "evaluation", "weight sync"]
KINDS: tuple[Kind, ...] = ("training", "evaluation", "weight sync")

# Stage: the part that does it, and what for. Round 0 only prepares: it trains nothing.
_STAGES: dict[str, tuple[str, Kind]] = {
    "candidates": ("sample", "training"),
    "eval_candidates": ("sample", "evaluation"),
    "served_candidates": ("sample", "evaluation"),
    "handover": ("sample", "weight sync"),
    "judgments": ("judge", "training"),
    "preferences": ("judge", "training"),
    "replayed": ("judge", "training"),
    "eval_judgments": ("judge", "evaluation"),
    "served_judgments": ("judge", "evaluation"),
    "judge_probe": ("judge", "evaluation"),
    "gate_candidates": ("sample", "evaluation"),
    "gate_baseline_candidates": ("sample", "evaluation"),
    "gate_judgments": ("judge", "evaluation"),
    "gate_baseline_judgments": ("judge", "evaluation"),
    "gate_prompts": ("update", "training"),
    "gate_text": ("update", "evaluation"),
    "gate_baseline_text": ("update", "evaluation"),
    "gate_tasks": ("sample", "evaluation"),
    "gate_baseline_tasks": ("sample", "evaluation"),
    "policy": ("update", "training"),
    "prompts": ("update", "training"),
    "probe": ("update", "training"),
    "checkpoint": ("update", "training"),
    "eval_logps": ("update", "evaluation"),
}
_PARTS = ("sample", "judge", "update")
LEAST_CUT = 10.0
"""Seconds: a shorter stretch in which nothing works is never cut out."""
_CUT_SHARE = 0.25


@dataclass(frozen=True)
class Span:
    """A piece of work: its round and stage, the shard of it, the lane it ran in, and when."""

    round: int
    stage: str
    shard: int | None
    part: str
    device: str
    kind: Kind
    start: float
    end: float
    tokens: float | None

    @property
    def lane(self) -> tuple[str, str]:
        """Returns the part and its device."""
        return self.part, self.device


@dataclass(frozen=True)
class Cut:
    """A stretch in which nothing worked, such as between a kill and the resume: left out of the timeline."""

    start: float
    seconds: float


@dataclass(frozen=True)
class Lane:
    """A part on one of its devices, over the timeline's seconds without its cuts.

    Attributes:
        busy: seconds in which it worked, counted once when its pieces overlap.
        by_kind: the same by what it worked for.
        tokens_per_second: of the pieces that have tokens, while they ran.
    """

    part: str
    device: str
    busy: float
    idle: float
    share: float
    by_kind: dict[Kind, float]
    tokens_per_second: float | None
    spans: list[Span]

    @property
    def name(self) -> str:
        """Returns the part, and its device if that is known."""
        return f"{self.part} on {self.device}" if self.device else self.part


@dataclass(frozen=True)
class Timeline:
    """What ran when in some rounds that follow each other.

    Times of spans, cuts and ends are seconds from the beginning, without what was cut out.

    Attributes:
        seconds: from the first beginning to the last end, without the cuts.
        ends: when each of the rounds was done.
    """

    rounds: list[int]
    started: float
    seconds: float
    lanes: list[Lane]
    cuts: list[Cut]
    ends: dict[int, float]

    def is_ahead(self, span: Span) -> bool:
        """Says whether a piece of work belongs to another round than the one in whose time it ran."""
        middle = (span.start + span.end) / 2
        return span.round != next((number for number, end in self.ends.items() if middle <= end), self.rounds[-1])


def timeline(run: Run, rounds: Sequence[int]) -> Timeline | None:
    """Makes the timeline of rounds that follow each other, ascending; None if their commits have no spans.

    Pieces of other rounds that ran meanwhile are in it too: with ``staleness: 1`` the next round is being sampled.
    """
    by_round = {number: list(spans_of(run.work(number))) for number in range(max(rounds[0] - 1, 0), rounds[-1] + 2)}
    own = [span for number in rounds for span in by_round[number]]
    before = max((span.end for span in by_round.get(rounds[0] - 1, ())), default=float("-inf"))
    # What was prefetched in the round before belongs to that round's time.
    begins = [max(span.start, before) for span in own if span.end > before]
    if not begins:
        return None
    start, end = min(begins), max(span.end for span in own)
    seen = [
        replace(span, start=max(span.start, start), end=min(span.end, end))
        for spans in by_round.values()
        for span in spans
        if span.end > start and span.start < end
    ]
    cuts = _cuts(seen)
    seconds = end - start - sum(cut.seconds for cut in cuts)

    def place(time: float) -> float:
        return time - start - sum(min(cut.seconds, max(0.0, time - cut.start)) for cut in cuts)

    placed = [replace(span, start=place(span.start), end=place(span.end)) for span in seen]
    return Timeline(
        rounds=list(rounds),
        started=start,
        seconds=seconds,
        lanes=list(_lanes(placed, seconds)),
        cuts=[Cut(place(cut.start), cut.seconds) for cut in cuts],
        ends={number: place(max(span.end for span in by_round[number])) for number in rounds if by_round[number]},
    )


def spans_of(entries: Iterable[Entry]) -> Iterator[Span]:
    """Yields the pieces of work that these commits tell of; a commit without a sensible span is left out.

    If the work was done in pieces, its tokens are shared out by time.
    """
    for entry in entries:
        if entry.key is None or entry.key.stage not in _STAGES:
            continue
        part, kind = _STAGES[entry.key.stage]
        pieces = _pieces(entry.meta)
        tokens = entry.meta.get("train_tokens" if entry.key.stage == "checkpoint" else "tokens")
        total = sum(end - start for start, end in pieces)
        for start, end in pieces:
            share = None if tokens is None or not total else tokens * (end - start) / total
            device = str(entry.meta.get("device", ""))
            yield Span(entry.key.round, entry.key.stage, entry.key.shard, part, device, kind, start, end, share)


def _pieces(meta: Mapping[str, Any]) -> list[tuple[float, float]]:
    found: list[Any] = meta["busy"] if isinstance(meta.get("busy"), list) else [meta.get("span")]
    return [(float(piece[0]), float(piece[1])) for piece in found if _is_span(piece)]


def _is_span(piece: Any) -> bool:
    return (
        isinstance(piece, list | tuple)
        and len(piece) == 2
        and all(isinstance(time, int | float) for time in piece)
        and piece[0] <= piece[1]
    )


def _cuts(spans: Sequence[Span]) -> list[Cut]:
    """Finds stretches without work that are longer than ``LEAST_CUT`` and than a quarter of all time with work."""
    busy = union(_times(spans))
    least = max(LEAST_CUT, _CUT_SHARE * sum(end - start for start, end in busy))
    return [Cut(end, start - end) for (_, end), (start, _) in pairwise(busy) if start - end > least]


def _lanes(spans: Sequence[Span], seconds: float) -> Iterator[Lane]:
    lanes: dict[tuple[str, str], list[Span]] = {}
    for span in sorted(spans, key=lambda span: (_PARTS.index(span.part), span.device, span.start)):
        lanes.setdefault(span.lane, []).append(span)
    for (part, device), found in lanes.items():
        busy = busy_seconds(_times(found))
        counted = [span for span in found if span.tokens is not None]
        worked = busy_seconds(_times(counted))
        tokens = sum(span.tokens or 0 for span in counted)
        yield Lane(
            part, device, busy, max(0.0, seconds - busy), busy / seconds if seconds else 0.0,
            {kind: busy_seconds(_times(span for span in found if span.kind == kind)) for kind in KINDS},
            tokens / worked if worked else None, found,
        )  # fmt: skip


def _times(spans: Iterable[Span]) -> Iterator[tuple[float, float]]:
    return ((span.start, span.end) for span in spans)


def lane_rows(found: Timeline) -> list[dict[str, Any]]:
    """Makes a row for each lane, as people read it."""
    return [
        {
            "part": lane.part,
            "device": lane.device or "-",
            "busy, s": f"{lane.busy:.1f}",
            "share": f"{lane.share:.0%}",
            **{f"{kind}, s": f"{lane.by_kind[kind]:.1f}" for kind in KINDS},
            "tokens/s": "-" if lane.tokens_per_second is None else f"{lane.tokens_per_second:,.0f}",
            "idle, s": f"{lane.idle:.1f}",
        }
        for lane in found.lanes
    ]


def duration(seconds: float) -> str:
    """Says a duration as people do, in two units at most."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{seconds / 86_400:.0f} days"
