"""Evaluation of a round: pure functions of scores, answers and log-probabilities.

Scores are given by prompt id, so that two rounds are compared on the same prompts, and a score that the judge could
not give is None. Answers come as ``CANDIDATES`` tables.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import pyarrow as pa

from pipeline.errors import DataError

Scores = Mapping[str, float | None]
CONFIDENCE = 0.95
"""That a share is at least what `least_share` says of it."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over ``count`` independent values, and its standard error (NaN if there is only one)."""

    mean: float
    standard_error: float
    count: int


@dataclass(frozen=True, kw_only=True)
class AnswerStatistics:
    """Of the answers of a round. Lengths are in tokens, end of sequence included; log-probabilities in nats.

    ``distinct_share``: different sequences of tokens among all; ``logp_per_token``: under the policy that sampled,
    over all tokens, so that its negative is the policy's entropy per token, estimated on its own samples.
    """

    mean_length: float
    truncated_share: float
    empty_share: float
    distinct_share: float
    logp_per_token: float


@dataclass(frozen=True, kw_only=True)
class ThoughtStatistics:
    """Of the answers of a policy that thinks: both parts of them, as means and shares over all answers of a round.

    Lengths are in tokens: ``thought_length`` with the marks, ``answer_length`` with the end of sequence; their sum is
    the mean length. ``cut_in_thought`` and ``cut_in_answer`` are the shares that ran into the limit before and after
    the thought had ended; their sum is the truncated share.
    """

    thought_length: float
    answer_length: float
    cut_in_thought: float
    cut_in_answer: float


@dataclass(frozen=True, kw_only=True)
class ChangedAnswer:
    """A held-out prompt with its answer before and after, and what the judge said of them, if it gives reasons."""

    prompt_id: str
    prompt: str
    answer_before: str
    answer_after: str
    score_before: float
    score_after: float
    rationale_before: str | None = None
    rationale_after: str | None = None


def scores_by_prompt(judgments: pa.Table) -> dict[str, float | None]:
    """Returns the score of each prompt from a ``JUDGMENTS`` table: the mean of its candidates that have one, or None.

    Raises:
        DataError: more than one judge.
    """
    judges = set(judgments["judge"].to_pylist())
    if len(judges) > 1:
        raise DataError(f"the judgments are of {len(judges)} judges, {', '.join(sorted(judges))}: give those of one")
    scores: dict[str, list[float]] = {}
    for row in judgments.select(["prompt_id", "score", "status"]).to_pylist():
        found = scores.setdefault(row["prompt_id"], [])
        if row["status"] == "ok" and _is_number(row["score"]):
            found.append(row["score"])
    return {prompt_id: fmean(found) if found else None for prompt_id, found in scores.items()}


def mean_score(scores: Scores) -> Estimate:
    """Computes the mean over the prompts that have a score.

    Raises:
        DataError: none has.
    """
    return _estimate([score for score in scores.values() if score is not None], "no prompt has a score")


def win_rate(scores: Scores, baseline_scores: Scores) -> Estimate:
    """Computes the share of prompts whose score is above the baseline's; a tie counts one half.

    Paired by prompt: only those that have a score on both sides count.

    Raises:
        DataError: no prompt does.
    """
    pairs = [(score, baseline_scores.get(prompt_id)) for prompt_id, score in scores.items()]
    wins = [
        0.5 * ((score > baseline) + (score >= baseline))
        for score, baseline in pairs
        if score is not None and baseline is not None
    ]
    return _estimate(wins, "no prompt has a score in both rounds")


def kl_estimate(logps_policy_B: Sequence[float], logps_reference_B: Sequence[float]) -> Estimate:
    """Estimates the KL divergence of the policy from a reference, in nats per sequence.

    It is the Monte Carlo estimate of ``E[log pi(y|x) - log pi_ref(y|x)]`` over answers ``y`` of the policy ``pi``
    itself. They must be sampled at temperature 1 and without truncation of the distribution: of others it is no KL. It
    is unbiased, so that it can fall below zero if the true value is near it.

    Args:
        logps_policy_B: log-probability of each answer under the policy, summed over its tokens, in nats.
        logps_reference_B: the same under the reference.

    Raises:
        DataError: the two differ in length, are empty, or hold a number that is not finite.
    """
    if len(logps_policy_B) != len(logps_reference_B):
        raise DataError(
            f"{len(logps_policy_B)} log-probabilities of the policy and {len(logps_reference_B)} of the reference: "
            "give both for each answer"
        )
    ratios_B = [policy - reference for policy, reference in zip(logps_policy_B, logps_reference_B, strict=True)]
    return _estimate(ratios_B, "no answer was given")


def least_share(share: float, count: int) -> float:
    """Returns the lower end of a share that was measured on ``count`` independent cases, with 95% confidence.

    Wilson's score limit, one-sided: (p + z^2/2n - z sqrt(p(1 - p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.645; E. B.
    Wilson, J. Am. Stat. Assoc. 22 (1927), 209-212. Unlike p - z sqrt(p(1 - p)/n) it holds for few cases, and if all of
    them are alike.
    """
    z2 = NormalDist().inv_cdf(CONFIDENCE) ** 2 / count
    return (share + z2 / 2 - math.sqrt(z2 * (share * (1 - share) + z2 / 4))) / (1 + z2)


def answer_statistics(candidates: pa.Table) -> AnswerStatistics:
    """Computes lengths, ends and variety of the answers in a ``CANDIDATES`` table.

    Raises:
        DataError: there is none.
    """
    if not candidates.num_rows:
        raise DataError("the table of answers is empty: give at least one")
    ids = [tuple(row) for row in candidates["token_ids"].to_pylist()]
    logps = [math.fsum(row) for row in candidates["logprobs"].to_pylist()]
    texts = candidates["text"].to_pylist()
    reasons = candidates["finish_reason"].to_pylist()
    return AnswerStatistics(
        mean_length=fmean(map(len, ids)),
        truncated_share=fmean(reason == "length" for reason in reasons),
        empty_share=fmean(not text.strip() for text in texts),
        distinct_share=len(set(ids)) / len(ids),
        logp_per_token=math.fsum(logps) / max(1, sum(map(len, ids))),
    )


def thought_statistics(candidates: pa.Table) -> ThoughtStatistics | None:
    """Computes lengths and ends of thoughts and answers in a ``CANDIDATES`` table; None if no answer has a thought."""
    if "thought_tokens" not in candidates.column_names or not candidates["thought_tokens"].drop_null():
        return None
    thoughts = [tokens or 0 for tokens in candidates["thought_tokens"].to_pylist()]
    lengths = [len(row) for row in candidates["token_ids"].to_pylist()]
    ended = [
        tokens == 0 or answer is not None
        for tokens, answer in zip(thoughts, candidates["answer"].to_pylist(), strict=True)
    ]
    cut = [reason == "length" for reason in candidates["finish_reason"].to_pylist()]
    return ThoughtStatistics(
        thought_length=fmean(thoughts),
        answer_length=fmean(lengths) - fmean(thoughts),
        cut_in_thought=fmean(is_cut and not has_ended for is_cut, has_ended in zip(cut, ended, strict=True)),
        cut_in_answer=fmean(is_cut and has_ended for is_cut, has_ended in zip(cut, ended, strict=True)),
    )


def scored_answers(
    prompts: Mapping[str, str],
    answers_before: Mapping[str, str],
    answers_after: Mapping[str, str],
    scores_before: Scores,
    scores_after: Scores,
) -> list[ChangedAnswer]:
    """Puts both answers of each prompt side by side, all by prompt id; prompts without both scores are left out."""
    return [
        ChangedAnswer(
            prompt_id=prompt_id,
            prompt=prompts[prompt_id],
            answer_before=answers_before[prompt_id],
            answer_after=answer,
            score_before=before,
            score_after=after,
        )
        for prompt_id, answer in answers_after.items()
        if (before := scores_before.get(prompt_id)) is not None and (after := scores_after.get(prompt_id)) is not None
    ]


def most_changed(answers: Iterable[ChangedAnswer], count: int) -> list[ChangedAnswer]:
    """Finds the ``count`` prompts whose score changed most, either way, largest change first.

    Prompts with the same answer are passed over. Equal changes are ordered by prompt id.
    """
    changed = [answer for answer in answers if answer.answer_before != answer.answer_after]
    changed.sort(key=lambda answer: (-abs(answer.score_after - answer.score_before), answer.prompt_id))
    return changed[:count]


def _estimate(values: Sequence[float], if_empty: str) -> Estimate:
    if not values:
        raise DataError(f"{if_empty}: there is nothing to take a mean of")
    if not all(map(math.isfinite, values)):
        raise DataError("a value is not a finite number: leave it out, or mend what made it")
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(mean=fmean(values), standard_error=error, count=len(values))


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
