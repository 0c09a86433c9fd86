"""What the language models that judge took in a round: written with each commit of judgments, and added up."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from pipeline.usage import Usage, by_judge
from storage.log.run import Run

_FIELD = "usage"
_STAGES = (
    "judgments", "eval_judgments", "served_judgments", "gate_judgments", "gate_baseline_judgments",
    "gate_eval_judgments", "judge_probe",
)  # fmt: skip


def usage_meta(usage: Mapping[str, Usage]) -> dict[str, Any]:
    """Returns what the entry of judgments says of it; nothing if no language model was asked."""
    return {_FIELD: {name: asdict(found) for name, found in usage.items()}} if usage else {}


def judge_usage(run: Run, round: int) -> dict[str, Usage]:
    """Adds up by judge what was asked for a round until now; empty for rounds of versions that did not record it.

    What a round has from the one before counts for that one. A shard that was judged twice counts twice.
    """
    return by_judge(
        (name, Usage(**found))
        for stage in _STAGES
        for entry in run.work(round, stage)
        for name, found in entry.meta.get(_FIELD, {}).items()
    )


def usage_lines(usage: Mapping[str, Usage]) -> Iterable[str]:
    """Writes a sentence for each judge."""
    for name, found in usage.items():
        tokens = [_tokens(found.paid_tokens_in, "read"), _tokens(found.paid_tokens_out, "written")]
        cost = "" if found.cost is None else f"; cost {found.cost:,.4g}"
        yield (
            f"{name}: {found.replies:,.0f} replies, {found.replies_cached:,.0f} of them from before; for the others "
            f"{' and '.join(tokens)}{cost}"
        )


def _tokens(count: float | None, what: str) -> str:
    return f"tokens {what} not measured" if count is None else f"{count:,.0f} tokens {what}"
