"""A run: its last metrics, alarms and curves, and what it is at now."""

from collections import Counter

from flows.registry.catalog import waits_for_people
from flows.registry.round_summary import rows_of, start_among
from flows.report.advice import complaints
from flows.report.page import facts_of, key_metrics
from flows.view.pages.runs import state
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.terminal import root_option
from storage.log.tombstones import parent_of

_WORK = {"candidates": "shards sampled", "judgments": "shards judged", "preferences": "shards with preferences"}
"""What people call the commits of a round that is at work."""


def page(opened: OpenRun) -> Page:
    """Shows a run."""
    shown = opened.state  # before what is read, which may be newer
    run, recipe, rounds = opened.run, opened.recipe, opened.rounds
    done = rounds[-1].round if rounds else 0
    facts = [*facts_of(recipe, state(run, done=done, goal=recipe.rounds), done)]
    failed = [summary.round for summary in rounds if summary.gate is not None and not summary.gate.passed]
    if rounds and (good := start_among(rounds, done + 1)) != done:
        facts.append(f"✗ round {done} failed its gate: the run's policy is that of round {good}")
    values = {
        "description": recipe.description,
        "facts": facts,
        "parent": parent_of(run.header),
        "waits": waits_for_people(run),
        "at_work": _at_work(opened),
        "cards": list(key_metrics(rounds, recipe)) if rounds else [],
        "alarms": complaints(reversed(rounds)),
        "rounds": opened.begun,
        "failed": failed,
        "sections": opened.sections,
        "command": f"rondo rounds {opened.name}{root_option(opened.store)}",
        "tables": {"Held-out metrics": rows_of(rounds)} if rounds else {},
    }
    return Page("run.html.j2", opened.name, values, run=opened.name, tab="Run", state=shown)


def _at_work(opened: OpenRun) -> dict[str, object] | None:
    """Counts what the round that is not finished has committed; None if there is none."""
    entries = opened.run.unfinished()
    if not entries:
        return None
    newest = min(entry.round for entry in entries)
    stages = Counter(entry.key.stage for entry in entries if entry.round == newest and entry.key is not None)
    return {"round": newest, "stages": {_WORK.get(stage, stage): count for stage, count in stages.items()}}
