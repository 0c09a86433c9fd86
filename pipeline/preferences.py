"""Preferences: judgments become pairs or rankings, and every prompt without one keeps the reason.

Pure functions. Of a prompt's candidates these are left out first: *unjudged* (no score, or one that is not a number),
*truncated* (where the recipe says so), *empty* (no text), and *duplicate* (the same token ids as an earlier
candidate: the policy cannot be moved from a sequence to itself). Where fewer than two are left, the commonest of these
reasons is the prompt's (*single* where there was one candidate from the start). A difference in score that is not above
``min_margin`` is a *tie*, and no preference. Equal scores are taken in the order of the candidates' indices.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import pyarrow as pa

from pipeline.config import PreferencesConfig
from pipeline.errors import ConfigError, DataError
from pipeline.records import PREFERENCES, to_table

REASONS = ("unjudged", "truncated", "empty", "duplicate", "tie", "single")
"""Why a prompt gives no preference; the first four in the order in which candidates are left out."""


@dataclass(frozen=True)
class _Candidate:
    index: int
    token_ids: tuple[int, ...]
    text: str
    truncated: bool
    logp: float
    score: float
    score_std: float | None


Order = tuple[_Candidate, ...]
"""Candidates of a preference, best first."""


def build_preferences(candidates: pa.Table, judgments: pa.Table, config: PreferencesConfig, *, seed: int) -> pa.Table:
    """The ``PREFERENCES`` of a round, in the order in which the prompts first come among the candidates.

    The rules, over the candidates of a prompt that are left:

    - ``best_vs_worst``: the highest score against the lowest.
    - ``best_vs_random``: the highest against one of those that it beats, drawn by the seed and the prompt.
    - ``all_pairs``: every two that are no tie.
    - ``full_ranking``: from the best down, leaving out what ties with the last one taken.

    A soft label is the probability that the order of a pair is right where scores are independent and normal:
    ``Phi((score_a - score_b) / sqrt(std_a**2 + std_b**2))`` (Thurstone 1927, case III; HPSv3, arXiv:2508.03789).

    Raises:
        ConfigError: soft labels for rankings, which no objective takes.
        DataError: two judgments of one candidate, a judgment of none, log-probabilities that do not fit the
            tokens, or soft labels from a judge that states no standard deviation.
    """
    if config.soft_labels and config.rule == "full_ranking":
        raise ConfigError("preferences.soft_labels are for pairs: choose another preferences.rule, or turn them off")
    rows: list[dict[str, object]] = []
    for prompt_id, policy, found in _by_prompt(candidates, judgments):
        kept, left_out = _filter(found, config)
        rng = random.Random(f"{seed}/{prompt_id}")  # noqa: S311  nothing here is secret
        orders = _RULES[config.rule](kept, config.min_margin, rng) if len(kept) > 1 else []
        common = {"prompt_id": prompt_id, "rule": config.rule, "policy": policy}
        if orders:
            rows += [common | _row(order, prompt_id, config) for order in orders]
        else:
            rows.append(common | _dropped(_reason(kept, left_out)))
    return to_table(rows, PREFERENCES)


def drop_counts(preferences: pa.Table) -> dict[str, int]:
    """Prompts without a preference, by reason."""
    reasons = preferences["drop_reason"].drop_null().to_pylist()
    return dict(sorted(Counter(reasons).items()))


def soft_label(score_a: float, score_b: float, std_a: float, std_b: float) -> float:
    """Probability that a beats b: 1 or 0 where both are certain, 1/2 where they are also equal."""
    spread = math.hypot(std_a, std_b)
    difference = score_a - score_b
    if spread == 0:
        return 0.5 if difference == 0 else float(difference > 0)
    return NormalDist().cdf(difference / spread)


def _by_prompt(candidates: pa.Table, judgments: pa.Table) -> Iterator[tuple[str, str, list[_Candidate]]]:
    scores = _scores(judgments)
    found: dict[str, list[_Candidate]] = {}
    policies: dict[str, str] = {}
    columns = ["prompt_id", "candidate", "token_ids", "text", "logprobs", "finish_reason", "policy"]
    for row in candidates.select(columns).to_pylist():
        prompt_id = row["prompt_id"]
        score, score_std = scores.pop((prompt_id, row["candidate"]), (math.nan, None))
        policies.setdefault(prompt_id, row["policy"])
        found.setdefault(prompt_id, []).append(_candidate(row, score, score_std))
    if scores:
        prompt_id, index = min(scores)
        raise DataError(f"prompt {prompt_id} has a judgment of candidate {index}, but no such candidate")
    for prompt_id, answers in found.items():
        answers.sort(key=lambda candidate: candidate.index)
        if len({candidate.index for candidate in answers}) < len(answers):
            raise DataError(f"prompt {prompt_id} has two candidates of one index: give each its own")
        yield prompt_id, policies[prompt_id], answers


def _scores(judgments: pa.Table) -> dict[tuple[str, int], tuple[float, float | None]]:
    scores: dict[tuple[str, int], tuple[float, float | None]] = {}
    for row in judgments.select(["prompt_id", "candidate", "score", "score_std", "status"]).to_pylist():
        key = row["prompt_id"], row["candidate"]
        if key in scores:
            raise DataError(f"candidate {key[1]} of prompt {key[0]} has two judgments: give those of one judge")
        judged = row["status"] == "ok" and row["score"] is not None
        scores[key] = (row["score"] if judged else math.nan, row["score_std"])
    return scores


def _candidate(row: Mapping[str, Any], score: float, score_std: float | None) -> _Candidate:
    tokens, logprobs = row["token_ids"], row["logprobs"]
    logp = math.fsum(logprobs)
    if len(tokens) != len(logprobs) or not math.isfinite(logp):
        raise DataError(
            f"candidate {row['candidate']} of prompt {row['prompt_id']} has {len(tokens)} tokens and "
            f"{len(logprobs)} log-probabilities with sum {logp}: a finite one for each token is needed"
        )
    return _Candidate(
        index=row["candidate"],
        token_ids=tuple(tokens),
        text=row["text"],
        truncated=row["finish_reason"] == "length",
        logp=logp,
        score=score,
        score_std=score_std,
    )


def _filter(candidates: Sequence[_Candidate], config: PreferencesConfig) -> tuple[list[_Candidate], Counter[str]]:
    kept: list[_Candidate] = []
    left_out: Counter[str] = Counter()
    seen: set[tuple[int, ...]] = set()
    for candidate in candidates:
        if not math.isfinite(candidate.score):
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


def _reason(kept: Sequence[_Candidate], left_out: Counter[str]) -> str:
    if len(kept) > 1:
        return "tie"
    return max(REASONS, key=lambda reason: left_out[reason]) if left_out else "single"


def _best_vs_worst(kept: Sequence[_Candidate], min_margin: float, _rng: random.Random) -> list[Order]:
    best = max(kept, key=lambda candidate: candidate.score)
    worst = min(kept, key=lambda candidate: candidate.score)
    return [(best, worst)] if best.score - worst.score > min_margin else []


def _best_vs_random(kept: Sequence[_Candidate], min_margin: float, rng: random.Random) -> list[Order]:
    best = max(kept, key=lambda candidate: candidate.score)
    beaten = [candidate for candidate in kept if best.score - candidate.score > min_margin]
    return [(best, rng.choice(beaten))] if beaten else []


def _all_pairs(kept: Sequence[_Candidate], min_margin: float, _rng: random.Random) -> list[Order]:
    pairs = combinations(_by_score(kept), 2)
    return [(better, worse) for better, worse in pairs if better.score - worse.score > min_margin]


def _full_ranking(kept: Sequence[_Candidate], min_margin: float, _rng: random.Random) -> list[Order]:
    ranking: list[_Candidate] = []
    for candidate in _by_score(kept):
        if not ranking or ranking[-1].score - candidate.score > min_margin:
            ranking.append(candidate)
    return [tuple(ranking)] if len(ranking) > 1 else []


def _by_score(kept: Sequence[_Candidate]) -> list[_Candidate]:
    return sorted(kept, key=lambda candidate: (-candidate.score, candidate.index))


_Rule = Callable[[Sequence[_Candidate], float, random.Random], list[Order]]
_RULES: Mapping[str, _Rule] = {
    "best_vs_worst": _best_vs_worst,
    "best_vs_random": _best_vs_random,
    "all_pairs": _all_pairs,
    "full_ranking": _full_ranking,
}


def _row(order: Order, prompt_id: str, config: PreferencesConfig) -> dict[str, object]:
    return {
        "kind": "ranking" if config.rule == "full_ranking" else "pair",
        "candidates": [candidate.index for candidate in order],
        "scores": [candidate.score for candidate in order],
        "margin": order[0].score - order[-1].score,
        "soft_label": _pair_label(order, prompt_id) if config.soft_labels else None,
        "reference_logps": [candidate.logp for candidate in order],
        "token_counts": [len(candidate.token_ids) for candidate in order],
        "drop_reason": None,
    }


def _pair_label(order: Order, prompt_id: str) -> float:
    better, worse = order
    std_a, std_b = better.score_std, worse.score_std
    if std_a is None or std_b is None or not 0 <= math.hypot(std_a, std_b) < math.inf:
        raise DataError(
            f"prompt {prompt_id} has scores with the standard deviations {std_a} and {std_b}, soft labels need "
            "both: choose a judge that states them, or turn preferences.soft_labels off"
        )
    return soft_label(better.score, worse.score, std_a, std_b)


def _dropped(reason: str) -> dict[str, object]:
    return {
        "kind": "dropped",
        "candidates": [],
        "scores": [],
        "margin": None,
        "soft_label": None,
        "reference_logps": [],
        "token_counts": [],
        "drop_reason": reason,
    }
