"""The candidates of each prompt with what the judge said of them, and which of them can be part of a preference."""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline.config import PreferencesConfig
from pipeline.errors import DataError
from pipeline.judges.support.stated import BEATS, LEVEL, SPREAD, TURNED
from pipeline.records import components_of

REASONS = ("unjudged", "truncated", "empty", "duplicate", "single", "agree", "tie", "unsure")
"""Why a prompt gives no preference; the first four in the order in which candidates are left out."""

EQUAL = ("agree", "tie", "unsure")
"""Those of prompts whose candidates could be compared."""

_LARGEST = sys.float_info.max / 8
"""No difference of scores up to here, nor of their penalties, leaves the range of numbers."""


@dataclass(frozen=True)
class Stated:
    """How sure the judge says it is, beside a standard deviation; see ``pipeline.judges.base``.

    Attributes:
        beats, spread: by the index of another candidate.
        levels: the probability of each whole score.
        turned: the probability that every order of the prompt is turned round.
    """

    beats: Mapping[int, float] = field(default_factory=dict)
    spread: Mapping[int, float] = field(default_factory=dict)
    levels: Mapping[int, float] = field(default_factory=dict)
    turned: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A candidate and its judgment; the score is NaN if there is none.

    ``penalty`` is what the recipe takes off for its tokens, in units of the score.
    """

    index: int
    token_ids: tuple[int, ...]
    text: str
    truncated: bool
    logp: float
    score: float
    score_std: float | None
    stated: Stated
    penalty: float

    @property
    def value(self) -> float:
        """Returns what candidates are ordered by: the score, less the penalty of length."""
        return self.score - self.penalty


@dataclass(frozen=True)
class Judged:
    """A prompt's candidates in the order of their indices, and the hash of the policy that sampled them."""

    prompt_id: str
    policy: str
    candidates: list[Candidate]


@dataclass(frozen=True)
class _Verdict:
    score: float = math.nan
    score_std: float | None = None
    stated: Stated = field(default_factory=Stated)


def judged_prompts(candidates: pa.Table, judgments: pa.Table, config: PreferencesConfig) -> Iterator[Judged]:
    """Yields each prompt with its candidates, in the order in which the prompts first come.

    Raises:
        DataError: two judgments of one candidate, a judgment of no candidate, two candidates of one index, or
            log-probabilities that do not fit the tokens.
    """
    verdicts = _verdicts(judgments)
    found: dict[str, list[Candidate]] = {}
    policies: dict[str, str] = {}
    columns = ["prompt_id", "candidate", "token_ids", "text", "logprobs", "finish_reason", "policy"]
    for row in candidates.select(columns).to_pylist():
        prompt_id = row["prompt_id"]
        verdict = verdicts.pop((prompt_id, row["candidate"]), _Verdict())
        policies.setdefault(prompt_id, row["policy"])
        found.setdefault(prompt_id, []).append(_candidate(row, verdict, config.length_penalty))
    if verdicts:
        prompt_id, index = min(verdicts)
        raise DataError(f"prompt {prompt_id} has a judgment of candidate {index}, but no such candidate")
    for prompt_id, answers in found.items():
        answers.sort(key=lambda candidate: candidate.index)
        if len({candidate.index for candidate in answers}) < len(answers):
            raise DataError(f"prompt {prompt_id} has two candidates of one index: give each its own")
        yield Judged(prompt_id, policies[prompt_id], answers)


def leave_out(candidates: Sequence[Candidate], config: PreferencesConfig) -> tuple[list[Candidate], Counter[str]]:
    """Returns the candidates that can be part of a preference, and counts the others by reason."""
    kept: list[Candidate] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[int, ...]] = set()
    for candidate in candidates:
        if not _is_judged(candidate, config):
            left_out["unjudged"] += 1
        elif config.drop_truncated and candidate.truncated:
            left_out["truncated"] += 1
        elif not candidate.text.strip():
            left_out["empty"] += 1
        elif candidate.token_ids in seen:
            left_out["duplicate"] += 1
        else:
            seen.add(candidate.token_ids)
            kept.append(candidate)
    return kept, left_out


def _is_judged(candidate: Candidate, config: PreferencesConfig) -> bool:
    """Says whether the judge's score is a number, and its standard deviation too, if one is stated and used."""
    if not abs(candidate.score) < _LARGEST:
        return False
    std = candidate.score_std
    return not config.needs_uncertainty or std is None or 0 <= std < _LARGEST


def _verdicts(judgments: pa.Table) -> dict[tuple[str, int], _Verdict]:
    verdicts: dict[tuple[str, int], _Verdict] = {}
    columns = ["prompt_id", "candidate", "score", "score_std", "status", "components"]
    for row in judgments.select(columns).to_pylist():
        key = row["prompt_id"], row["candidate"]
        if key in verdicts:
            raise DataError(f"candidate {key[1]} of prompt {key[0]} has two judgments: give those of one judge")
        judged = row["status"] == "ok" and row["score"] is not None
        stated = _stated(components_of(row["components"]))
        verdicts[key] = _Verdict(row["score"], row["score_std"], stated) if judged else _Verdict()
    return verdicts


def _stated(parts: Mapping[str, float]) -> Stated:
    beats, spread, levels = (
        {int(rest): value for name, value in parts.items() if (rest := _after(name, start)).isdecimal()}
        for start in (BEATS, SPREAD, LEVEL)
    )
    return Stated(beats, spread, levels, parts.get(TURNED))


def _after(name: str, start: str) -> str:
    return name.removeprefix(start) if name.startswith(start) else ""


def _candidate(row: Mapping[str, Any], verdict: _Verdict, length_penalty: float) -> Candidate:
    tokens, logprobs = row["token_ids"], row["logprobs"]
    logp = math.fsum(logprobs)
    if len(tokens) != len(logprobs) or not math.isfinite(logp):
        raise DataError(
            f"candidate {row['candidate']} of prompt {row['prompt_id']} has {len(tokens)} tokens and "
            f"{len(logprobs)} log-probabilities with sum {logp}: a finite one for each token is needed"
        )
    return Candidate(
        index=row["candidate"],
        token_ids=tuple(tokens),
        text=row["text"],
        truncated=row["finish_reason"] == "length",
        logp=logp,
        score=verdict.score,
        score_std=verdict.score_std,
        stated=verdict.stated,
        penalty=length_penalty * len(tokens),
    )
