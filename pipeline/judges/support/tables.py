"""Tables of prompts and candidates as what a judge is given, and what it says as a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.conversations import messages_of
from pipeline.errors import DataError
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment
from pipeline.records import ASKED_JUDGMENTS, JUDGMENTS, to_table
from pipeline.usage import Usage


def judge_items(prompts: pa.Table, candidates: pa.Table, *, read_special_tokens: bool = False) -> list[JudgeItem]:
    """Joins prompts and candidates: one item for each prompt that has candidates, in the candidates' order.

    Of a policy that thinks, the answer is what comes after the thought; `seen_by` brings the thought back.

    Args:
        read_special_tokens: as the recipe's prompts say.

    Raises:
        DataError: a candidate of a prompt that is not among the prompts.
    """
    answers: dict[str, list[JudgedCandidate]] = {}
    read = ["prompt_id", "candidate", "text", "finish_reason", "token_ids", "thought_tokens", "answer"]
    for row in candidates.select([name for name in read if name in candidates.column_names]).to_pylist():
        answers.setdefault(row["prompt_id"], []).append(_candidate(row))
    columns = ["prompt_id", "text", "messages", "reference_answer", "token_ids"]
    found = prompts.filter(pc.field("prompt_id").isin(list(answers))).select(columns).to_pylist()
    asked = {row["prompt_id"]: row for row in found}
    if missing := answers.keys() - asked.keys():
        raise DataError(f"prompt {min(missing)} has candidates, but is not among the prompts: give it too")
    return [
        JudgeItem(
            prompt_id=prompt_id,
            prompt_text=asked[prompt_id]["text"],
            messages=messages_of(asked[prompt_id]["messages"]),
            prompt_token_ids=asked[prompt_id]["token_ids"],
            reference_answer=asked[prompt_id]["reference_answer"],
            read_special_tokens=read_special_tokens,
            candidates=judged,
        )
        for prompt_id, judged in answers.items()
    ]


def _candidate(row: Mapping[str, Any]) -> JudgedCandidate:
    thought = row.get("thought_tokens")  # policies that do not think have no such column
    return JudgedCandidate(
        index=row["candidate"],
        text=row["text"] if thought is None else row["answer"] or "",
        finish_reason=row["finish_reason"],
        tokens=len(row["token_ids"]) - (thought or 0),
        token_ids=row["token_ids"],
        completion=None if thought is None else row["text"],
    )


def judgments_table(judgments: Sequence[Judgment]) -> pa.Table:
    """Turns judgments into a table of the ``JUDGMENTS`` schema, or if a language model was asked `ASKED_JUDGMENTS`."""
    asked = any(judgment.usage is not None for judgment in judgments)
    return to_table([_row(judgment, asked) for judgment in judgments], ASKED_JUDGMENTS if asked else JUDGMENTS)


def _row(judgment: Judgment, asked: bool) -> dict[str, Any]:
    row = asdict(judgment)
    usage = row.pop("usage") or dict.fromkeys(asdict(Usage()))
    components = [{"name": name, "value": value} for name, value in judgment.components.items()]
    return {**row, "components": components, **(usage if asked else {})}
