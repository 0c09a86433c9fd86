"""A prompt in a round: its completions by rank, what they differ in, what the judges said, and what came of it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from flows.view.evidence import Evidence, evidence
from flows.view.filters import literal
from flows.view.prompt_texts import Texts
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.stored_rows import Rows, prefix_of, prompt_rows, rows_of
from flows.view.tables import KINDS
from flows.view.terminal import root_option
from flows.view.update_effects import effects, measured_preferences, measured_prompts, started_from, steps
from flows.view.word_diff import WordDiff, word_diff
from pipeline.data.conversations import message_text, messages_of, question
from storage.errors import NotCommittedError

_LETTERS = 500_000
"""Of all completions and replies on a page together, which is to be below 1 MB."""
_LEAST, _MOST = 1_000, 20_000
"""Letters of one of them."""
_SHORT = 300
"""Letters of a completion in the list of all rounds."""
_MEASURED = 12
"""Links to prompts whose preferences were measured after the update."""
_PARTS = 40
"""Parts of a score: of a judge that compares, there are two for each other completion."""

_ANSWERED = "SELECT DISTINCT round, kind FROM completions WHERE prompt_id = $prompt"

_ANSWERS = """
    SELECT candidate, text, answer, finish_reason, tokens, logp, policy, score, score_std, status, role FROM answers
    WHERE round = $round AND kind = $kind AND prompt_id = $prompt
    ORDER BY score DESC NULLS LAST, role = 'chosen' DESC, candidate"""

_HISTORY = """
    SELECT round, kind, candidate, score, status, role, left(text, $letters) AS text FROM answers
    WHERE prompt_id = $prompt ORDER BY round, kind, candidate"""

_ELSEWHERE = """SELECT round, candidate, text, finish_reason
FROM {prefix}candidates
WHERE round = {round} AND prompt_id = {prompt}
ORDER BY candidate"""


@dataclass(frozen=True)
class _Answer:
    """A completion.

    Attributes:
        judged: what the judges said of it.
        seen: the text that they saw, but for a judge that sees thoughts.
        thought: what comes before that; None if it begins with no thought.
    """

    row: Mapping[str, Any]
    place: int
    judged: Sequence[Evidence]
    seen: str
    thought: str | None


def page(
    opened: OpenRun,
    prompt_id: str,
    round: int | None = None,
    kind: str | None = None,
    candidate: int | None = None,
    *,
    markdown: bool = False,
) -> Page:
    """Shows a prompt in a round.

    Args:
        round, kind: where it was answered; by default in the last round.
        candidate: the completion that is shown whole, however long it is.
        markdown: render completions as Markdown, in place of the differences between two of them.

    Raises:
        ConfigError: there is no such kind of completions.
        NotCommittedError: there is no such prompt, or it was not answered there.
    """
    shown = opened.state
    asked, tables = _prompt(opened, prompt_id), opened.tables
    parameters = {"prompt": prompt_id}
    answered = {(row["round"], row["kind"]) for row in tables.ask(_ANSWERED, parameters)}
    places = [place for place in product(sorted({round for round, _ in answered}), KINDS) if place in answered]
    round, kind = _place(prompt_id, places, round, kind)
    prefix, recipe = prefix_of(kind), opened.recipe_of_round(round)
    preferences = _preferences(opened, round, prompt_id) if kind == "training" else []
    rows = _by_rank(tables.ask(_ANSWERS, {**parameters, "round": round, "kind": kind}), preferences)
    answers = _with_evidence(opened, rows, prefix, round, prompt_id)
    texts = Texts(_limit(answers), markdown)
    pair = _pair(preferences, rows, candidate)
    seen = {answer.row["candidate"]: answer.seen for answer in answers}
    changed = effects(opened, round, kind, prompt_id, rows)
    measured = measured_prompts(opened, round) if kind == "training" else []
    values = {
        "prompt_id": prompt_id, "prompt": asked, "round": round, "kind": kind, "candidate": candidate,
        "markdown": markdown, "answers": answers, "texts": texts, "parts": _PARTS,
        "preferences": _with_losses(opened, round, prompt_id, preferences), "pair": pair,
         "seen": seen, "diff": _diff(pair, seen, texts),
        "effects": changed, "beta": next((effect.beta for effect in changed), None),
        "started_from": started_from(opened, round), "steps": steps(opened, round),
        "measured": measured or [], "measures_damaged": measured is None, "most_measured": _MEASURED,
        "update": recipe.update if recipe else None, "short": _SHORT,
        "history": tables.ask(_HISTORY, {**parameters, "letters": _SHORT + 1}),
        "slider": _Slider(places, round, kind), **_elsewhere(opened, prefix, round, prompt_id),
    }  # fmt: skip
    title = f"Prompt {prompt_id}, round {round}"
    return Page("prompt.html.j2", title, values, run=opened.name, state="" if round in opened.run.finished else shown)


@dataclass(frozen=True)
class _Slider:
    """The rounds in which the prompt was answered as in the one that is shown, and the other ways in that round."""

    places: Sequence[tuple[int, str]]
    round: int
    kind: str

    @property
    def rounds(self) -> list[int]:
        return [round for round, kind in self.places if kind == self.kind]

    @property
    def kinds(self) -> list[str]:
        return [kind for round, kind in self.places if round == self.round]

    @property
    def before(self) -> int | None:
        return max((round for round in self.rounds if round < self.round), default=None)

    @property
    def after(self) -> int | None:
        return min((round for round in self.rounds if round > self.round), default=None)


def _prompt(opened: OpenRun, prompt_id: str) -> dict[str, Any]:
    """Reads the prompt: its conversation, in short and whole, and what is known of it."""
    found = prompt_rows(opened, prompt_id)
    if not found:
        raise NotCommittedError(f"run '{opened.name}' has no prompt '{prompt_id}': a prompt's whole id is needed")
    row, messages = found[0], messages_of(found[0]["messages"])
    said = [(message["role"], message_text(message)) for message in messages or ()]
    return {**row, "question": row["text"] if messages is None else question(messages), "messages": said}


def _place(
    prompt_id: str, places: Sequence[tuple[int, str]], round: int | None, kind: str | None
) -> tuple[int, str]:  # fmt: skip
    """Chooses where to look at the prompt: the last of the places that fit."""
    if kind is not None:
        prefix_of(kind)
    fitting = [place for place in places if round in (None, place[0]) and kind in (None, place[1])]
    if not fitting:
        rounds = f", but in round {', '.join(str(round) for round in sorted({place[0] for place in places}))}"
        where = " ".join([*([] if round is None else [f"in round {round}"]), *([] if kind is None else [f"as {kind}"])])
        raise NotCommittedError(
            f"prompt {prompt_id} was not answered {where or 'in any round yet'}{rounds if places else ''}"
        )
    last = max(place[0] for place in fitting)
    return next(place for place in fitting if place[0] == last)


def _preferences(opened: OpenRun, round: int, prompt_id: str) -> Rows:
    """Returns what the prompt gave in a round, the widest margin first."""
    rows = rows_of(opened, round, "preferences", prompt_id)
    return sorted(rows, key=lambda row: (row["margin"] is None, -(row["margin"] or 0.0), row["candidates"]))


def _with_losses(opened: OpenRun, round: int, prompt_id: str, preferences: Rows) -> Rows:
    """Adds the loss before and after the update to each preference; None if it was not measured."""
    measured = {tuple(row["candidates"]): row for row in measured_preferences(opened, round, prompt_id)}
    nothing: dict[str, Any] = {"loss_before": None, "loss_after": None}
    for row in preferences:
        found = measured.get(tuple(row["candidates"]), nothing)
        row |= {name: found[name] for name in nothing}
    return preferences


def _by_rank(rows: Sequence[dict[str, Any]], preferences: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Puts completions in the order of a ranking if there is one; those beside it, or all, stay by their scores."""
    ranking: list[int] = next((row["candidates"] for row in preferences if row["kind"] == "ranking"), [])
    places = {candidate: place for place, candidate in enumerate(ranking)}
    return sorted(rows, key=lambda row: places.get(row["candidate"], len(places)))


def _with_evidence(
    opened: OpenRun, rows: Sequence[Mapping[str, Any]], prefix: str, round: int, prompt_id: str
) -> list[_Answer]:
    configs = opened.judges_of_round(round)
    order = {name: place for place, name in enumerate(configs)}
    judged: dict[int, list[Evidence]] = {}
    found = rows_of(opened, round, f"{prefix}judgments", prompt_id)
    for row in sorted(found, key=lambda row: order.get(row["judge"], len(order))):
        judged.setdefault(row["candidate"], []).append(evidence(row, configs.get(row["judge"])))
    thinking = rows_of(opened, round, f"{prefix}candidates", prompt_id, ["candidate", "thought_tokens"])
    thoughts = {row["candidate"] for row in thinking if row.get("thought_tokens") is not None}
    return [
        _Answer(row, place, judged.get(row["candidate"], []), *_split(row, row["candidate"] in thoughts))
        for place, row in enumerate(rows, 1)
    ]


def _split(row: Mapping[str, Any], thinks: bool) -> tuple[str, str | None]:
    """Returns what the judges saw, as ``pipeline.judges.support.tables`` gives it to them, and the thought."""
    text: str = row["text"]
    seen: str = (row["answer"] or "") if thinks else text
    return seen, text.removesuffix(seen).rstrip() if thinks else None


def _limit(answers: Sequence[_Answer]) -> int:
    """Says how many letters of each text are shown, so that the page stays small."""
    texts = 2 + sum(
        1 + (answer.thought is not None) + sum(1 + len(judged.replies) for judged in answer.judged)
        for answer in answers
    )
    return max(_LEAST, min(_MOST, _LETTERS // texts))


def _pair(
    preferences: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], candidate: int | None
) -> Mapping[str, Any] | None:
    """Chooses the preference that is looked into: the one with the widest margin, if it can be with the candidate."""
    there = {row["candidate"] for row in rows}
    kept = [row for row in preferences if row["kind"] != "dropped" and there.issuperset(row["candidates"])]
    named = [row for row in kept if candidate in (row["candidates"][0], row["candidates"][-1])]
    return next(iter(named or kept), None)


def _diff(pair: Mapping[str, Any] | None, seen: Mapping[int, str], texts: Texts) -> WordDiff | None:
    if pair is None:
        return None
    chosen, rejected = (seen[pair["candidates"][place]][: texts.limit] for place in (0, -1))
    return word_diff(chosen, rejected)


def _elsewhere(opened: OpenRun, prefix: str, round: int, prompt_id: str) -> dict[str, str]:
    prompt, run, root = shlex.quote(prompt_id), shlex.quote(opened.name), root_option(opened.store)
    return {
        "sql": _ELSEWHERE.format(prefix=prefix, round=round, prompt=literal(prompt_id)),
        "command": f"rondo show {run}@{round} --table {prefix}completions --prompt {prompt} --full{root}\n"
        f"rondo history {run} {prompt} --full{root}",
    }
