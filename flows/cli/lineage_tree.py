"""The lineage of runs as a tree for the terminal, and as rows."""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from rich.text import Text
from rich.tree import Tree

from flows.registry.catalog import state_of
from flows.registry.head import failed_gate

_SHORT = 8


def lineage_tree(runs: Sequence[Mapping[str, Any]], root: str, waiting: Container[str] = ()) -> Tree:
    """Draws runs with their rounds; a fork hangs at the round that it starts from.

    Args:
        runs: as ``storage.queries.lineage`` describes them.
        root: where they are.
        waiting: names of those that wait for labels.
    """
    tree = Tree(Text(f"runs in {root}"))
    left = {run["run"]: run for run in runs}
    for run in [*(run for run in runs if run["parent"] is None or run["parent"]["run"] not in left), *runs]:
        if run["run"] in left:  # else it is drawn already, as a fork
            _add(tree, run, left, waiting)
    return tree


def lineage_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Gives the same as rows, one for each round of each run."""
    return [
        {
            "run": run["run"],
            "parent": None if run["parent"] is None else "{run}@{round}".format(**run["parent"]),
            "round": round["round"],
            "policy": round["record"].get("policy"),
            "reward": round["record"].get("reward"),
            "weights": round["weights"],
        }
        for run in runs
        for round in run["rounds"]
    ]


def _add(tree: Tree, run: Mapping[str, Any], left: dict[str, Mapping[str, Any]], waiting: Container[str]) -> None:
    """Draws a run and its forks, those that are left to draw."""
    del left[run["run"]]
    branch = tree.add(_of_run(run, waiting=run["run"] in waiting))
    forks = [left[name] for name in run["forks"] if name in left]
    for round in run["rounds"]:
        starting = [fork for fork in forks if fork["parent"]["round"] == round["round"]]
        # What a fork shares with its parent is drawn there, unless another fork starts from it.
        if round["inherited"] and not starting:
            continue
        leaf = branch.add(_of_round(round))
        for fork in starting:
            _add(leaf, fork, left, waiting)


def _of_run(run: Mapping[str, Any], *, waiting: bool) -> Text:
    recipe = run["header"].get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    parent, done = run["parent"], len(run["rounds"]) - 1
    last = run["rounds"][-1]["record"] if run["rounds"] else {}
    finished = done >= recipe.get("rounds", math.inf) or (last.get("gate") or {}).get("ends") == "patience"
    state = state_of(run["state"], paused=run["paused"], finished=finished, waiting=waiting)
    text = Text.assemble((run["run"], "bold"), f"  {recipe.get('name', '')}  {_extent(done + 1)}  {state}")
    return text if parent is None else text.append(f"  fork of {parent['run']}@{parent['round']}")


def _of_round(round: Mapping[str, Any]) -> Text:
    record = round["record"]
    origin = record.get("origin") or {}
    parts = [f"round {round['round']}"]
    if "policy" in record:
        parts.append(f"policy {record['policy'][:_SHORT]}")
    if record.get("reference"):
        parts.append(f"reference {record['reference'][:_SHORT]}")
    if origin.get("prompts"):
        parts.append(f"prompts {origin['prompts'][:_SHORT]}")
    if record.get("reward") is not None:
        parts.append(f"reward {record['reward']:+.3f}")
    if failed_gate(record):
        parts.append("gate failed")
    if round["weights"] == "removed":
        parts.append("weights removed")
    return Text("  ".join(parts))


def _extent(finished: int) -> str:
    """Says which rounds are finished; round 0 is the initial policy alone."""
    return "no round yet" if not finished else "round 0" if finished == 1 else f"rounds 0 to {finished - 1}"
