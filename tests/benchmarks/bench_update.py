"""The speed and memory of the update, as ratios of two things that are run in turn: ``make bench``.

1. Pairs per second, this update against trl's DPOTrainer.
2. Rankings per second, Plackett-Luce over 8 candidates against the same trainer on the 28 pairs of each ranking.
3. This update against a bare forward and backward pass over as many tokens as must be processed.
4. Peak memory, this update against trl's, as a function of the tokens of a pass and of the vocabulary.

Both sides get the same weights, the same tokens, the same batch for an optimizer step, fused AdamW at the same
constant learning rate, the same clipping, one thread and the same precision. That both learn the same margins from
the same pairs is checked before anything is timed. Seconds are those of the processor, see `update_contestants.py`.
trl gets, of its settings, what makes it fast here:

- `precompute_ref_log_probs`: without it, a second model runs in every step. The reference pass is left out of its
  *step*, as this update gets the reference from the sampler; *whole* puts it back in, and adds for this update what
  it does around its steps (checks before them, log-probabilities of all candidates after them).
- The number of pairs in one pass, with gradient accumulation up to the batch: 1, 2 or the whole batch, whichever is
  fastest for the pairs of row 1. Few pairs in a pass are little padding; on a CPU a pass need not be large. Where
  memory is compared, both sides have all pairs in one pass.
- No gradient checkpointing (its default), no logging, evaluation, saving or progress bar.

Not applicable: `padding_free` (in trl 1.x it warns and pads all the same), Liger and other kernels (GPU only). Neither
side is compiled. On a CPU trl projects every position to the vocabulary, prompts and padding too; on a GPU only the
positions that predict an answer's token. *answers only* is trl with the latter switched on, though no setting does it:
what remains of the ratio then is the prompt that trl repeats, its padding and its metrics.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.conditions import machine, told, write_report
from rich import box
from rich.console import Console
from rich.table import Table
from update_contestants import (
    SETTINGS,
    Lengths,
    Shape,
    available_memory,
    floor,
    gradient,
    ours,
    pairs_of,
    peak_memory,
    theirs,
    with_reference,
)

from pipeline.config import UpdateConfig
from pipeline.model.logprobs import sequence_logps

PARTS = ("speed", "memory")
REPETITIONS = 3
SIDES = ("ours", "theirs", "theirs, answers only")
SHORT, LONG, HALF, TINY = Lengths(96, 16, 96), Lengths(512, 128, 128), Lengths(256, 128, 128), Lengths(24, 12, 12)
SMALL, LARGE = Shape(256, 4, 4096), Shape(512, 8, 8192)


@dataclass(frozen=True)
class Case:
    """``preferences`` of an optimizer step; two candidates make pairs, more a ranking."""

    shape: Shape
    lengths: Lengths
    candidates: int
    preferences: int
    sides: tuple[str, ...] = SIDES

    def settings(self, precision: Any) -> UpdateConfig:
        objective = "sigmoid" if self.candidates == 2 else "plackett_luce"
        # Two steps over one and the same batch: its order is then of no account.
        return SETTINGS.model_copy(
            update={"objective": {objective: 1.0}, "batch_size": self.preferences, "epochs": 2, "precision": precision}
        )


@dataclass(frozen=True)
class Plan:
    """What is run: preferences per step are few, so that all of it takes minutes."""

    cases: tuple[Case, ...] = (
        Case(SMALL, SHORT, 2, 4),
        Case(SMALL, LONG, 2, 1),
        Case(LARGE, SHORT, 2, 2),
        Case(LARGE, LONG, 2, 1),
        Case(SMALL, SHORT, 8, 1),
        Case(SMALL, LONG, 8, 1, sides=SIDES[:2]),  # each side of trl takes minutes here
    )
    memory_shapes: tuple[Shape, ...] = (Shape(128, 2, 32_000), Shape(128, 2, 150_000))
    memory_lengths: Lengths = HALF
    memory_pairs: tuple[int, ...] = (2, 8, 32)  # of 510 tokens each


QUICK = Plan(
    cases=(Case(Shape(64, 2, 512), Lengths(24, 4, 12), 2, 4), Case(Shape(64, 2, 512), Lengths(24, 4, 12), 8, 1)),
    memory_shapes=(Shape(64, 2, 32_000),),
    memory_lengths=TINY,
    memory_pairs=(2, 4),
)


@dataclass
class Measured:
    """Seconds of one case, one entry for each repetition; ``micro_batch`` is trl's."""

    case: Case
    parameters: int
    micro_batch: int
    step: dict[str, list[float]] = field(default_factory=dict)
    whole: dict[str, list[float]] = field(default_factory=dict)

    def ratios(self, slower: str, faster: str, what: str = "step") -> list[float]:
        seconds = getattr(self, what)
        return [a / b for a, b in zip(seconds[slower], seconds[faster], strict=True)]

    def rate(self, side: str) -> float:
        return self.case.preferences / median(self.step[side])


def measure(case: Case, precision: str, micro_batches: dict[Any, int]) -> Measured:
    """Run all contestants of a case in turn. ``micro_batches`` are the fastest so far, by shape and lengths."""
    model, settings = case.shape.build(), case.settings(precision)
    groups = with_reference(model, case.lengths.preferences(case.preferences, case.candidates, case.shape.vocabulary))
    place = (case.shape, case.lengths)
    if place not in micro_batches:
        micro_batches[place] = _fastest_micro_batch(model, groups, settings)
    micro_batch = micro_batches[place]
    found = Measured(case, sum(weight.numel() for weight in model.parameters()), micro_batch)
    for _ in range(REPETITIONS):
        for name in case.sides:
            if name == "ours":
                seconds = ours(model, groups, settings)
            else:
                compact = name == "theirs, answers only"
                seconds = theirs(model, groups, settings, micro_batch=micro_batch, answers_only=compact)
            found.step.setdefault(name, []).append(seconds.step)
            found.whole.setdefault(name, []).append(seconds.whole)
        for name, bare in (("gradient", gradient), ("floor", floor)):
            found.step.setdefault(name, []).append(bare(model, groups, settings))
    return found


def _fastest_micro_batch(model: Any, groups: Sequence[Any], settings: UpdateConfig) -> int:
    """Of 1, 2 and all pairs at once; on the way, check that both sides do the same work."""
    pairs = sum(len(pairs_of(group)) for group in groups)
    trials = {size: theirs(model, groups, settings, micro_batch=size) for size in sorted({1, min(2, pairs), pairs})}
    margins = [
        fmean(chosen - rejected for chosen, rejected in sequence_logps(left, groups, settings.token_budget))
        for left in (ours(model, groups, settings).model, *(trial.model for trial in trials.values()))
    ]
    start = fmean(chosen - rejected for chosen, rejected in (group.reference_logps for group in groups))
    learned = [margin - start for margin in margins]
    # Float32 leaves five digits in common; bfloat16 rounds each side in places of its own.
    tolerance = 1e-3 if settings.precision == "float32" else 0.2
    if not all(abs(other - learned[0]) <= tolerance * learned[0] for other in learned[1:]):
        raise SystemExit(f"the sides left policies with other margins, in nats: {learned}; nothing was timed")
    return min(trials, key=lambda size: trials[size].step)


def measure_memory(plan: Plan, precision: str) -> list[dict[str, Any]]:
    """Growth of the resident set in a pass over all pairs, each side in a process of its own, forked from one that has
    all libraries loaded. What this machine's memory would not hold is left out.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # where the fork server finds what it loads beforehand
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["update_contestants"])
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for shape, pairs in product(plan.memory_shapes, plan.memory_pairs):
            lengths = plan.memory_lengths
            tokens = sum(group.packed_tokens for group in lengths.preferences(pairs, 2, shape.vocabulary))
            settings = SETTINGS.model_copy(update={"precision": precision, "token_budget": tokens})
            peaks: dict[str, int | None] = {}
            for side in SIDES:
                work = (side, shape, lengths, pairs, settings)
                fits = side == "ours" or _logits_of_trl(side, shape, lengths, pairs) < available_memory()
                peaks[side] = processes.submit(peak_memory, *work).result() if fits else None
            rows.append({"vocabulary": shape.vocabulary, "tokens": tokens, "pairs": pairs, "bytes": peaks})
    return rows


def _logits_of_trl(side: str, shape: Shape, lengths: Lengths, pairs: int) -> float:
    """Bytes of the five tensors of logits' size that it was seen to hold at a time, with some room."""
    positions = 2 * pairs * (lengths.longest + (0 if side == "theirs, answers only" else lengths.prompt))
    return 6.0 * positions * shape.vocabulary * 4


def speed_table(measured: Sequence[Measured], title: str) -> Table:
    columns = ["step", "tokens", "ours /s", "trl /s", "ratio", "whole", "answers only", "pairs in a pass of trl"]
    table = _table(title, ["model", *columns])
    for one in measured:
        table.add_row(
            *_label(one),
            f"{one.rate('ours'):.3g}",
            f"{one.rate('theirs'):.3g}",
            _spread(one.ratios("theirs", "ours"), strong=True),
            _spread(one.ratios("theirs", "ours", "whole")),
            _spread(one.ratios("theirs, answers only", "ours")) if "theirs, answers only" in one.step else "-",
            str(one.micro_batch),
        )
    return table


def floor_table(measured: Sequence[Measured]) -> Table:
    table = _table(
        "3. Against a bare forward and backward pass", ["model", "step", "tokens", "passes / floor", "step / floor"]
    )
    for one in measured:
        table.add_row(
            *_label(one), _spread(one.ratios("gradient", "floor"), strong=True), _spread(one.ratios("ours", "floor"))
        )
    return table


def memory_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    title = "4. Peak memory beyond model and pairs, MiB, with gradients and moments; -: more than this machine has"
    table = _table(title, ["vocabulary", "tokens", "pairs", "ours", "trl", "ratio", "answers only", "ratio"])
    for row in rows:
        mine, *others = (row["bytes"][side] for side in SIDES)
        cells = [f"{mine / 2**20:,.0f}"]
        for other in others:
            cells += ["-", "-"] if other is None else [f"{other / 2**20:,.0f}", f"{other / mine:.1f}x"]
        table.add_row(f"{row['vocabulary']:,}", f"{row['tokens']:,}", str(row["pairs"]), *cells)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.MARKDOWN)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _label(one: Measured) -> tuple[str, str, str]:
    batch = f"{one.case.preferences} with K={one.case.candidates}"
    return f"{one.parameters / 1e6:.1f}M", batch, str(one.case.lengths)


def _spread(ratios: Sequence[float], *, strong: bool = False) -> str:
    middle = f"{median(ratios):.2f}x"
    return f"{f'**{middle}**' if strong else middle} ({min(ratios):.2f}-{max(ratios):.2f})"


def run_speed(plan: Plan, precision: str, console: Console) -> list[Measured]:
    measured: list[Measured] = []
    micro_batches: dict[Any, int] = {}
    for case in plan.cases:
        measured.append(measure(case, precision, micro_batches))
        console.print(f"measured {' '.join(_label(measured[-1]))}", highlight=False)
    console.print(
        speed_table([one for one in measured if one.case.candidates == 2], "1. Pairs, against trl"),
        speed_table(
            [one for one in measured if one.case.candidates > 2], "2. Rankings, against trl on all pairs of each"
        ),
        floor_table(measured),
    )
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of the update, against trl and against a bare pass.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("build/bench_update.json"), help="the JSON file to write")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of forward passes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 200)
    plan = QUICK if arguments.quick else Plan()
    before = machine("torch", "transformers", "trl")
    report: dict[str, Any] = {"before": before, "precision": arguments.precision, "repetitions": REPETITIONS}
    if "speed" in arguments.parts:
        report["speed"] = [asdict(one) for one in run_speed(plan, arguments.precision, console)]
    if "memory" in arguments.parts:
        report["memory"] = measure_memory(plan, arguments.precision)
        console.print(memory_table(report["memory"]))
    report["after"] = machine()
    write_report(report, arguments.out)
    console.print(
        f"{told(before, report['after'])}; {arguments.precision}, one thread, median of {REPETITIONS} "
        f"(lowest-highest); written to {arguments.out}",
        highlight=False,
    )


if __name__ == "__main__":
    main()
