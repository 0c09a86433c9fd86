"""What judges, people and the gate must agree on with the rest of a recipe."""

from collections.abc import Sequence

from pipeline.config.preferences import PreferencesConfig
from pipeline.config.update import UpdateConfig
from pipeline.gate import GateConfig, least_pairs
from pipeline.judges import JudgeConfig
from pipeline.judges.human import HumanConfig, HumanFeedbackConfig


def check_people(people: HumanFeedbackConfig | None, judge: JudgeConfig, preferences: PreferencesConfig) -> None:
    """Refuses people beside a judge, or a rule, that leaves nothing to ask them."""
    if people is not None and isinstance(judge, HumanConfig):
        raise ValueError("people are the judge already: leave the field people out, or choose another judge")
    if people is not None and preferences.ranks:
        raise ValueError(f"people choose between two answers, and preferences.rule is '{preferences.rule}': make pairs")


def check_early_judging(staleness: int, judge: JudgeConfig) -> None:
    """Refuses a judge that needs the round, if candidates are judged before it."""
    if staleness and not judge.comes_early:
        raise ValueError(
            f"staleness {staleness} judges a round's candidates before the round begins, and the judge "
            f"'{judge.label}' needs what is not there by then: set staleness to 0, or choose another judge"
        )


def check_gate(gate: GateConfig | None, staleness: int, rounds: int, update: UpdateConfig) -> None:
    """Refuses a gate that comes too late to hold a round back, or whose tests are too few to tell anything."""
    if gate is None:
        return
    if staleness:
        raise ValueError(
            "staleness 1 samples a round's completions before the gate has passed the policy before it: set staleness "
            "to 0, or leave gate out"
        )
    if gate.text is not None and gate.window > update.token_budget:
        raise ValueError(
            f"gate.window {gate.window} is more than update.token_budget {update.token_budget}, the tokens of a pass: "
            "lower the first"
        )
    pairs = {
        "gate.count": gate.count if gate.judges or gate.tasks else None,
        "the windows of gate.text": gate.text_tokens // gate.window if gate.text is not None else None,
    }
    least = least_pairs(gate.level(rounds))
    if few := next((f"{name} {count}" for name, count in pairs.items() if count is not None and count < least), None):
        raise ValueError(
            f"{few}: gate.error_rate {gate.error_rate:g}, shared by {len(gate.measures)} tests in each of {rounds} "
            f"rounds, takes at least {least} to tell a loss: give more, or raise gate.error_rate"
        )


def check_probe(judge_probe: int | None, drifting_judges: Sequence[int]) -> None:
    """Refuses a probe for drift if no judge may drift."""
    if judge_probe is not None and not drifting_judges:
        raise ValueError(
            f"evaluation.judge_probe {judge_probe} asks judges that may drift again, and no judge "
            "of single answers here does: leave it empty, or name one of kind llm with a rubric"
        )


def check_names(judge_names: Sequence[str]) -> None:
    """Refuses two judges of one name."""
    if twice := next((name for name in judge_names if judge_names.count(name) > 1), None):
        raise ValueError(f"two judges are named '{twice}': give one of them another name, as evaluation.judges.0.name")


def check_held_out_judges(judge: JudgeConfig, others: Sequence[JudgeConfig]) -> None:
    """Refuses judges that compare, where a prompt has one answer; and nobody to score these."""
    if found := next((other.label for other in others if other.compares), None):
        raise ValueError(
            f"evaluation.judges: '{found}' compares the candidates of a prompt, and held-out prompts have one "
            "answer: give judges that score an answer by itself"
        )
    if judge.compares and not others:
        raise ValueError(
            f"the judge '{judge.label}' compares the candidates of a prompt, and held-out prompts have one "
            "answer: name a judge that scores an answer by itself in evaluation.judges, for the held-out reward"
        )
