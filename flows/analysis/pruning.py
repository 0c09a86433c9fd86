"""Which rounds keep their weights, how long a stray file is left alone: what the store's own commands need to know."""

import re
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta

from flows.registry.catalog import existing_store
from flows.registry.checkpoints import base_of, is_adapter
from flows.registry.head import head_of, start_of
from flows.registry.resume import recipe_of
from flows.registry.resume_check import WEIGHT_STAGES, sampling_rounds, staleness_of
from flows.registry.round_summary import RoundSummary, summaries
from pipeline.errors import ConfigError
from pipeline.judges.implicit import ImplicitConfig
from storage.log.manifest import Entry
from storage.log.run import Run
from storage.log.store import Store
from storage.retention import prune as pruning
from storage.retention import sweep as sweeping
from storage.retention.prune import Pruning
from storage.retention.sweep import Stray

_GRACE = re.compile(r"(\d+)([smhd])")
_CLOCK_TOLERANCE = timedelta(minutes=1)
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def prune(name: str, root: str, *, last: int | None, every: int | None, best: Sequence[str], dry_run: bool) -> Pruning:
    """Removes weights and optimizer states of finished rounds, or says which would go.

    Raises:
        ConfigError: nothing says what to keep, or a metric is none.
        RunBusyError: another process writes to the run.
    """
    store = existing_store(root)
    run = store.run(name)
    if last is None and every is None and not best:
        raise ConfigError("say what to keep: --keep-last N, --keep-every M, --keep-best METRIC, or several of them")
    there = set(rounds_with_weights(run))
    rounds = [summary for summary in summaries(run.rounds()) if summary.round in there]
    keep = rounds_to_keep(rounds, last, every, best) | _judging(run)
    return plan(store, run, keep) if dry_run else prune_to(store, run, keep)


def rounds_with_weights(run: Run) -> list[int]:
    """Returns the finished rounds whose weights are there."""
    return pruning.rounds_with(run, "checkpoint")


def plan(store: Store, run: Run, keep: Collection[int]) -> Pruning:
    """Says what would go if the weights of these rounds, and those that are always kept, stayed."""
    return pruning.plan_pruning(store, run, _unneeded(run, keep))


def prune_to(store: Store, run: Run, keep: Collection[int]) -> Pruning:
    """Removes what :func:`plan` says; the tables stay.

    Raises:
        RunBusyError: another process writes to the run.
    """
    return pruning.prune(store, run, lambda run: _unneeded(run, keep))


def rounds_to_keep(
    rounds: Sequence[RoundSummary], last: int | None, every: int | None, best: Sequence[str]
) -> set[int]:
    """Returns the last N rounds, every Nth one, and the best by each metric; ``METRIC:min`` if less is better.

    Raises:
        ConfigError: the rounds have no such metric.
    """
    numbers = [summary.round for summary in rounds]
    kept = set(numbers[-last:] if last else [])
    kept |= {number for number in numbers if every is not None and number % every == 0}
    return kept | {_best(rounds, metric) for metric in best if rounds}


def sweep(root: str, grace: str, *, dry_run: bool, say: Callable[[str], None]) -> list[Stray]:
    """Removes the files that nobody names, or says which would go.

    Args:
        say: hears it if this machine's clock is not the store's, by which all ages are counted.

    Raises:
        ConfigError: the grace is no duration.
        CorruptEntryError: a log is damaged, so that nobody knows what it names.
    """
    store = existing_store(root)
    patience = parse_grace(grace)
    here, now = datetime.now(UTC), store.now()
    if abs(here - now) > _CLOCK_TOLERANCE:
        apart = timedelta(seconds=round(abs(here - now).total_seconds()))
        say(
            f"this machine's clock is {apart} {'ahead of' if here > now else 'behind'} that of {store.root}: ages are "
            "counted by the store's"
        )
    strays = sweeping.find_strays(store, now, patience)
    if not dry_run:
        sweeping.sweep(store, strays)
    return strays


def parse_grace(text: str) -> timedelta:
    """Reads a duration such as 90m, 24h or 7d."""
    match = _GRACE.fullmatch(text)
    if match is None:
        raise ConfigError(f"--grace '{text}' is no duration: give a number with s, m, h or d, such as 24h")
    try:
        return timedelta(**{_UNITS[match[2]]: int(match[1])})
    except OverflowError:
        raise ConfigError(f"--grace '{text}' is longer than all time: give a number such as 24h") from None


def _unneeded(run: Run, keep: Collection[int]) -> list[Entry]:
    """Returns the commits of weights and of optimizer states that no round to come reads.

    Tables stay. So do the weights of round 0, which the KL to the initial policy, adapters and forks need, those of the
    newest finished round, and those from which the next one starts, which a gate may have left further back. With a
    round stays the policy that samples the one after it: with staleness that is an earlier one, whose optimizer state
    and average go, as nobody would read them. An adapter that stays keeps the whole checkpoint that it changes.
    """
    finished = run.finished
    head, staleness = head_of(run), staleness_of(run)
    whole = {*keep, *finished[:1], *finished[-1:], *([] if head is None else [head])}
    sampling = {number for after in whole for number in sampling_rounds(run, after, staleness)}

    def stays(entry: Entry) -> bool:
        samples = entry.round in sampling and entry.key is not None and entry.key.stage == "checkpoint"
        return entry.round in whole or entry.round not in finished or samples

    entries = [entry for stage in sorted(WEIGHT_STAGES) for entry in run.entries(stage=stage)]
    adapters = {entry.round for entry in entries if stays(entry) and is_adapter(entry.files)}
    bases = {file.path for number in adapters for file in base_of(run, number)}
    return [entry for entry in entries if not stays(entry) and not bases & {file.path for file in entry.files}]


def _judging(run: Run) -> set[int]:
    """Returns the rounds whose policies judge the next one."""
    judges = [judge for judge in recipe_of(run).judges if isinstance(judge, ImplicitConfig)]
    return {number for judge in judges for number in judge.rounds(start_of(run, len(run.finished)) + 1)}


def _best(rounds: Sequence[RoundSummary], metric: str) -> int:
    name, _, direction = metric.partition(":")
    if direction not in ("", "min", "max"):
        raise ConfigError(f"--keep-best '{metric}': give METRIC, or METRIC:min if less is better")
    fields = [key for key in RoundSummary.model_fields if key != "round"]
    metrics = {
        key: {summary.round: value for summary in rounds if _is_metric(value := getattr(summary, key))}
        for key in fields
    }
    if not metrics.get(name):
        known = ", ".join(key for key, values in metrics.items() if values)
        raise ConfigError(f"--keep-best '{metric}': the rounds have no such metric, but {known}")
    sign = -1 if direction == "min" else 1
    return max(metrics[name], key=lambda number: (sign * metrics[name][number], -number))


def _is_metric(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
