"""The tokens of a completion, coloured by their log-probability under the policy that sampled them."""

import math
import shlex
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from flows.view.filters import literal
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.stored_rows import prefix_of, prompt_rows, rows_of
from flows.view.terminal import root_option
from flows.view.token_changes import Change, changes_of
from flows.view.token_texts import TokenText, token_texts
from flows.view.update_effects import started_from
from pipeline.errors import ConfigError
from storage.errors import NotCommittedError

_MOST = 1500
"""Tokens on a page, which is to be below 1 MB."""
EDGES = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""Where one colour ends and the next begins, by what a token surprises: minus its log-probability, in nats."""
STEPS = (-3.0, -1.0, -0.25, -0.05, 0.05, 0.25, 1.0, 3.0)
"""The same for a change of log-probability, in nats: below the first it fell most, within the middle ones it stayed."""
_MARKS = str.maketrans({" ": "·", "\t": "⇥", "\n": "↵\n"})
"""What stands for white space."""

_COLUMNS = ("candidate", "token_ids", "logprobs", "finish_reason", "policy")

_SUMS = """
    SELECT policy, previous, initial FROM logps
    WHERE round = $round AND prompt_id = $prompt AND candidate = $candidate"""

_ELSEWHERE = """SELECT unnest(c.token_ids) AS id, unnest(c.logprobs) AS logp{change}
FROM {tables}
WHERE c.round = {round} AND c.prompt_id = {prompt} AND c.candidate = {candidate}"""


def page(
    opened: OpenRun, round: int, kind: str, prompt_id: str, candidate: int, start: int = 0, by: str | None = None
) -> Page:
    """Shows the tokens of a completion.

    Args:
        start: the number of the first token to show.
        by: the name of the change that colours them; by default how much each surprised.

    Raises:
        ConfigError: there is no such kind of completions, or this change of it was not measured.
        NotCommittedError: there is no such completion.
    """
    stage, which = f"{prefix_of(kind)}candidates", {"prompt": prompt_id, "candidate": candidate}
    rows = rows_of(opened, round, stage, prompt_id, _COLUMNS)
    found = [row for row in rows if row["candidate"] == candidate]
    if not found:
        raise NotCommittedError(
            f"round {round} of run '{opened.name}' has no {kind} completion {candidate} of prompt '{prompt_id}'"
        )
    row, place = found[0], {**which, "round": round, "kind": kind}
    first = min(start, max(len(row["token_ids"]) - 1, 0)) // _MOST * _MOST
    others = [row["candidate"] for row in rows]
    texts = _texts(opened, round, prompt_id, row["token_ids"], first)
    changes = changes_of(opened, round, kind, prompt_id, row)
    change = _change(changes.found, by)
    known = [logp for logp in row["logprobs"] if math.isfinite(logp)]
    values = {
        **place, "row": row, "has_texts": texts is not None, "first": first,
        "before": max((other for other in others if other < candidate), default=None),
        "after": min((other for other in others if other > candidate), default=None),
        "changes": changes.found, "missing": changes.missing, "change": change, "by": by, "steps": STEPS,
        "tokens": _tokens(row, texts, first, change), "count": len(row["token_ids"]), "most": _MOST, "edges": EDGES,
        "total": math.fsum(known) if known else None, "mean": math.fsum(known) / len(known) if known else None,
        "sums": next(iter(opened.tables.ask(_SUMS, {**which, "round": round}) if kind == "held-out" else []), None),
        "started_from": started_from(opened, round), **_elsewhere(opened, stage, place, change),
    }  # fmt: skip
    return Page("tokens.html.j2", f"Tokens of completion {candidate} of {prompt_id}", values, run=opened.name)


def level(logp: float) -> int | None:
    """Returns which of ten colours a token has, 0 for the likeliest; none if its log-probability is no number."""
    return bisect(EDGES, -logp) if math.isfinite(logp) else None


def step(change: float) -> int | None:
    """Returns which of nine colours a change has, 4 for none; none if it is no number."""
    return bisect(STEPS, change) if math.isfinite(change) else None


def marked(text: str) -> str:
    """Puts marks in the place of white space; ends of lines stay behind theirs."""
    return text.translate(_MARKS)


def _change(found: Sequence[Change], by: str | None) -> Change | None:
    if by is None:
        return None
    change = next((change for change in found if change.name == by), None)
    if change is None:
        has = ", ".join(change.name for change in found) or "none"
        raise ConfigError(f"the change '{by}' of these tokens was not measured; those that were: {has}")
    return change


def _texts(opened: OpenRun, round: int, prompt_id: str, token_ids: Sequence[int], first: int) -> list[TokenText] | None:
    """Returns the texts of the tokens that are shown; None if the run has no tokenizer left."""
    tokenizer = token_texts(opened.store, opened.run, round)
    if tokenizer is None:
        return None
    prompt = prompt_rows(opened, prompt_id, ["token_ids"])
    before = [*(prompt[0]["token_ids"] if prompt else ()), *token_ids[:first]]
    return tokenizer.of(before, token_ids[first : first + _MOST])


def _tokens(
    row: Mapping[str, Any], texts: Sequence[TokenText] | None, first: int, change: Change | None
) -> list[dict[str, Any]]:
    ids, logps = (row[name][first : first + _MOST] for name in ("token_ids", "logprobs"))
    tokens = []
    for place, (number, logp) in enumerate(zip(ids, logps, strict=True)):
        text = None if texts is None else texts[place]
        part = text is not None and text.text is None
        label = str(number) if text is None else f"[{text.name}]" if part else marked(text.text or "")
        changed = None if change is None else change.values[first + place]
        colour = _colour("p", level(logp)) if changed is None else _colour("d", step(changed))
        tokens.append({
            "place": first + place, "id": number, "logp": logp if math.isfinite(logp) else None, "colour": colour,
            "changed": changed if changed is not None and math.isfinite(changed) else None,
            "label": label, "part": part, "special": text is not None and text.special,
        })  # fmt: skip
    return tokens


def _colour(kind: str, number: int | None) -> str:
    return "" if number is None else f"{kind}{number}"


def _elsewhere(opened: OpenRun, stage: str, place: Mapping[str, Any], change: Change | None) -> dict[str, str]:
    table, round = stage.replace("candidates", "completions"), place["round"]
    where, prompt, source = f"candidate = {place['candidate']}", place["prompt"], f"{shlex.quote(opened.name)}@{round}"
    return {
        "sql": _ELSEWHERE.format(
            change="" if change is None else f",\n    {change.sql} AS change",
            tables=f"{stage} AS c" if change is None else change.tables,
            round=round,
            prompt=literal(prompt),
            candidate=place["candidate"],
        ),
        "command": f"rondo show {source} --table {table} --prompt {shlex.quote(prompt)} "
        f'--where "{where}" --format json{root_option(opened.store)}',
    }
