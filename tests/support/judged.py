"""Tables of candidates and of judgments, of which only lengths and scores matter."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.records import CANDIDATES, JUDGMENTS, to_table


def candidates(lengths: dict[str, list[int]]) -> pa.Table:
    return to_table([
        {"prompt_id": prompt_id, "candidate": k, "token_ids": list(range(3 + k, 3 + k + length)), "text": f"w{k}",
         "logprobs": [-1.0] * length, "finish_reason": "stop", "seed": 0, "policy": "x"}
        for prompt_id, found in lengths.items() for k, length in enumerate(found)
    ], CANDIDATES)  # fmt: skip


def judgments(scores: Mapping[str, Sequence[float | None]], judge: str = "j", **changes: Any) -> pa.Table:
    return to_table([
        {"prompt_id": prompt_id, "candidate": k, "score": score, "score_std": None, "components": [],
         "rationale": None, "judge": judge, "judge_version": "1", "status": "unparsable" if score is None else "ok",
         "latency": 0.0, "raw": None, **changes}
        for prompt_id, found in scores.items() for k, score in enumerate(found)
    ], JUDGMENTS)  # fmt: skip
