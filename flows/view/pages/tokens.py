"""The tokens of a completion, coloured by their log-probability under the policy that sampled them."""

import math
import shlex
from bisect import bisect
from collections.abc import Mapping, Sequence
from typing import Any

from flows.view.filters import literal
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.stored_rows import prefix_of, rows_of
from flows.view.terminal import root_option
from flows.view.token_texts import TokenText, token_texts
from storage.errors import NotCommittedError

_MOST = 1500
"""Tokens on a page, which is to be below 1 MB."""
EDGES = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""Where one colour ends and the next begins, by what a token surprises: minus its log-probability, in nats."""
_MARKS = str.maketrans({" ": "·", "\t": "⇥", "\n": "↵\n"})
"""What stands for white space."""

_COLUMNS = ("candidate", "token_ids", "logprobs", "finish_reason", "policy")

_SUMS = """
    SELECT policy, previous, initial FROM logps
    WHERE round = $round AND prompt_id = $prompt AND candidate = $candidate"""

_ELSEWHERE = """SELECT unnest(token_ids) AS id, unnest(logprobs) AS logp
FROM {stage}
WHERE round = {round} AND prompt_id = {prompt} AND candidate = {candidate}"""


def page(opened: OpenRun, round: int, kind: str, prompt_id: str, candidate: int, start: int = 0) -> Page:
    """Shows the tokens of a completion.

    Args:
        start: the number of the first token to show.

    Raises:
        ConfigError: there is no such kind of completions.
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
    known = [logp for logp in row["logprobs"] if math.isfinite(logp)]
    values = {
        **place, "row": row, "has_texts": texts is not None, "first": first,
        "before": max((other for other in others if other < candidate), default=None),
        "after": min((other for other in others if other > candidate), default=None),
        "tokens": _tokens(row, texts, first), "count": len(row["token_ids"]), "most": _MOST, "edges": EDGES,
        "total": math.fsum(known) if known else None, "mean": math.fsum(known) / len(known) if known else None,
        "sums": next(iter(opened.tables.ask(_SUMS, {**which, "round": round}) if kind == "held-out" else []), None),
        **_elsewhere(opened, stage, place),
    }  # fmt: skip
    return Page("tokens.html.j2", f"Tokens of completion {candidate} of {prompt_id}", values, run=opened.name)


def level(logp: float) -> int | None:
    """Returns which of ten colours a token has, 0 for the likeliest; none if its log-probability is no number."""
    return bisect(EDGES, -logp) if math.isfinite(logp) else None


def marked(text: str) -> str:
    """Puts marks in the place of white space; ends of lines stay behind theirs."""
    return text.translate(_MARKS)


def _texts(opened: OpenRun, round: int, prompt_id: str, token_ids: Sequence[int], first: int) -> list[TokenText] | None:
    """Returns the texts of the tokens that are shown; None if the run has no tokenizer left."""
    tokenizer = token_texts(opened.store, opened.run, round)
    if tokenizer is None:
        return None
    prompt = rows_of(opened, 0, "prompts", prompt_id, ["token_ids"])
    before = [*(prompt[0]["token_ids"] if prompt else ()), *token_ids[:first]]
    return tokenizer.of(before, token_ids[first : first + _MOST])


def _tokens(row: Mapping[str, Any], texts: Sequence[TokenText] | None, first: int) -> list[dict[str, Any]]:
    ids, logps = (row[name][first : first + _MOST] for name in ("token_ids", "logprobs"))
    tokens = []
    for place, (number, logp) in enumerate(zip(ids, logps, strict=True)):
        text = None if texts is None else texts[place]
        part = text is not None and text.text is None
        label = str(number) if text is None else f"[{text.name}]" if part else marked(text.text or "")
        tokens.append({
            "place": first + place, "id": number, "logp": logp if math.isfinite(logp) else None, "level": level(logp),
            "label": label, "part": part, "special": text is not None and text.special,
        })  # fmt: skip
    return tokens


def _elsewhere(opened: OpenRun, stage: str, place: Mapping[str, Any]) -> dict[str, str]:
    table, round = stage.replace("candidates", "completions"), place["round"]
    where, prompt, source = f"candidate = {place['candidate']}", place["prompt"], f"{shlex.quote(opened.name)}@{round}"
    return {
        "sql": _ELSEWHERE.format(stage=stage, round=round, prompt=literal(prompt), candidate=place["candidate"]),
        "command": f"rondo show {source} --table {table} --prompt {shlex.quote(prompt)} "
        f'--where "{where}" --format json{root_option(opened.store)}',
    }
