"""The metrics of a round's evaluation, and the alarms of all its metrics.

Lengths are in tokens with the end-of-sequence token, divergences in nats per sequence, shares from 0 to 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import PreferencesConfig, SamplingConfig
from pipeline.errors import DataError
from pipeline.evaluation.judge_drift import agreement, change, drifted, over_optimised, overoptimization_gap
from pipeline.evaluation.metrics import (
    CONFIDENCE,
    Scores,
    answer_statistics,
    kl_estimate,
    least_share,
    mean_score,
    scores_by_prompt,
    thought_statistics,
    win_rate,
)
from pipeline.evaluation.unscored import Unscored
from pipeline.recipe import EvaluationConfig

UNPARSABLE_SHARE = 0.1
DISPLACEMENT_SHARE = 0.5
LENGTH_GROWTH = 1.5
ENTROPY_SHARE = 0.5


def judged_by(judgments: pa.Table, judge: str) -> Scores:
    """Returns the score of each prompt by one of several judges."""
    return scores_by_prompt(judgments.filter(pc.field("judge") == judge))


def describe_evaluation(
    *,
    candidates: pa.Table,
    judgments: pa.Table,
    previous: pa.Table | None,
    initial: pa.Table | None,
    logps: pa.Table | None,
    judges: Sequence[str],
    probe: pa.Table | None = None,
) -> dict[str, Any]:
    """Computes the held-out metrics of a round; without earlier rounds those of the initial policy.

    Args:
        candidates: the held-out answers of this round.
        judgments: what each of ``judges`` said of them; the first is the training judge.
        previous, initial: the judgments of the previous round and of round 0 on the same prompts.
        logps: the answers' log-probabilities under the three policies.
        probe: what judges that may drift say now of some answers of round 0.
    """
    scores = judged_by(judgments, judges[0])
    if not _scored(scores):
        missing = Unscored.of(judgments.filter(pc.field("judge") == judges[0])).commonest()
        raise DataError(
            f"the judge {judges[0]} gave none of {len(scores)} held-out prompts a score, so that the round has no "
            f"reward; the commonest status: {missing}; mend the judge, then resume"
        )
    reward, answers = mean_score(scores), answer_statistics(candidates)
    metrics: dict[str, Any] = {
        "judge": judges[0],
        "reward": reward.mean,
        "reward_se": _finite(reward.standard_error),
        "judges": {name: mean_score(given).mean for name in judges[1:] if _scored(given := judged_by(judgments, name))},
        "length": answers.mean_length,
        "truncated": answers.truncated_share,
        "distinct": answers.distinct_share,
        "entropy_per_token": -answers.logp_per_token,
        **(asdict(thoughts) if (thoughts := thought_statistics(candidates)) else {}),
    }
    for name, table in (("previous", previous), ("initial", initial)):
        if table is not None and _scored(scores, before := judged_by(table, judges[0])):
            metrics[f"win_rate_{name}"] = win_rate(scores, before).mean
    if logps is not None:
        for name in ("previous", "initial"):
            kl = kl_estimate(logps["policy"].to_pylist(), logps[name].to_pylist())
            metrics |= {f"kl_{name}": kl.mean, f"kl_{name}_se": _finite(kl.standard_error)}
        metrics["initial_logp_per_token"] = sum(logps["initial"].to_pylist()) / sum(logps["tokens"].to_pylist())
    return metrics | _judge_drift(judgments, previous, initial, judges, probe)


def describe_served(candidates: pa.Table, judgments: pa.Table, judges: Sequence[str]) -> dict[str, Any]:
    """Computes what people read of answers that were sampled as one would serve: they compare with no other round.

    Returns:
        The fields of a round's ``served``; the reward is None if no answer has a score.
    """
    scores, answers = judged_by(judgments, judges[0]), answer_statistics(candidates)
    reward = mean_score(scores) if _scored(scores) else None
    return {
        "reward": reward and reward.mean,
        "reward_se": reward and _finite(reward.standard_error),
        "judges": {name: mean_score(given).mean for name in judges[1:] if _scored(given := judged_by(judgments, name))},
        "length": answers.mean_length,
        "truncated": answers.truncated_share,
    }


def unscored_answers(judgments: pa.Table, judges: Sequence[str]) -> list[str]:
    """Writes a sentence for each judge that gave too few held-out answers a score."""
    found = {name: Unscored.of(judgments.filter(pc.field("judge") == name)) for name in judges}
    return [said for name, unscored in found.items() if (said := unscored.alarm(name, "held-out"))]


def _judge_drift(
    judgments: pa.Table, previous: pa.Table | None, initial: pa.Table | None, judges: Sequence[str],
    probe: pa.Table | None,
) -> dict[str, Any]:  # fmt: skip
    """Says how the training judge compares with the held-out judges, and with itself in round 0."""
    training, *others = judges
    now, before, first = (
        {name: judged_by(table, name) for name in judges if table is not None}
        for table in (judgments, previous, initial)
    )
    agreements = {name: agreement(now[training], now[name]) for name in others}
    metrics: dict[str, Any] = {"agreement": _known(agreements)}
    if first:
        gaps = {name: overoptimization_gap(now[training], first[training], now[name], first[name]) for name in others}
        metrics |= {"gaps": _known(gaps), "over_optimised": over_optimised(training, others, now, first, "round 0")}
    if before and not metrics.get("over_optimised"):
        metrics["over_optimised"] = over_optimised(training, others, now, before, "the round before")
    if probe is not None and first:
        moved = {
            name: change(first[name], judged_by(probe, name)) for name in dict.fromkeys(probe["judge"].to_pylist())
        }
        known = {name: found for name, found in moved.items() if found is not None}
        metrics["judge_drift"] = {name: found.mean for name, found in known.items()}
        metrics["drifted"] = [said for name, found in known.items() if (said := drifted(name, found))]
    return metrics


def _known(found: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in found.items() if value is not None}


def alarms(
    metrics: Mapping[str, Any],
    initial: Mapping[str, Any],
    config: EvaluationConfig,
    preferences: PreferencesConfig | None = None,
    sampling: SamplingConfig | None = None,
) -> list[str]:
    """Says what a person should look at before trusting this round, one sentence each."""
    found = list(_little_to_learn(metrics, preferences or PreferencesConfig()))
    found += _truncation(metrics, sampling or SamplingConfig())
    found += _displacement(metrics)
    if metrics["length"] > LENGTH_GROWTH * initial["length"]:
        found.append(f"length: answers grew from {initial['length']:.1f} to {metrics['length']:.1f} tokens")
    if metrics["entropy_per_token"] < ENTROPY_SHARE * initial["entropy_per_token"]:
        found.append(
            f"entropy collapse: {metrics['entropy_per_token']:.2f} nats per token, less than {ENTROPY_SHARE:.0%} of "
            f"the initial policy's {initial['entropy_per_token']:.2f}"
        )
    if config.kl_limit is not None and metrics["kl_initial"] > config.kl_limit:
        found.append(f"drift: KL to the initial policy is {metrics['kl_initial']:.2f} nats, above {config.kl_limit:g}")
    if metrics.get("set_aside"):
        found.append(f"skipped: the engine died on {metrics['set_aside']} prompts, which the round went on without")
    unparsable = metrics.get("unparsable")
    if unparsable is not None and unparsable > UNPARSABLE_SHARE:
        found.append(f"judge: {unparsable:.0%} of its replies could not be read")
    found += [f"judge: {sentence}" for sentence in (*metrics.get("sampled_unscored", ()), *metrics.get("unscored", ()))]
    found += [f"over-optimisation: {sentence}" for sentence in metrics.get("over_optimised", ())]
    found += [f"judge drift: {sentence}" for sentence in metrics.get("drifted", ())]
    return found


def initial_alarms(metrics: Mapping[str, Any], sampling: SamplingConfig) -> list[str]:
    """Says what a person should look at before the first round, from the initial policy's held-out answers."""
    unscored = [f"judge: {sentence}" for sentence in metrics.get("unscored", ())]
    rate = metrics.get("base_rate_alarm")
    return [*([rate] if rate else []), *_truncation(metrics, sampling), *unscored]


def _truncation(metrics: Mapping[str, Any], sampling: SamplingConfig) -> Iterator[str]:
    shares = {"sampled": metrics.get("sampled_truncated"), "held-out": metrics.get("truncated")}
    most = sampling.alarm_truncated
    cut = [f"{share:.0%} of the {kind} completions" for kind, share in shares.items() if share and share > most]
    if cut:
        yield (
            f"truncation: {' and '.join(cut)} were cut at sampling.max_tokens {sampling.max_tokens}, more than "
            f"sampling.alarm_truncated {most:.0%}: raise sampling.max_tokens, or ask for shorter answers in the prompts"
        )


def _displacement(metrics: Mapping[str, Any]) -> Iterator[str]:
    fell, moved, pairs = (metrics.get(name) for name in ("chosen_fell", "chosen_change", "chosen_measured"))
    if fell is None or moved is None:
        return
    # An update of an earlier version, whose round is finished by this one, did not say how many it measured.
    least = fell if pairs is None else least_share(fell, pairs)
    if least > DISPLACEMENT_SHARE and moved < 0:
        of = "the chosen answers" if pairs is None else f"{pairs} chosen answers"
        sure = "" if pairs is None else f", so at least {least:.0%} of all with {CONFIDENCE:.0%} confidence"
        yield f"likelihood displacement: {fell:.0%} of {of} became less likely{sure} ({moved:+.2f} nats on average)"


def _little_to_learn(metrics: Mapping[str, Any], config: PreferencesConfig) -> Iterator[str]:
    share = metrics.get("preference_share")
    if metrics.get("no_update"):
        yield f"no update, and the policy stays what it was: {metrics['no_update']}"
    elif share is not None and share < config.alarm_below:
        dropped = ", ".join(f"{count} {reason}" for reason, count in metrics.get("dropped", {}).items())
        yield (
            f"few preferences: {share:.1%} of the prompts gave one, less than preferences.alarm_below "
            f"{config.alarm_below:.0%} ({dropped})"
        )


def _scored(*rounds: Scores) -> bool:
    """Says whether a prompt has a score in all these rounds: if none has, there is no mean."""
    return any(all(scores.get(prompt_id) is not None for scores in rounds) for prompt_id in rounds[0])


def _finite(error: float) -> float | None:
    """Returns a standard error, or None, as a single value has none."""
    return error if isfinite(error) else None
