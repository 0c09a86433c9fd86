"""The cards of what is published: a front matter for machines, and what it is for people.

What a user or a model wrote stands in a card as text: it can open no link, tag or table of its own.
"""

import html
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import yaml

from flows.host.text import visible
from flows.registry.round_summary import RoundSummary, row_of, summaries
from storage.log.run import Run

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_MARKS = re.compile(r"[\\`*_\[\]#!|~:@$]")


def escaped(text: object) -> str:
    """Text in a line or a cell of Markdown, every mark of Markdown and HTML as an entity."""
    plain = html.escape(" ".join(visible(str(text)).split()))
    return _MARKS.sub(lambda mark: f"&#{ord(mark[0])};", plain)


def front_matter(values: Mapping[str, Any]) -> str:
    """The YAML block that a card begins with."""
    return f"---\n{yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)}---\n"


def facts(values: Mapping[str, object]) -> str:
    """A table of two columns without a head."""
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {escaped(value)} |" for name, value in values.items())])


def model_card(run: Run, round: int, repo: str, dataset: str | None) -> str:
    """The card of a round's checkpoint.

    Args:
        repo: where the model is published.
        dataset: where its preferences are, if they are published too.
    """
    recipe, done = run.header["recipe"], summaries(run.rounds())[: round + 1]
    last = done[-1]
    base = _base_model(recipe)
    front = front_matter({
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rondo", "dpo", "online-dpo", "preference-optimization"],
        **({"base_model": base} if base else {}),
        **({"datasets": [dataset]} if dataset else {}),
    })  # fmt: skip
    told = {
        "run": f"{run.name}, from recipe {recipe['name']}",
        "round": f"{round} of {recipe['rounds']}",
        "base model": base or "a small policy that the recipe trains first",
        "hash of the weights": last.policy,
        "judge": last.judge,
        "objective": _objective(recipe),
        "rondo": run.header.get("packages", {}).get("rondo", version("rondo")),
    }
    return f"""{front}
# {escaped(run.name)}, round {round}

{_origin(round)}

{facts(told)}

## Figures

Held-out prompts, never trained on. `reward` is the judge's mean score with its standard error, `win/0` and `win/prev`
the shares of prompts whose answer beats that of round 0 and of the round before, `KL` in nats per answer.

{_metrics(done)}

Nothing else was evaluated: neither other tasks nor safety.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```

or `vllm serve {repo}`.

## Recipe

{_fenced(yaml.safe_dump(_without_places(recipe), sort_keys=False, allow_unicode=True))}
"""


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
    """The card of a round's preferences.

    Args:
        kind: "pair" or "ranking".
        columns: what each column is.
        judge: its name and version.
        left_out: preferences without a row, because they rest on answers cut at the limit.
        conversational: whether prompts and answers are lists of messages, rather than texts.
    """
    meta, recipe = RoundSummary.model_validate(run.rounds()[round].meta), run.header["recipe"]
    front = front_matter({
        "pretty_name": f"{run.name}, round {round}",
        "task_categories": ["text-generation"],
        "tags": ["preference", "dpo", "rondo", *(["ranking"] if kind == "ranking" else [])],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*"}]}],
    })  # fmt: skip
    told: dict[str, object] = {"rows": len(rows)}
    if kind == "ranking":
        lengths = sorted({len(row["completions"]) for row in rows})
        told["answers in a ranking"] = f"{lengths[0]} to {lengths[-1]}" if len(lengths) > 1 else lengths[0]
    told |= {
        "prompts dropped": ", ".join(f"{count} {reason}" for reason, count in meta.dropped.items()) or "none",
        **({"left out, for an answer was cut at the limit": left_out} if left_out else {}),
        "run": f"{run.name}, from recipe {recipe['name']}",
        "round": round,
        "policy that sampled": meta.reference,
        "judge": judge,
        "rule": recipe["preferences"]["rule"],
    }
    form = (
        f"{'Pairs' if kind == 'pair' else 'Rankings'} {'in the conversational form' if conversational else 'of texts'}"
    )
    described = "\n".join(f"| `{name}` | {what} |" for name, what in columns.items())
    return f"""{front}
# Preferences of run {escaped(run.name)}, round {round}

{form}, written by rondo: answers that a policy gave to
prompts, put in order by a judge. The texts are as they were sampled, white space included.

{facts(told)}

## Columns

| column | what it is |
|---|---|
{described}

## Use

```python
from datasets import load_dataset

preferences = load_dataset("path/to/this/directory", split="train")
```
{_PAIRS_OF_RANKINGS if kind == "ranking" else ""}"""


# Most trainers take pairs.
_PAIRS_OF_RANKINGS = """
The best and the worst answer of each ranking, as a pair:

```python
pairs = preferences.map(
    lambda row: {"chosen": row["completions"][0], "rejected": row["completions"][-1]},
    remove_columns=["completions", "ranks", "scores", "finish_reasons"],
)
```
"""


def _origin(round: int) -> str:
    if round == 0:
        return "The policy that a run of online DPO, written by rondo, started from."
    return (
        "A policy after rounds of online DPO, written by rondo: in each round it answers prompts, a judge scores the\n"
        "answers, and it learns from the preferences that follow, with itself at the round's start as the reference."
    )


def _base_model(recipe: Mapping[str, Any]) -> str | None:
    """The hub id that the run started from, if it is one."""
    path = recipe["policy"].get("path") or ""
    return path if recipe["policy"]["source"] == "pretrained" and _HUB_ID.fullmatch(path) else None


def _objective(recipe: Mapping[str, Any]) -> str:
    update = recipe.get("update", {})
    objective = update.get("objective", "sigmoid")
    names = ", ".join(objective) if isinstance(objective, dict) else str(objective)
    return f"{names}, beta {update['beta']}" if "beta" in update else names


def _metrics(done: list[RoundSummary]) -> str:
    rows = [row_of(summary) for summary in done]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _without_places(value: Any) -> Any:
    """The recipe without the directories of the machine that it ran on: of an absolute path, its last part."""
    if isinstance(value, dict):
        return {name: _without_places(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return PurePath(value).name if isinstance(value, str) and PurePath(value).is_absolute() else value


def _fenced(text: str) -> str:
    """A block of code that its text cannot end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{visible(text)}{fence}"
