"""What the report of a run says: its cards, charts, tables, completions and commands, and the page they make."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from flows.registry.catalog import ended_by_patience
from flows.registry.gate_result import gate_words
from flows.registry.packing_check import untried_lengths
from flows.registry.recipes import changed_fields
from flows.registry.round_summary import RoundSummary, rows_of, start_among, summaries
from flows.report.advice import Complaint, complaints
from flows.report.data import Completions, held_out_completions, optimizer_steps, sampled_scores
from flows.report.rendering import to_page
from flows.report.sections import Section, sections
from flows.report.timeline import timeline
from pipeline.errors import DataError
from pipeline.recipe import Recipe
from storage.errors import RunNotFoundError
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import parent_of

_TIMED_ROUNDS = 2
"""Rounds whose timeline is shown: the last ones."""

_TODAY = {"hand over": "weight sync"}
"""Parts of a round that are called otherwise in the store."""


@dataclass(frozen=True)
class Card:
    """A key metric, what to hold it against, and on a page with links where it leads."""

    label: str
    value: str
    details: list[str]
    target: str | None = None


@dataclass(frozen=True)
class Report:
    """What the page shows; all but the charts is plain text."""

    run: str
    recipe: Recipe
    facts: list[str]
    parent: tuple[str, int] | None
    untried: str | None
    base_rate: str | None
    last: int
    cards: list[Card]
    alarms: list[Complaint]
    sections: list[Section]
    tables: dict[str, list[dict[str, str]]]
    completions: Completions
    recipe_yaml: str
    packages: Mapping[str, str]
    commands: dict[str, list[str]]


def gather(store: Store, run: Run) -> Report:
    """Gathers everything that the report of a run shows.

    Raises:
        DataError: no round is finished.
    """
    rounds = summaries(run.rounds())
    if not rounds:
        raise DataError(f"run '{run.name}' has no finished round to report: 'rondo resume {run.name}' goes on with it")
    recipe = Recipe.model_validate(run.header["recipe"])
    stages = list(rounds[-1].seconds)
    others = list(dict.fromkeys(name for summary in rounds for name in summary.judges))
    return Report(
        run=run.name,
        recipe=recipe,
        facts=facts_of(recipe, _state(run, recipe, rounds[-1].round), rounds[-1].round),
        parent=parent_of(run.header),
        untried=untried_lengths(run),
        base_rate=rounds[0].base_rate,
        last=rounds[-1].round,
        cards=list(key_metrics(rounds, recipe)),
        alarms=complaints(rounds),
        sections=sections(
            rounds,
            sampled_scores(store, run, rounds),
            optimizer_steps(store, run, rounds),
            timeline(run, [summary.round for summary in rounds[1:][-_TIMED_ROUNDS:]] or [0]),
        ),
        tables={
            "Held-out metrics": rows_of(rounds),
            "Judges and preferences": [_watched(summary, others) for summary in rounds],
            "Updates, checks and costs": [_work(summary, stages, recipe.staleness) for summary in rounds],
        },
        completions=held_out_completions(store, run, rounds[-1]),
        recipe_yaml=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100),
        packages=run.header["packages"],
        commands=_commands(store, run, recipe, rounds[-1].round),
    )


def render(report: Report) -> str:
    """Renders the page: text is escaped, and the charts alone are markup."""
    return to_page("report.html.j2", report.run, report=report)


def facts_of(recipe: Recipe, state: str, done: int) -> list[str]:
    """Says what a run is, in a few words each.

    Args:
        done: the newest finished round.
    """
    return [
        f"{state}, {done} of {max(done, recipe.rounds)} rounds",
        f"recipe {recipe.name}",
        f"judge {recipe.judge.label}",
        f"seed {recipe.seed}",
    ]


def _state(run: Run, recipe: Recipe, done: int) -> str:
    complete = done >= recipe.rounds or ended_by_patience(run)
    return "finished" if run.state == "stopped" and complete else run.state


def key_metrics(rounds: Sequence[RoundSummary], recipe: Recipe) -> Iterator[Card]:
    """Yields the metrics of the last round that one looks at first."""
    first, last = rounds[0], rounds[-1]

    def before(value: float | None, form: str) -> list[str]:
        return [] if value is None or last is first else [f"{value:{form}} in round {first.round}"]

    error = "one scored answer" if last.reward_se is None else f"±{last.reward_se:.3f} standard error"
    yield Card("Held-out reward", f"{last.reward:+.3f}", [*before(first.reward, "+.3f"), error, "at temperature 1"])
    if last.served is not None and last.served.reward is not None:
        settings = recipe.evaluation.serving
        how = [] if settings is None else [f"temperature {settings.temperature:g}, top-p {settings.top_p:g}"]
        earlier = before(None if first.served is None else first.served.reward, "+.3f")
        yield Card("Reward as served", f"{last.served.reward:+.3f}", [*earlier, *how])
    if last.win_rate_initial is not None and last.win_rate_previous is not None:
        previous = f"{last.win_rate_previous:.1%} against round {start_among(rounds, last.round)}"
        yield Card("Win rate against round 0", f"{last.win_rate_initial:.1%}", [previous])
    if last.gate is not None:
        good = start_among(rounds, last.round + 1)
        yield Card("Gate", gate_words(last.gate), [f"the last good policy is that of round {good}"])
    for name, score in last.judges.items():
        yield Card(f"Judge {name}", f"{score:.3f}", [*before(first.judges.get(name), ".3f"), "held-out judge"])
    if last.kl_initial is not None:
        limit = recipe.evaluation.kl_limit
        error = f"{'' if last.kl_initial_se is None else f'±{last.kl_initial_se:.2f} '}nats per sequence"
        yield Card("KL to round 0", f"{last.kl_initial:.2f}", [error, *([f"alarm above {limit:g}"] if limit else [])])
    truncated = f"{last.truncated:.1%} truncated"
    if last.thought_length is not None:
        truncated += f", {last.cut_in_thought:.1%} within the thought"
    yield Card("Tokens per completion", f"{last.length:.1f}", [*before(first.length, ".1f"), truncated])
    if last.thought_length is not None:
        answer = f"{last.answer_length:.1f} of the answer"
        yield Card("Tokens of thought", f"{last.thought_length:.1f}", [*before(first.thought_length, ".1f"), answer])
    entropy = before(first.entropy_per_token, ".2f")
    yield Card("Entropy", f"{last.entropy_per_token:.2f}", [*entropy, "nats per token"])


def _watched(summary: RoundSummary, others: Sequence[str]) -> dict[str, str]:
    """Says what the judge left open in a round, what its preferences favour, and how it compares with others."""
    row = {
        "round": str(summary.round),
        "unjudged": _shown(summary.unjudged, "d"),
        "ties": _shown(summary.tied, ".1%"),
        "unparsable": _shown(summary.unparsable, ".1%"),
        "flips": _shown(summary.flipped, ".1%"),
        "score and length": _shown(summary.length_correlation, "+.2f"),
        "chosen longer by": _shown(summary.length_margin, "+.1f"),
        "replayed": _shown(summary.replayed, "d"),
        "rounds old": _shown(summary.replayed_age, ".1f"),
    }
    for name in others:
        row[f"agrees with {name}"] = _shown(summary.agreement.get(name), ".1%")
        row[f"ahead of {name}"] = _shown(summary.gaps.get(name), "+.2f")
    return row


def _work(summary: RoundSummary, stages: Sequence[str], staleness: int) -> dict[str, str]:
    """Says what a round's update learned from, whether its checks held, and what it cost.

    With staleness the reference lags: by so many nats, for so many seconds in which the next round was sampled.
    """
    dropped = ", ".join(f"{count} {reason}" for reason, count in summary.dropped.items())
    first, expected = summary.first_loss, summary.first_loss_expected
    seconds = {f"{_TODAY.get(stage, stage)}, s": _shown(summary.seconds.get(stage), ".1f") for stage in stages}
    lag = {"KL to reference at start": _shown(summary.first_kl, ".2f")} if staleness else {}
    return {
        "round": str(summary.round),
        "preferences": _shown(summary.preferences, "d"),
        "dropped": dropped or ("-" if summary.preferences is None else "none"),
        "steps": _shown(summary.steps, "d") if summary.no_update is None else "no update",
        "first loss": _shown(first, ".4f"),
        "off by": _shown(None if first is None or expected is None else first - expected, "+.0e"),
        **lag,
        "last loss": _shown(summary.last_loss, ".4f"),
        "accuracy": _shown(summary.train_accuracy, ".1%"),
        "drift": f"{summary.handover_drift:.0e}",
        "tokens/s": f"{summary.tokens_per_second:,.0f}",
        **seconds,
    }


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _commands(store: Store, run: Run, recipe: Recipe, done: int) -> dict[str, list[str]]:
    root = shlex.quote(store.root)
    parent = run.header["parent"]
    rounds = f"--rounds {max(done, 1)}"
    if parent:
        changes = " ".join(f"--set {shlex.quote(change)}" for change in _changes(store, parent["run"], recipe))
        source = f"{parent['run']}@{parent['round']}"
        again = f"rondo fork {source} --name {run.name}-again --run {rounds} {changes}".rstrip()
    else:
        again = f"rondo run {recipe.name}.yaml --name {run.name}-again {rounds}"
    tables = [f"rondo show {run.name}@{done} --table preferences", f"rondo export {run.name}@{done} --to pairs"]
    look = [f"rondo rounds {run.name}", *(tables if done else [])]
    more = [f"rondo resume {run.name} --rounds {done + 1}", f"rondo fork {run.name}@{done} --name NEW --set KEY=VALUE"]
    return {
        "Run it again": [f"{again} --root {root}"],
        "Look into it": [f"{command} --root {root}" for command in look],
        "Go on from it": [f"{command} --root {root}" for command in more],
    }


def _changes(store: Store, parent: str, recipe: Recipe) -> list[str]:
    """Returns the fields in which a fork differs from its parent; none if the parent is gone."""
    try:
        recorded = Recipe.model_validate(store.run(parent).header["recipe"])
    except RunNotFoundError:
        return []
    return [f"{name}={json.dumps(after)}" for name, _, after in changed_fields(recorded, recipe)]
