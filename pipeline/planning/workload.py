"""What a round has to do, in prompts, answers and tokens, from its recipe."""

from dataclasses import dataclass
from math import ceil, comb

from pipeline.config import (
    EnsembleJudge,
    GeneratedPrompts,
    ImplicitJudge,
    LlmJudge,
    NoisyJudge,
    PeopleJudge,
    Recipe,
    RewardModelJudge,
)
from pipeline.config.judges.base import JudgeConfig
from pipeline.config.judges.llm import Listwise, Pairwise

PROMPT_TOKENS = 256
"""Of a prompt where nobody says: a question to a chat model with its template."""
GENERATED_PROMPT_TOKENS = 12
"""Of a prompt of the generated corpora, which have 8 to 16."""


@dataclass(frozen=True)
class JudgeWork:
    """What the judges of a round do for one answer, by kind.

    Attributes:
        rules: rules that read it.
        models: reward models that read it.
        policies: policies of the run that read it (the implicit judge has two).
        requests: requests to an endpoint for it, shares of one included.
        concurrency: of the endpoint; 0 where there is none.
    """

    rules: int = 0
    models: int = 0
    policies: int = 0
    requests: float = 0.0
    concurrency: int = 0

    @property
    def on_gpu(self) -> bool:
        """Whether a model is computed here."""
        return bool(self.models or self.policies)


@dataclass(frozen=True)
class Workload:
    """A round's work.

    Attributes:
        prompts, candidates: P and K.
        prompt_tokens, answer_tokens: mean lengths.
        preferences: that are trained on, replayed ones included, in one epoch.
        preference_answers: answers of a preference.
        shards: of the prompts, the unit that is judged and committed.
        held_out: answers of the evaluation, one for each held-out prompt.
        judging, held_out_judging: for an answer of either kind.
        asks_people: whether a round waits for people, whose time is in no plan.
        counted_preference_tokens: tokens of a preference in the update where they were counted in a run.
    """

    prompts: int
    candidates: int
    prompt_tokens: float
    answer_tokens: float
    preferences: int
    preference_answers: float
    shards: int
    held_out: int
    held_out_shards: int
    judging: JudgeWork
    held_out_judging: JudgeWork
    asks_people: bool
    counted_preference_tokens: float | None = None

    @property
    def answers(self) -> int:
        """Answers that are sampled for training."""
        return self.prompts * self.candidates

    @property
    def preference_tokens(self) -> float:
        """Tokens of a preference in the update: its prompt once, and each answer without its last token."""
        if self.counted_preference_tokens is not None:
            return self.counted_preference_tokens
        return self.prompt_tokens + self.preference_answers * max(0.0, self.answer_tokens - 1)

    @property
    def sampled_tokens(self) -> float:
        """Tokens that are sampled in a round, the evaluation's included."""
        return (self.answers + self.held_out) * self.answer_tokens


def workload_of(
    recipe: Recipe, *, prompt_tokens: float | None = None, answer_tokens: float | None = None, kept: float = 1.0
) -> Workload:
    """The work of a round of a recipe.

    Args:
        prompt_tokens: mean length of a prompt; a guess by the kind of prompts where None.
        answer_tokens: mean length of an answer; the longest that the recipe allows where None, an upper bound.
        kept: share of the possible preferences that the judge's ties and the recipe's margins leave.
    """
    sampling, preferences = recipe.sampling, recipe.preferences
    if prompt_tokens is None:
        prompt_tokens = GENERATED_PROMPT_TOKENS if isinstance(recipe.prompts, GeneratedPrompts) else PROMPT_TOKENS
    own = kept * sampling.prompts_per_round * _preferences_per_prompt(recipe)
    return Workload(
        prompts=sampling.prompts_per_round,
        candidates=sampling.candidates,
        prompt_tokens=prompt_tokens,
        answer_tokens=sampling.max_tokens if answer_tokens is None else answer_tokens,
        preferences=max(1, round(own / (1 - preferences.replay.share))),
        preference_answers=sampling.candidates if preferences.ranks else 2,
        shards=ceil(sampling.prompts_per_round / sampling.shard_prompts),
        held_out=recipe.evaluation.prompts,
        held_out_shards=ceil(recipe.evaluation.prompts / sampling.shard_prompts),
        judging=_judging([recipe.judge], sampling.candidates),
        held_out_judging=_judging([recipe.judges[place] for place in recipe.held_out_judges], 1),
        asks_people=recipe.people is not None or isinstance(recipe.judge, PeopleJudge),
    )


def _preferences_per_prompt(recipe: Recipe) -> int:
    """At most: every candidate beats every other, or half of them are right."""
    candidates, rule, cap = recipe.sampling.candidates, recipe.preferences.rule, recipe.preferences.max_pairs
    most = {
        "best_vs_each": candidates - 1,
        "all_pairs": comb(candidates, 2),
        "correct_vs_incorrect": (candidates // 2) * ((candidates + 1) // 2),
    }.get(rule, 1)
    return most if cap is None else min(most, cap)


def _judging(judges: list[JudgeConfig], candidates: int) -> JudgeWork:
    parts = [part for judge in judges for part in _leaves(judge)]
    endpoints = [part for part in parts if isinstance(part, LlmJudge)]
    models = sum(isinstance(part, RewardModelJudge) for part in parts)
    policies = 2 * sum(isinstance(part, ImplicitJudge) for part in parts)
    people = sum(isinstance(part, PeopleJudge) for part in parts)
    return JudgeWork(
        rules=len(parts) - len(endpoints) - models - policies // 2 - people,
        models=models,
        policies=policies,
        requests=sum(_requests(judge, candidates) for judge in endpoints),
        concurrency=min((judge.concurrency for judge in endpoints), default=0),
    )


def _leaves(judge: JudgeConfig) -> list[JudgeConfig]:
    """The judges that a judge is made of, without those that only combine others."""
    return [part for part in judge.parts() if not isinstance(part, EnsembleJudge | NoisyJudge)]


def _requests(judge: LlmJudge, candidates: int) -> float:
    """Requests for one answer: each pair is asked in both orders, a list is shared by its answers."""
    if isinstance(judge.mode, Pairwise):
        return float(min(judge.mode.opponents or candidates - 1, candidates - 1))
    if isinstance(judge.mode, Listwise):
        return judge.mode.shuffles / candidates
    return 1.0
