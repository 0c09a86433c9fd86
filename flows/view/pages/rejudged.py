"""What another judge would have changed: the pairs that flip, appear or vanish, each a link to its prompt."""

from collections.abc import Mapping, Sequence

from flows.analysis.rejudge import Rejudged
from flows.analysis.what_if import what_if
from flows.registry.catalog import REJUDGMENTS
from flows.view.filters import literal
from flows.view.rendering import Page
from flows.view.site import OpenRun
from flows.view.terminal import root_option
from storage.errors import NotCommittedError, RunNotFoundError
from storage.log.manifest import FileRef

_MOST = 200
"""Pairs on a page."""

_ELSEWHERE = """SELECT r.prompt_id, r.candidate, j.score AS before, r.score AS after
FROM rejudgments AS r JOIN judgments AS j USING (round, prompt_id, candidate)
WHERE r.round = {round} AND r.judge = {name} AND j.judge = {judge}
ORDER BY r.prompt_id, r.candidate"""


def page(opened: OpenRun, name: str, asked: int | None = None) -> Page:
    """Compares a round's judgments and preferences with those of another judge, whose judgments lie beside the run.

    Args:
        name: what these are kept under.
        asked: the round; the newest that is judged whole by default.

    Raises:
        NotCommittedError: there are none of that name, or the round is not judged whole under it.
    """
    try:
        whole, parts = judged_again(opened, name)
    except RunNotFoundError as error:
        raise NotCommittedError(str(error)) from error
    round = max(whole, default=None) if asked is None else asked
    if round is None or round not in whole:
        has = f"judged whole are rounds {', '.join(map(str, whole))}" if whole else "no round is judged whole yet"
        which = "" if asked is None else f"round {asked} of "
        raise NotCommittedError(f"'{name}' beside {which}run '{opened.name}' cannot be compared: {has}")
    found = Rejudged(opened.run, opened.recipe, name, "", [], {round: list(whole[round])})
    rows, changed = what_if(opened.store, found)
    option = f"--judgments {name}{root_option(opened.store)}"
    values = {
        "name": name, "round": round, "rounds": list(whole), "parts": parts, "row": rows[0], "pairs": changed[:_MOST],
        "total": len(changed), "rule": opened.recipe.preferences.rule,
        "sql": _ELSEWHERE.format(round=round, name=literal(name), judge=literal(opened.judge_order.names[0])),
        "command": f"rondo show {opened.name}@{round} {option}",
    }  # fmt: skip
    return Page("rejudged.html.j2", f"{opened.name} judged by {name}", values, run=opened.name, tab="Judges")


def judged_again(opened: OpenRun, name: str) -> tuple[Mapping[int, Sequence[FileRef]], Sequence[int]]:
    """Returns the judgments of each finished round that is judged whole under a name, and the rounds judged in part.

    Raises:
        RunNotFoundError: nothing was judged under that name.
    """
    annex = opened.run.annex(name)
    whole, parts = dict[int, Sequence[FileRef]](), list[int]()
    for number in opened.run.finished:
        files = annex.files(number, REJUDGMENTS)
        sampled = opened.run.files(number, "candidates")
        if files and sum(file.rows or 0 for file in files) == sum(file.rows or 0 for file in sampled):
            whole[number] = files
        elif files:
            parts.append(number)
    return whole, parts
