"""The tables of a round as people read them: completions with their prompt and score, preferences with their texts.

The columns and stages have the names that they have in the store, where a completion is a candidate.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from storage.log.manifest import FileRef
from storage.log.run import Run
from storage.log.store import Store
from storage.queries import round_query
from storage.queries.round_query import Joined, View

_HELD_OUT = ("eval_", "served_", "gate_")
_ORDER = ("prompt_id", "candidate", "judge", "step")
_PAIR = ("prompt_id", "candidate")
_ID = ("prompt_id", pa.string())
_CANDIDATE = ("candidate", pa.int32())

_PROMPTS = Joined("prompts", ("prompt_id",), pa.schema([_ID, ("text", pa.string())]), round=0)
_CANDIDATES = Joined(
    "candidates", _PAIR, pa.schema([_ID, _CANDIDATE, ("text", pa.string()), ("finish_reason", pa.string())])
)
_JUDGMENTS = Joined(
    "judgments", (*_PAIR, "judge"),
    pa.schema([_ID, _CANDIDATE, ("score", pa.float64()), ("status", pa.string()), ("judge", pa.string())]),
)  # fmt: skip

_VIEWS = {
    # Of several judges, the candidates show the one asked for, so that none appears twice.
    "candidates": View(
        _ORDER,
        """_t AS t LEFT JOIN (
            SELECT * FROM _j WHERE judge = coalesce((SELECT name FROM _judge), (SELECT min(judge) FROM _j))
        ) AS j ON j.prompt_id = t.prompt_id AND j.candidate = t.candidate
        LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id""",
        _PAIR,
        {"j": _JUDGMENTS, "p": _PROMPTS},
        {"score": ("j", "score"), "status": ("j", "status"), "prompt": ("p", "text")},
        first="p",
    ),
    "judgments": View(
        _ORDER,
        """_t AS t LEFT JOIN _c AS c ON c.prompt_id = t.prompt_id AND c.candidate = t.candidate
        LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id""",
        (*_PAIR, "judge"),
        {"c": _CANDIDATES, "p": _PROMPTS},
        {"text": ("c", "text"), "finish_reason": ("c", "finish_reason"), "prompt": ("p", "text")},
        first="p",
    ),
    "preferences": View(
        _ORDER,
        """_t AS t
        LEFT JOIN _best AS best ON best.prompt_id = t.prompt_id AND best.candidate = t.candidates[1]
        LEFT JOIN _worst AS worst ON worst.prompt_id = t.prompt_id AND worst.candidate = t.candidates[-1]
        LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id""",
        ("prompt_id", "candidates"),
        {"best": _CANDIDATES, "worst": _CANDIDATES, "p": _PROMPTS},
        {"chosen": ("best", "text"), "rejected": ("worst", "text"), "prompt": ("p", "text")},
        first="p",
    ),
    "prompts": View(
        _ORDER, "_t AS t LEFT JOIN _p AS p ON p.prompt_id = t.prompt_id", ("prompt_id",), {"p": _PROMPTS}, first="p"
    ),
}


def query(
    store: Store,
    run: Run,
    round: int,
    *,
    table: str,
    where: str | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    judge: str | None = None,
    columns: Sequence[str] | None = None,
    prompts_round: int = 0,
    instead: Mapping[str, Sequence[FileRef]] | None = None,
) -> pa.Table:
    """Returns the rows of one table of a round, in the order of the prompts and candidates.

    Args:
        table: candidates, judgments or preferences, or one of these with ``eval_``, ``served_`` or ``gate_`` before
            it, joined as ``_VIEWS`` says; or the name of any other stage that is a table.
        where: an SQL expression over the columns.
        prompt: the first characters of a prompt's id.
        limit: the largest number of rows.
        prompts_round: the round that has the prompts of a table of the gate.
        judge: whose scores stand beside the candidates; by default the first by name.
        columns: the columns to return, of those that there are; all of them by default.
        instead: files to read in place of the round's own, by stage.

    Raises:
        NotCommittedError, QueryError, DamagedFileError: as for :func:`storage.queries.round_query.query`.
    """
    prefix = None if prompt is None else ("prompt_id", prompt)
    view = _view(table, judge, prompts_round)
    return round_query.query(
        store, run, round, table, view, where=where, prefix=prefix, limit=limit, columns=columns, instead=instead
    )


def _view(table: str, judge: str | None, prompts_round: int) -> View:
    """Says how the table is shown; a table of held-out prompts is joined with others of held-out prompts."""
    gate = replace(_PROMPTS, stage="gate_prompts", round=prompts_round) if table.startswith("gate_") else None
    prefix = next((known for known in _HELD_OUT if table.startswith(known)), "")
    view = _VIEWS.get(table.removeprefix(prefix), View(_ORDER))
    if prefix:
        joined = {
            alias: (gate or other) if other is _PROMPTS else replace(other, stage=prefix + other.stage)
            for alias, other in view.joined.items()
        }
        view = replace(view, joined=joined)
    return replace(view, given={"_judge": pa.table({"name": pa.array([judge], pa.string())})})
