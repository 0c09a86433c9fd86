"""What preferences and the update must agree on."""

from pipeline.config.base import among
from pipeline.config.objectives import OBJECTIVES, RANKING_OBJECTIVES, SOFT_LABEL_OBJECTIVES
from pipeline.config.preferences import RANKING_RULES, PreferencesConfig
from pipeline.config.sampling import SamplingConfig
from pipeline.config.update import UpdateConfig
from pipeline.judges import JudgeConfig


def check_objective(preferences: PreferencesConfig, update: UpdateConfig) -> None:
    """Refuses an objective of pairs for rankings, of rankings for pairs, and of hard labels for soft ones."""
    rule, ranks, objectives = preferences.rule, preferences.ranks, update.objective
    pairwise = [name for name in OBJECTIVES if name not in RANKING_OBJECTIVES]
    if found := among(objectives, pairwise if ranks else RANKING_OBJECTIVES):
        raise ValueError(
            f"preferences.rule '{rule}' does not go with update.objective '{found}': {' and '.join(RANKING_RULES)} "
            f"go with {' and '.join(RANKING_OBJECTIVES)}, and they with them"
        )
    if update.wpo and ranks:
        raise ValueError(f"update.wpo weighs pairs, and preferences.rule is '{rule}': turn it off, or make pairs")
    hard = [name for name in OBJECTIVES if name not in SOFT_LABEL_OBJECTIVES]
    if preferences.soft_labels and (found := among(objectives, hard)):
        raise ValueError(
            f"preferences.soft_labels do not go with update.objective '{found}': they go with "
            f"{', '.join(SOFT_LABEL_OBJECTIVES)}"
        )


def check_rule(preferences: PreferencesConfig, judge: JudgeConfig) -> None:
    """Refuses fractions for a rule that tells right from wrong."""
    if preferences.rule == "correct_vs_incorrect" and any(part.gives_partial_credit for part in judge.parts()):
        raise ValueError(
            f"preferences.rule 'correct_vs_incorrect' takes scores of 0 and 1 alone, and the judge "
            f"'{judge.label}' gives fractions: set judge.partial_credit to 0, or choose another rule"
        )


def check_soft_labels(preferences: PreferencesConfig, judge: JudgeConfig) -> None:
    """Refuses labels made of how sure a judge is, if it does not say so."""
    if preferences.needs_uncertainty and not judge.states_uncertainty:
        raise ValueError(
            "preferences.soft_labels and preferences.min_probability need a judge that says how sure it is, and "
            f"'{judge.label}' does not as it is set: turn them off, or choose an ensemble, an llm (a rubric "
            "with expected scores, or comparisons), human, a noisy judge, or a reward_model or python function "
            "with gives_std"
        )


def check_budget(preferences: PreferencesConfig, sampling: SamplingConfig, update: UpdateConfig) -> None:
    """Refuses a token budget that does not hold one preference."""
    candidates = sampling.candidates if preferences.ranks else 2
    least = candidates * sampling.max_tokens
    if update.token_budget <= least:
        raise ValueError(
            f"update.token_budget {update.token_budget} does not hold a prompt with {candidates} answers of "
            f"sampling.max_tokens {sampling.max_tokens}: raise it above {least} by the longest prompt"
        )


def check_replay(preferences: PreferencesConfig, update: UpdateConfig) -> None:
    """Refuses a reference of their own for replayed preferences, if all have the same."""
    replay, reference = preferences.replay, update.reference
    if replay.share and replay.reference == "original" and reference != "previous":
        raise ValueError(
            f"preferences.replay.reference 'original' does not go with update.reference '{reference}', which is "
            "one policy for all preferences: set the first to current"
        )


def unlike_samples(
    preferences: PreferencesConfig, sampling: SamplingConfig, update: UpdateConfig
) -> tuple[str, str] | None:
    """Says why the reference's log-probabilities are not those of its own samples, and which value mends that.

    Returns:
        The field with what it is, and what to set it to; None if completions are samples of the reference.
    """
    replay = preferences.replay
    found = (
        (sampling.temperature != 1, f"sampling.temperature is {sampling.temperature:g}", "1"),
        (sampling.top_p != 1, f"sampling.top_p is {sampling.top_p:g}", "1"),
        (update.reference != "previous", f"update.reference is '{update.reference}'", "previous"),
        (
            replay.share > 0 and replay.reference == "current",
            "preferences.replay.reference is 'current'",
            "original",
        ),
    )
    return next(((what, value) for given, what, value in found if given), None)


def check_importance(preferences: PreferencesConfig, sampling: SamplingConfig, update: UpdateConfig) -> None:
    """Refuses weights by the policy that sampled, if the reference's log-probabilities are not those of its samples."""
    found = unlike_samples(preferences, sampling, update)
    if update.importance != "none" and found is not None:
        what, value = found
        raise ValueError(
            f"update.importance '{update.importance}' weighs by the policy that sampled, and {what}: set the former "
            f"to none, or the latter to {value}"
        )
