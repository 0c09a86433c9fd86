"""The runs under a root: which there are, how far each is, which round ``RUN@ROUND`` names, and where its files lie.

``rondo runs`` and ``rondo rounds`` are to answer at once: this module imports no pyarrow, and pydantic only late.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.errors import WaitingForLabelsError
from flows.registry.head import head_of, start_of
from pipeline.errors import ConfigError
from storage.errors import CorruptEntryError, NotCommittedError
from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import parent_of

if TYPE_CHECKING:
    from flows.registry.round_summary import RoundSummary

NEWEST = "latest"
"""The round that stands for the newest one in ``RUN@latest``."""
_MOST_DIGITS = 9
"""Of a round's number, which is below a million."""
_LONGEST = 80
"""Letters of a mistyped RUN@ROUND that are said again."""
TABLE_ALIASES = {
    "completions": "candidates",
    "eval_completions": "eval_candidates",
    "served_completions": "served_candidates",
    "gate_completions": "gate_candidates",
}
"""What the field calls a table, and its name in the store."""

REJUDGMENTS = "rejudgments"
"""The stage of what was judged again, beside a run under the judge's name; also the name of its table in SQL."""


def existing_store(root: str) -> Store:
    """Opens the store under a root.

    Raises:
        ConfigError: there is no such root: to look at a misspelt one must not create it.
    """
    if "://" not in root and not Path(root).is_dir():
        raise ConfigError(f"there is no root '{root}': give the one that the run was started with, as --root")
    return Store.open(root)


def parse_source(source: str) -> tuple[str, int | None]:
    """Splits RUN@ROUND into the run's name and the round; None is the newest one, for RUN alone and for RUN@latest.

    Raises:
        ConfigError: it does not have that form.
    """
    shown = source if len(source) <= _LONGEST else f"{source[:_LONGEST]}…"
    name, _, text = source.partition("@") if "@" in source else (source, "@", NEWEST)
    if text != NEWEST and not (text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise ConfigError(
            f"'{shown}' is not RUN@ROUND: give a run and one of its rounds, such as demo@3 or demo@latest"
        )
    return name, None if text == NEWEST else int(text)


def run_at_round(store: Store, source: str, *, in_progress: bool = False) -> tuple[Run, int]:
    """Finds the run and the finished round that RUN@ROUND names.

    Args:
        in_progress: whether a round that is not finished, but has committed something, does as well. Without a number
            it is taken only if no round is finished.

    Raises:
        ConfigError: it does not have that form, or the round is not finished.
        RunNotFoundError: there is no such run.
    """
    name, asked = parse_source(source)
    run = store.run(name, intact_part=True)
    done = len(run.finished)
    number = done - 1 if asked is None else asked
    if in_progress and (begun := {entry.round for entry in run.unfinished()}):
        number = min(begun) if not done and asked is None else number
        if number in begun:
            return run, number
    if not done or number >= done:
        have = f"it has rounds 0 to {done - 1}" if done else "it has none yet"
        what = f"round {number} of run '{name}' is not finished" if asked is not None else f"run '{name}' has no round"
        raise ConfigError(f"{what}: {have}")
    return run, number


def policy_at_round(store: Store, source: str) -> tuple[Run, int]:
    """Finds the run and the round whose policy RUN@ROUND means; without a round that is the last good one.

    A round that failed its gate is taken if it is named.

    Raises:
        As for `run_at_round`.
    """
    run, number = run_at_round(store, source)
    return run, number if parse_source(source)[1] is not None else start_of(run, number + 1)


def committed_files(run: Run, number: int, table: str) -> list[FileRef]:
    """Lists the files of a round's table, or of another of its stages; prompts are those of the run.

    Raises:
        NotCommittedError: the round has committed no such stage.
        DroppedFileError: the files were removed on purpose.
    """
    stage = TABLE_ALIASES.get(table, table)
    files = run.files(0 if stage == "prompts" else number, stage)
    if not files:
        stages = sorted({entry.key.stage for entry in run.entries(number) if entry.key is not None} | {"prompts"})
        raise NotCommittedError(f"round {number} of run '{run.name}' has no {table}: it has {', '.join(stages)}")
    run.check_kept(files)
    return files


def location(store: Store, file: FileRef) -> str:
    """Says where a file lies: its path on a local disk, or its URI."""
    path = store.objects.local_path(file.path)
    return f"{store.root.rstrip('/')}/{file.path}" if path is None else str(path)


def list_runs(root: str) -> list[dict[str, Any]]:
    """Lists the runs under a root, a row for each."""
    store = existing_store(root)
    rows = []
    for name in store.run_names():
        try:
            rows.append(_row(store.run(name)))
        except CorruptEntryError:  # 'rondo verify' says more
            rows.append(_odd(name, "damaged"))
        except KeyError as error:
            rows.append(_odd(name, f"unreadable: nothing is recorded as {error}"))
        except (TypeError, AttributeError):  # its header has something else there
            rows.append(_odd(name, "unreadable: its header is not one that rondo writes"))
    return rows


def _odd(name: str, state: str) -> dict[str, Any]:
    """Returns the row of a run of which nothing else can be said."""
    return {"run": name, **dict.fromkeys(("recipe", "parent", "rounds", "reward")), "state": state}


def _row(run: Run) -> dict[str, Any]:
    # As it was recorded, with every field: to check it again would import all kinds of judges.
    recipe, parent, last = run.header["recipe"], parent_of(run.header), run.last_round
    done, planned = last.meta["round"] if last else 0, recipe["rounds"]
    head, waiting = head_of(run), waits_for_people(run) is not None
    finished = done >= planned or ended_by_patience(run)
    return {
        "run": run.name,
        "recipe": recipe["name"],
        "parent": f"{parent[0]}@{parent[1]}" if parent else None,
        "rounds": f"{done}/{max(done, planned)}",  # schedules add to those of the recipe
        "reward": None if head is None else run.round_entry(head).meta["reward"],
        "state": state_of(run.state, paused=run.pause is not None, finished=finished, waiting=waiting),
    }


def state_of(state: str, *, paused: bool, finished: bool, waiting: bool = False) -> str:
    """Returns a run's state as people are told it: running, waiting for people, paused, finished or stopped.

    Args:
        state: what its log says; see ``storage.log.run.Run.state``.
        paused: whether schedules leave it alone.
        finished: whether it has the rounds of its recipe.
        waiting: whether it waits for labels.
    """
    if state == "stopped" and paused:
        return "paused"
    if waiting:
        return "waiting for people"
    if state != "stopped":
        return state
    return "finished" if finished else "stopped"


def waits_for_people(run: Run) -> int | None:
    """Returns the round in which a run waits for labels; None if it does not.

    Without a Prefect server it has stopped for them. In one its process waits, and has committed nothing since it
    asked.
    """
    unfinished = run.unfinished()
    if not unfinished:
        return None
    if run.state == "stopped":
        return min(entry.round for entry in unfinished) if run.closed_by == WaitingForLabelsError.__name__ else None
    newest = unfinished[-1]
    return newest.round if newest.key is not None and newest.key.stage == "asked" else None


def ended_early(run: Run, goal: int) -> str | None:
    """Says why a run that has ended in order has fewer rounds than its goal, or a last one that its gate refused."""
    last = run.last_round
    if last is None:
        return None
    if ends := gate_ends(run):
        return _ended_by_gate(run, last.meta, goal, patience=ends == "patience")
    if last.meta["round"] >= goal:
        return None
    return (
        f"run '{run.name}' stopped after round {last.meta['round']} of {goal}, as preferences.on_none says: "
        f"{last.meta.get('no_update')}; 'rondo resume {run.name}' goes on with the next round"
    )


def ended_by_patience(run: Run) -> bool:
    """Says whether a run has ended before its last round, as its gate saw no gain for so long."""
    return gate_ends(run) == "patience"


def gate_ends(run: Run) -> str | None:
    """Says why a run's gate has ended it with its newest round: failures, patience, or None if it has not.

    A fork that has only its parent's rounds goes on, whatever these ended.
    """
    last, parent = run.last_round, parent_of(run.header)
    if last is None or (parent is not None and last.meta["round"] <= parent[1]):
        return None
    ends: str | None = (last.meta.get("gate") or {}).get("ends")
    return ends


def _ended_by_gate(run: Run, meta: dict[str, Any], goal: int, *, patience: bool) -> str:
    number, gate = meta["round"], meta["gate"]
    if patience:
        (reward,) = (measure for measure in gate["measures"] if measure["name"] == "reward")
        return (
            f"run '{run.name}' is finished with round {number} of {goal}, as gate.patience says: no gain in held-out "
            f"reward since round {reward['next_best']}; 'rondo resume {run.name} --rounds N' adds more"
        )
    many = f", the {gate['failures']} newest of which failed" if gate["failures"] > 1 else ""
    return (
        f"run '{run.name}' stopped after round {number} of {goal}{many}: {gate['why']}; 'rondo resume {run.name}' goes "
        "on from that policy"
    )


def list_rounds(name: str, root: str) -> list["RoundSummary"]:
    """Lists the finished rounds of a run."""
    from flows.registry.round_summary import summaries

    return summaries(existing_store(root).run(name).rounds())
