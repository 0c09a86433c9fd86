"""Where runs come from: forks and what they were forked from, rounds and what they were made from."""

from typing import Any

from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import Parent, forks, parents


def lineage(store: Store, name: str | None = None, *, weights: str) -> list[dict[str, Any]]:
    """Describes all runs, or the family of one: what it was forked from, up to the first, and all forks of that.

    Each run has its ``header``, its ``parent``, its ``rounds`` and its ``releases``, the tombstones. Each round has
    what it recorded, the ``session`` that finished it, and whether its weights are there. Runs come before their
    forks, but for those whose headers go round in a circle.

    Args:
        weights: the stage whose files are the weights of a round.

    Raises:
        RunNotFoundError: there is no such run.
    """
    known = parents(store.objects)
    if name is not None and name not in known:
        raise store.no_run(name)
    if name is None:
        first = [run for run, parent in known.items() if parent is None or parent[0] not in known]
    else:
        first = [_first(known, name)]
    names = [run for top in first for run in (top, *forks(known, top))]
    names += [run for run in known if name is None and run not in names]
    return [_describe(store.run(run, intact_part=True), known[run], known, weights) for run in names]


def _first(known: dict[str, Parent | None], name: str) -> str:
    seen = {name}
    while (parent := known[name]) is not None and parent[0] in known and parent[0] not in seen:
        name = parent[0]
        seen.add(name)
    return name


def _describe(run: Run, parent: Parent | None, known: dict[str, Parent | None], weights: str) -> dict[str, Any]:
    dropped = run.dropped
    tombstones = {entry.number: entry for entry in dropped.values()}
    return {
        "run": run.name,
        "parent": None if parent is None else {"run": parent[0], "round": parent[1]},
        "forks": sorted(other for other, start in known.items() if start is not None and start[0] == run.name),
        "state": run.state,
        "paused": run.pause is not None,
        "header": run.header,
        "rounds": [_describe_round(run, number, parent, weights) for number in run.finished],
        "releases": [
            {
                "time": entry.time,
                "reason": entry.meta.get("reason"),
                "files": [file.path for file in entry.files],
                "bytes": sum(file.bytes for file in entry.files),
            }
            for _, entry in sorted(tombstones.items())
        ],
    }


def _describe_round(run: Run, number: int, parent: Parent | None, stage: str) -> dict[str, Any]:
    entry, weights = run.round_entry(number), run.files(number, stage)
    there = not any(file.path in run.dropped for file in weights) if weights else None
    return {
        "round": number,
        "finished": entry.time,
        "inherited": parent is not None and number <= parent[1],
        "weights": {None: None, True: "there", False: "removed"}[there],
        "inputs": {
            f"{key.stage}{'' if key.shard is None else f' {key.shard}'}": key.inputs
            for commit in run.entries(round=number)
            if (key := commit.key) is not None and key.inputs
        },
        "record": entry.meta,
        "session": run.finished_by(number).meta,
    }
