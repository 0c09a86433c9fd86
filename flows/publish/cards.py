"""The cards of what is published: a front matter for machines, and what it is for people.

Templates hold the text, and the Hub's own classes put both together. These escape nothing. So what a user or a model
wrote is escaped here, and can open no link, tag or table of its own.
"""

import html
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import Any

import yaml

from flows.host.text import visible
from flows.registry.round_summary import RoundSummary, rows_of, summaries
from storage.log.run import Run

_TEMPLATES = Path(__file__).parent / "templates"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKS = re.compile(r"[\\`*_\[\]#!|~:@$]")


def escaped(text: object) -> str:
    """Escapes text for a line or a cell of Markdown: every mark of Markdown and HTML becomes an entity."""
    plain = html.escape(" ".join(visible(str(text)).split()))
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", plain)


def model_card(run: Run, round: int, repo: str, dataset: str | None) -> str:
    """Writes the card of a round's checkpoint.

    Args:
        repo: where the model is published.
        dataset: where its preferences are, if they are published too.
    """
    from huggingface_hub import ModelCard, ModelCardData

    recipe, done = run.header["recipe"], summaries(run.rounds())[: round + 1]
    base, last = _base_model(recipe), done[-1]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["rondo", "dpo", "online-dpo", "preference-optimization"],
        base_model=base,
        datasets=[dataset] if dataset else None,
    )
    facts = {
        "run": f"{run.name}, from recipe {recipe['name']}",
        "round": f"{round} of {recipe['rounds']}",
        "base model": base or "a small policy that the recipe trains first",
        "hash of the weights": last.policy,
        "judge": last.judge,
        "objective": _objective(recipe),
        "rondo": run.header.get("packages", {}).get("rondo", version("rondo")),
    }
    card = ModelCard.from_template(
        data,
        template_path=str(_TEMPLATES / "model_card.md.j2"),
        title=f"{escaped(run.name)}, round {round}",
        round=round,
        facts=_escaped_values(facts),
        rounds=rows_of(done),
        repo=repo,
        recipe=_fenced(yaml.safe_dump(_without_places(recipe), sort_keys=False, allow_unicode=True)),
    )
    return f"{card}\n"


def dataset_card(
    run: Run,
    round: int,
    kind: str,
    columns: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    judge: str,
    *,
    left_out: int = 0,
    conversational: bool = True,
) -> str:
    """Writes the card of a round's preferences.

    Args:
        kind: "pair" or "ranking".
        columns: what each column is.
        judge: its name and version.
        left_out: number of preferences without a row, because they rest on completions cut at the limit.
        conversational: whether prompts and completions are lists of messages, rather than texts.
    """
    meta, recipe = RoundSummary.model_validate(run.rounds()[round].meta), run.header["recipe"]
    facts: dict[str, object] = {"rows": len(rows)}
    if kind == "ranking":
        lengths = sorted({len(row["completions"]) for row in rows})
        facts["answers in a ranking"] = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else lengths[0]
    facts |= {
        "prompts dropped": ", ".join(f"{count} {reason}" for reason, count in meta.dropped.items()) or "none",
        **({"left out, for an answer was cut at the limit": left_out} if left_out else {}),
        "run": f"{run.name}, from recipe {recipe['name']}",
        "round": round,
        "policy that sampled": meta.reference,
        "judge": judge,
        "rule": recipe["preferences"]["rule"],
    }
    return _dataset_card(
        f"{run.name}, round {round}", "a judge", facts, columns, kind=kind, conversational=conversational
    )


def tried_card(run: Run, columns: Mapping[str, str], rows: Sequence[Mapping[str, Any]], *, conversational: bool) -> str:
    """Writes the card of the preferences between answers that people tried; see `dataset_card`."""
    facts = {"rows": len(rows), "run": f"{run.name}, from recipe {run.header['recipe']['name']}"}
    return _dataset_card(
        f"{run.name}, tried", "people who saw which policy wrote which", facts, columns, conversational=conversational
    )


def _dataset_card(
    title: str,
    by: str,
    facts: Mapping[str, object],
    columns: Mapping[str, str],
    *,
    kind: str = "pair",
    conversational: bool,
) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    data = DatasetCardData(
        pretty_name=title,
        task_categories=["text-generation"],
        tags=["preference", "dpo", "rondo", *(["ranking"] if kind == "ranking" else [])],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(_TEMPLATES / "dataset_card.md.j2"),
        title=escaped(title),
        by=by,
        kind=kind,
        conversational=conversational,
        facts=_escaped_values(facts),
        columns=columns,
    )
    return f"{card}\n"


def _escaped_values(facts: Mapping[str, object]) -> dict[str, str]:
    return {name: escaped(value) for name, value in facts.items()}


def _base_model(recipe: Mapping[str, Any]) -> str | None:
    """Returns the hub id that the run started from; None if it started from anything else."""
    path = recipe["policy"].get("path") or ""
    return path if recipe["policy"]["source"] == "pretrained" and _HUB_ID.fullmatch(path) else None


def _objective(recipe: Mapping[str, Any]) -> str:
    update = recipe.get("update", {})
    objective = update.get("objective", "sigmoid")
    names = ", ".join(objective) if isinstance(objective, dict) else str(objective)
    return f"{names}, beta {update['beta']}" if "beta" in update else names


def _without_places(value: Any) -> Any:
    """Removes the directories of the machine from a recipe: of an absolute path, its last part stays."""
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _fenced(text: str) -> str:
    """Writes a block of code that its text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{visible(text)}{fence}"
