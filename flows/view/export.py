"""``rondo view --export``: the pages of a run as files, which need neither a server nor a network."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from flows.host.new_directory import check_new, new_directory
from flows.host.text import counted
from flows.registry.catalog import existing_store, run_at_round
from flows.view.addresses import Exported, served
from flows.view.filters import Filter
from flows.view.pages import ask as ask_page
from flows.view.pages import completions as completions_page
from flows.view.pages import judges as judges_page
from flows.view.pages import prompt as prompt_page
from flows.view.pages import rejudged as rejudged_page
from flows.view.pages import round as round_page
from flows.view.pages import run as run_page
from flows.view.pages import tokens as tokens_page
from flows.view.questions import questions_for
from flows.view.rendering import STATIC, Page, render, static_file
from flows.view.site import OpenRun, Site
from flows.view.token_changes import names_of_changes
from storage.errors import DamagedFileError
from storage.queries.sql import columns_of

MOST_PROMPTS = 500
"""Pages of prompts in an export, those of the newest rounds first."""
MOST_TOKENS = 1000
"""Pages of tokens, by surprise and by each change, of completions whose prompt has a page, the newest rounds first."""
_MARK = "rondo-view.json"
"""The file that says that a directory is an export, and what is in it."""

_SAFE = re.compile("[0-9A-Za-z]{1,64}")

_PROMPTS = """
    SELECT DISTINCT round, kind, prompt_id FROM completions WHERE list_contains($rounds, round)
    ORDER BY round DESC, kind DESC, prompt_id"""
_COMPLETIONS = """
    SELECT round, kind, prompt_id, candidate FROM completions WHERE list_contains($rounds, round)
    ORDER BY round DESC, kind DESC, prompt_id, candidate"""


@dataclass(frozen=True)
class _Tokens:
    """The page of the tokens of a completion.

    Attributes:
        by: the change that colours them; None for how much each surprised.
    """

    round: int
    kind: str
    prompt_id: str
    candidate: int
    by: str | None = None


@dataclass(frozen=True)
class Scope:
    """What of a run is exported.

    Attributes:
        rounds: the rounds, in order.
        prompts: round, kind and id of each prompt that has a page.
        tokens: the pages of tokens.
        left_out: what else there is, as how many of what beyond which number.
    """

    opened: OpenRun
    rounds: Sequence[int]
    prompts: Sequence[tuple[int, str, str]]
    tokens: Sequence["_Tokens"]
    left_out: Sequence[str]

    @classmethod
    def of(cls, opened: OpenRun, rounds: Sequence[int]) -> "Scope":
        """Chooses what is exported of these rounds."""
        asked, which = opened.tables.ask, {"rounds": rounds}
        prompts = [(row["round"], row["kind"], row["prompt_id"]) for row in asked(_PROMPTS, which)]
        kept = set(prompts[:MOST_PROMPTS])
        tokens, without = _tokens_of(
            opened,
            [
                _Tokens(row["round"], row["kind"], row["prompt_id"], row["candidate"])
                for row in asked(_COMPLETIONS, which)
                if (row["round"], row["kind"], row["prompt_id"]) in kept
            ],
        )
        left_out = []
        if len(prompts) > MOST_PROMPTS:
            beyond = counted(len(prompts) - MOST_PROMPTS, "page")
            left_out.append(f"{beyond} of prompts beyond {MOST_PROMPTS:,} left out")
        if without:
            left_out.append(f"the tokens of {counted(without, 'completion')} beyond {MOST_TOKENS:,} pages left out")
        return cls(opened, rounds, prompts[:MOST_PROMPTS], tokens, left_out)


def _tokens_of(opened: OpenRun, completions: Sequence[_Tokens]) -> tuple[list[_Tokens], int]:
    """Returns the pages of the first of these completions, and of how many there is no room for any."""
    pages: list[_Tokens] = []
    changes = cache(partial(names_of_changes, opened))
    for place, of in enumerate(completions):
        names = changes(of.round, of.kind, of.prompt_id).get(of.candidate, ())
        found = [of, *(replace(of, by=name) for name in names)]
        if len(pages) + len(found) > MOST_TOKENS:
            return pages, len(completions) - place
        pages += found
    return pages, 0


@dataclass(frozen=True)
class _File:
    """A page that is a file, and its address on the server, by which others link to it."""

    address: str
    name: str
    make: Callable[[], Page]


def _files(scope: Scope) -> Iterator[_File]:
    """Yields the pages, a line for each kind. The first one is the index."""
    opened, run = scope.opened, scope.opened.name
    yield _File(served("run", run), "index.html", partial(run_page.page, opened))
    yield _File(served("run", run, "ask"), "ask.html", partial(ask_page.page, opened))
    for place, question in enumerate(questions_for(columns_of(opened.store, opened.run)), start=1):
        asked = served("run", run, "ask", sql=question.sql, **{"as": question.form})
        yield _File(asked, f"ask-{place}.html", partial(ask_page.page, opened, question.sql, question.form))
    yield _File(
        served("run", run, "judges"), "judges.html", partial(judges_page.page, opened, None, None, (None, None))
    )
    yield from _rejudged(scope)
    for number in scope.rounds:
        yield _File(
            served("run", run, "round", number), f"round-{number}.html", partial(round_page.page, opened, number)
        )
    yield _File(served("run", run, "completions"), "completions.html", partial(completions_page.page, opened, Filter()))
    for number, kind in dict.fromkeys((number, kind) for number, kind, _ in scope.prompts):
        filtered = Filter.parse([("round", str(number)), ("kind", kind)])
        address = served("run", run, "completions", round=number, kind=kind)
        name = f"completions-{number}-{kind}.html"
        yield _File(address, name, partial(completions_page.page, opened, filtered))
    for number, kind, prompt in scope.prompts:
        address = served("run", run, "prompt", prompt, round=number, kind=kind)
        name = f"prompt-{number}-{kind}-{_safe(prompt)}.html"
        yield _File(address, name, partial(prompt_page.page, opened, prompt, number, kind))
    for of in scope.tokens:
        address = served("run", run, "tokens", of.round, of.kind, of.prompt_id, of.candidate, by=of.by)
        name = f"tokens-{of.round}-{of.kind}-{_safe(of.prompt_id)}-{of.candidate}{f'-{of.by}' if of.by else ''}.html"
        shown = (opened, of.round, of.kind, of.prompt_id, of.candidate)
        yield _File(address, name, partial(tokens_page.page, *shown, by=of.by))


def _rejudged(scope: Scope) -> Iterator[_File]:
    """Yields what other judges would change, by round, and the newest again, to which the page of judges links."""
    opened, run = scope.opened, scope.opened.name
    for judge in opened.run.annexes:
        whole, _ = rejudged_page.judged_again(opened, judge)
        rounds = [number for number in scope.rounds if number in whole]
        for number in rounds:
            address, name = served("run", run, "rejudged", judge, round=number), f"rejudged-{number}-{judge}.html"
            yield _File(address, name, partial(rejudged_page.page, opened, judge, number))
        if rounds:
            newest = partial(rejudged_page.page, opened, judge, rounds[-1])
            # Names come last: otherwise round 1 of 'other' and the newest of 'other-1' would be one file.
            yield _File(served("run", run, "rejudged", judge), f"rejudged-newest-{judge}.html", newest)


def _safe(prompt_id: str) -> str:
    """Returns a prompt's id as part of a file's name, whatever is in it."""
    return prompt_id if _SAFE.fullmatch(prompt_id) else hashlib.sha256(prompt_id.encode(errors="replace")).hexdigest()


def export(source: str, root: str, to: Path, *, say: Callable[[str], None]) -> Path:
    """Writes the pages of a run, or of one of its rounds; returns the page to begin with.

    Args:
        source: RUN for all finished rounds, or RUN@ROUND.
        to: a new directory, or an earlier export, which is replaced.
        say: is told what was written.

    Raises:
        ConfigError: there is something else in the directory, or no such round is finished.
        RunNotFoundError: there is no such run.
        DamagedFileError: a table of the run is missing, or is not the one that was committed.
    """
    store = existing_store(root)
    run, newest = run_at_round(store, source)
    check_new(to, _is_export)
    site = Site(store)
    try:
        opened = site.run(run.name)
        rounds = [newest] if "@" in source else list(run.finished)
        scope = Scope.of(opened, rounds)
        with new_directory(to, _is_export) as staged:
            count = _write(scope, staged)
            if opened.damages:  # a copy is to be whole
                raise DamagedFileError(f"{'; '.join(opened.damages)}: 'rondo verify {run.name}' checks every file")
    finally:
        site.close()
    index = to.expanduser().resolve() / "index.html"
    say(f"{counted(count, 'page')} of {_described(scope)}: open {index}")
    return index


def _write(scope: Scope, to: Path) -> int:
    """Writes all pages and what they load; returns the number of pages."""
    files = list(_files(scope))
    names = {file.address: file.name for file in files} | {served(): files[0].name}
    address = Exported(names | {served("static", name): name for name in STATIC})
    note = f"A copy of {_described(scope)}, written by rondo view."
    for file in files:
        page = render(file.make(), address, exported=note)
        (to / file.name).write_bytes(page.encode("utf-8", "backslashreplace"))
    for name in STATIC:
        found = static_file(name)
        assert found is not None
        (to / name).write_bytes(found[0])
    written = sorted([*(file.name for file in files), *STATIC])
    mark = {"format": 1, "run": scope.opened.name, "rounds": list(scope.rounds), "files": written}
    (to / _MARK).write_text(json.dumps(mark, indent=1) + "\n", encoding="utf-8")
    return len(files)


def _described(scope: Scope) -> str:
    first, last = scope.rounds[0], scope.rounds[-1]
    which = f"round {first}" if first == last else f"rounds {first} to {last}"
    return "; ".join([f"run {scope.opened.name}, {which}", *scope.left_out])


def _is_export(directory: Path) -> bool:
    """Says whether a directory holds an earlier export, as it was written, and nothing else."""
    try:
        mark = json.loads((directory / _MARK).read_text(encoding="utf-8"))
        known = {_MARK, *mark["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return all(path.is_file() and path.name in known for path in directory.iterdir())
