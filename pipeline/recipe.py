"""The recipe: one frozen tree that says everything a run does.

Each field has a type, a range and a sentence with its unit. ``flows/registry/recipes.py`` reads the file.
"""

import typing
from collections.abc import Iterable, Iterator
from math import comb
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from pipeline.config.base import Config, Later, among
from pipeline.config.devices import ClusterConfig, DevicesConfig, ReplicasConfig, StoreConfig
from pipeline.config.monitors import NotificationsConfig, TrackingConfig
from pipeline.config.objectives import OBJECTIVES, RANKING_OBJECTIVES, SOFT_LABEL_OBJECTIVES
from pipeline.config.policy import Policy, PretrainedPolicy, WarmStartPolicy
from pipeline.config.preferences import RANKING_RULES, PreferencesConfig
from pipeline.config.prompts import GeneratedPrompts, Prompts
from pipeline.config.sampling import BFLOAT16_TOLERANCE, FLOAT32_TOLERANCE, Precision, SamplingConfig
from pipeline.config.update import UpdateConfig
from pipeline.data.corpora import CORPORA, TEXT_CORPORA
from pipeline.judges import AnyJudge, JudgeConfig
from pipeline.judges.human import HumanConfig, HumanFeedbackConfig
from pipeline.judges.registry import judges

VLLM_CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""With another width vLLM 0.32 starts, and dies on the first prompt."""


class ServingConfig(Config):
    """How one would serve the policy: the held-out prompts are answered once more like that, and judged, for reading.

    An answer is as long as in training. It counts for nothing else: rewards, win rates and divergences that rounds are
    compared by are of answers at temperature 1.
    """

    temperature: float = Field(0.0, ge=0, le=5, description="sampling temperature; 0 takes the likeliest token")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus: smallest share of probability mass to sample from")


class EvaluationConfig(Config):
    """Held-out evaluation after each round, and of the initial policy (round 0).

    One answer for each prompt, at temperature 1 and from the whole distribution: only then is the mean log-ratio an
    estimate of the divergence.
    """

    prompts: int = Field(256, ge=1, le=1_000_000, description="held-out prompts, never sampled in training")
    judges: tuple[AnyJudge, ...] = Field(
        (), description="held-out judges: further ones, whose scores training never sees"
    )
    judge_probe: int | None = Field(
        None,
        ge=2,
        le=100_000,
        description="completions of round 0 that judges which may drift, as language models, judge again in each round",
    )
    kl_limit: float | None = Field(
        None, gt=0, description="raise an alarm above this KL to the initial policy, in nats per sequence"
    )
    serving: Annotated[ServingConfig | None, Later(None)] = Field(
        None, description="how to answer the held-out prompts once more, as one would serve; not at all if empty"
    )


class Recipe(Config):
    """A whole run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        examples=["sentiment", "softer-2"],
        description="name of the recipe, and of a run that is given none",
    )
    description: str = Field("", max_length=1000, description="one sentence for people")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the run: prompts, samples and batch order follow from it")
    rounds: int = Field(5, ge=1, le=100_000, description="rounds of the run")
    mode: Literal["phased", "streaming"] = Field(
        "phased",
        description="whether a round samples, judges and updates one after the other, as on one device, or lets these "
        "overlap; the result is the same",
    )
    staleness: int = Field(
        0,
        ge=0,
        le=1,
        description="1: a round's completions come from the policy before the newest one, sampled while that is being "
        "trained; the policy that sampled stays the reference",
    )
    policy: Policy = Field(description="the initial policy")
    prompts: Prompts = Field(description="where prompts come from, in training and held out")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how completions are sampled")
    judge: AnyJudge = Field(description="the training judge, whose scores the preferences are made of")
    preferences: PreferencesConfig = Field(PreferencesConfig(), description="how judgments become preferences")
    people: HumanFeedbackConfig | None = Field(None, description="people beside the judge; nobody is asked where empty")
    update: UpdateConfig = Field(UpdateConfig(), description="the DPO update of a round")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is measured after each round")
    devices: DevicesConfig = Field(DevicesConfig(), description="where each part runs")
    cluster: ClusterConfig = Field(ClusterConfig(), description="replicas of sampler and judge on Ray")
    store: Annotated[StoreConfig, Later(StoreConfig())] = Field(
        StoreConfig(), description="how patient a run is with its store"
    )
    tracking: TrackingConfig = Field(TrackingConfig(), description="where metrics go besides the store")
    notifications: NotificationsConfig = Field(NotificationsConfig(), description="who is told what becomes of the run")

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        policy, sampling = self.policy, self.sampling
        if isinstance(policy, WarmStartPolicy) and sampling.max_tokens >= policy.context:
            raise ValueError(
                f"sampling.max_tokens {sampling.max_tokens} leaves no room for a prompt in policy.context "
                f"{policy.context}: lower the first or raise the second"
            )
        return self

    @model_validator(mode="after")
    def _objective_takes_the_preferences(self) -> "Recipe":
        rule, ranks, objectives = self.preferences.rule, self.preferences.ranks, self.update.objective
        pairwise = [name for name in OBJECTIVES if name not in RANKING_OBJECTIVES]
        if found := among(objectives, pairwise if ranks else RANKING_OBJECTIVES):
            raise ValueError(
                f"preferences.rule '{rule}' does not go with update.objective '{found}': {' and '.join(RANKING_RULES)} "
                f"go with {' and '.join(RANKING_OBJECTIVES)}, and they with them"
            )
        if self.update.wpo and ranks:
            raise ValueError(f"update.wpo weighs pairs, and preferences.rule is '{rule}': turn it off, or make pairs")
        hard = [name for name in OBJECTIVES if name not in SOFT_LABEL_OBJECTIVES]
        if self.preferences.soft_labels and (found := among(objectives, hard)):
            raise ValueError(
                f"preferences.soft_labels do not go with update.objective '{found}': they go with "
                f"{', '.join(SOFT_LABEL_OBJECTIVES)}"
            )
        return self

    @model_validator(mode="after")
    def _people_can_be_asked(self) -> "Recipe":
        if self.people is not None and isinstance(self.judge, HumanConfig):
            raise ValueError("people are the judge already: leave the field people out, or choose another judge")
        if self.people is not None and self.preferences.ranks:
            raise ValueError(
                f"people choose between two answers, and preferences.rule is '{self.preferences.rule}': make pairs"
            )
        return self

    @model_validator(mode="after")
    def _judge_can_come_early(self) -> "Recipe":
        if self.staleness and not self.judge.comes_early:
            raise ValueError(
                f"staleness {self.staleness} judges a round's candidates before the round begins, and the judge "
                f"'{self.judge.label}' needs what is not there by then: set staleness to 0, or choose another judge"
            )
        return self

    @property
    def cpu_threads(self) -> int | Literal["auto"]:
        """Returns the threads that are asked for; if the recipe leaves them out, what fits the policy.

        A pretrained policy is slow, so it gets all cores. A warm start keeps what version 0.1.0 gave it: one thread,
        with which samples are the same to the last bit.
        """
        by_policy: int | Literal["auto"] = "auto" if isinstance(self.policy, PretrainedPolicy) else 1
        return self.devices.cpu_threads or by_policy

    def hashed(self, *, exclude: Iterable[str] = ()) -> dict[str, Any]:
        """Returns all fields as `Config.hashed` does, with the threads that are asked for."""
        content = super().hashed(exclude=exclude)
        if "devices" in content:
            content["devices"]["cpu_threads"] = self.cpu_threads
        return content

    @property
    def sampler_sleeps(self) -> bool:
        """Says whether the sampler lends its GPU's memory to the update: one card, and one part at work at a time."""
        devices = self.devices
        if "cpu" in (devices.sampler, devices.trainer) or self.sampling.engine != "vllm":
            return False
        shared = self.cluster.sampler.replicas > 0 or devices.one_card  # nobody knows which cards Ray gives
        return shared and self.mode == "phased" and not self.staleness

    @property
    def sampler_precision(self) -> Precision | Literal["auto"]:
        """Returns the sampler's precision; auto if that depends on the processor, which its worker's recipe answers."""
        if self.sampling.engine != "vllm":
            return "float32"
        asked = self.sampling.precision
        if asked in ("float32", "bfloat16"):
            return asked
        if self.devices.sampler != "cpu":
            return self.update.precision
        return "auto" if asked == "auto" or self.cpu_threads == "auto" else "float32"

    @property
    def handover_tolerance(self) -> float:
        """Says by how much sampler and trainer may differ on the same weights, in nats per token."""
        exact = {self.update.precision, self.sampler_precision} == {"float32"}
        return self.sampling.handover_tolerance or (FLOAT32_TOLERANCE if exact else BFLOAT16_TOLERANCE)

    @property
    def most_preferences(self) -> int:
        """Says how many preferences a round has, replayed ones included, if each prompt gives all that it can."""
        count, rules = self.sampling.candidates, self.preferences
        pairs = {"best_vs_each": count - 1, "all_pairs": comb(count, 2), "correct_vs_incorrect": count**2 // 4}
        most = pairs.get(rules.rule, 1)
        own = self.sampling.prompts_per_round * min(most, rules.max_pairs or most)
        return max(1, round(own / (1 - rules.replay.share)))

    @property
    def judge_names(self) -> list[str]:
        """Returns the names of the judges in the tables; the first is the training judge, the others are held out."""
        return [judge.label for judge in self.judges]

    @property
    def judges(self) -> tuple[AnyJudge, ...]:
        """Returns all judges; the first is the training judge, the others are held out."""
        return (self.judge, *self.evaluation.judges)

    @property
    def judge_parts(self) -> list[JudgeConfig]:
        """Returns all judges, and those that they are made of."""
        return [part for judge in self.judges for part in judge.parts()]

    @property
    def held_out_judges(self) -> list[int]:
        """Returns the places among the judges of those that score the held-out answers, of which a prompt has one."""
        return [place for place, judge in enumerate(self.judges) if not judge.compares]

    @property
    def drifting_judges(self) -> list[int]:
        """Returns the places among the judges of those that score the held-out answers and may drift."""
        return [place for place in self.held_out_judges if any(part.drifts for part in self.judges[place].parts())]

    @model_validator(mode="after")
    def _probed_judges_drift(self) -> "Recipe":
        if self.evaluation.judge_probe is not None and not self.drifting_judges:
            raise ValueError(
                f"evaluation.judge_probe {self.evaluation.judge_probe} asks judges that may drift again, and no judge "
                "of single answers here does: leave it empty, or name one of kind llm with a rubric"
            )
        return self

    @model_validator(mode="after")
    def _judges_differ(self) -> "Recipe":
        names = self.judge_names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"two judges are named '{twice}': give one of them another name, as evaluation.judges.0.name"
            )
        return self

    @model_validator(mode="after")
    def _held_out_answers_have_a_judge(self) -> "Recipe":
        if found := next((judge.label for judge in self.evaluation.judges if judge.compares), None):
            raise ValueError(
                f"evaluation.judges: '{found}' compares the candidates of a prompt, and held-out prompts have one "
                "answer: give judges that score an answer by itself"
            )
        if self.judge.compares and not self.evaluation.judges:
            raise ValueError(
                f"the judge '{self.judge.label}' compares the candidates of a prompt, and held-out prompts have one "
                "answer: name a judge that scores an answer by itself in evaluation.judges, for the held-out reward"
            )
        return self

    @model_validator(mode="after")
    def _prompts_suffice(self) -> "Recipe":
        prompts, wanted = self.prompts, self.sampling.prompts_per_round
        if isinstance(prompts, GeneratedPrompts) and prompts.train < wanted:
            raise ValueError(
                f"prompts.train {prompts.train} is less than sampling.prompts_per_round {wanted}: raise the first"
            )
        if isinstance(prompts, GeneratedPrompts):
            answers = CORPORA[prompts.corpus].has_reference_answers
        else:
            answers = prompts.reference_column is not None
        needing = next((part.kind for part in self.judge_parts if part.needs_reference), None)
        if needing is not None and not answers:
            raise ValueError(
                f"the judge {needing} compares with reference answers, and these prompts have none: "
                "name their column in prompts.reference_column, or choose another judge"
            )
        return self

    @model_validator(mode="after")
    def _policy_takes_conversations(self) -> "Recipe":
        prompts, texts_only = self.prompts, isinstance(self.policy, WarmStartPolicy)
        if isinstance(prompts, GeneratedPrompts) and texts_only and CORPORA[prompts.corpus].chat:
            raise ValueError(
                f"prompts.corpus '{prompts.corpus}' has conversations, and a warm-started policy has no chat template: "
                f"choose one of {', '.join(TEXT_CORPORA)}, or a pretrained policy that was tuned for chat"
            )
        return self

    @model_validator(mode="after")
    def _rule_takes_the_scores(self) -> "Recipe":
        if self.preferences.rule == "correct_vs_incorrect" and any(
            part.gives_partial_credit for part in self.judge.parts()
        ):
            raise ValueError(
                f"preferences.rule 'correct_vs_incorrect' takes scores of 0 and 1 alone, and the judge "
                f"'{self.judge.label}' gives fractions: set judge.partial_credit to 0, or choose another rule"
            )
        return self

    @model_validator(mode="after")
    def _budget_holds_a_preference(self) -> "Recipe":
        candidates = self.sampling.candidates if self.preferences.ranks else 2
        least = candidates * self.sampling.max_tokens
        if self.update.token_budget <= least:
            raise ValueError(
                f"update.token_budget {self.update.token_budget} does not hold a prompt with {candidates} answers of "
                f"sampling.max_tokens {self.sampling.max_tokens}: raise it above {least} by the longest prompt"
            )
        return self

    @model_validator(mode="after")
    def _replayed_pairs_have_a_reference(self) -> "Recipe":
        replay, reference = self.preferences.replay, self.update.reference
        if replay.share and replay.reference == "original" and reference != "previous":
            raise ValueError(
                f"preferences.replay.reference 'original' does not go with update.reference '{reference}', which is "
                "one policy for all preferences: set the first to current"
            )
        return self

    @model_validator(mode="after")
    def _soft_labels_have_a_source(self) -> "Recipe":
        if self.preferences.needs_uncertainty and not self.judge.states_uncertainty:
            raise ValueError(
                "preferences.soft_labels and preferences.min_probability need a judge that says how sure it is, and "
                f"'{self.judge.label}' does not as it is set: turn them off, or choose an ensemble, an llm (a rubric "
                "with expected scores, or comparisons), human, a noisy judge, or a reward_model or python function "
                "with gives_std"
            )
        return self

    @model_validator(mode="after")
    def _update_takes_the_ranks(self) -> "Recipe":
        devices, update = self.devices, self.update
        if devices.trainer_world == 1:
            return self
        refused = {
            f"update.optimizer '{update.optimizer}', whose moments of 8 bits are not spread": update.optimizer
            != "adamw",
            "update.compile": update.compile,
            f"devices.trainer '{devices.trainer}', which is one GPU: cuda means all": ":" in devices.trainer,
        }
        if found := next((what for what, given in refused.items() if given), None):
            raise ValueError(
                f"{_ranks(devices)} does not go with {found}; set the former to 1, or leave the latter out"
            )
        return self

    @model_validator(mode="after")
    def _replicas_have_their_devices(self) -> "Recipe":
        parts: dict[str, tuple[ReplicasConfig, str]] = {
            "sampler": (self.cluster.sampler, self.devices.sampler), "judge": (self.cluster.judge, self.devices.judge)
        }  # fmt: skip
        for name, (part, device) in parts.items():
            if part.replicas and device != ("cuda" if part.gpus else "cpu"):
                raise ValueError(
                    f"cluster.{name}.gpus {part.gpus} does not go with devices.{name} '{device}': a replica sees the "
                    "GPUs that Ray gives it, as 'cuda'; without any it is on 'cpu'"
                )
        if self.cluster.sampler.gpus_per_engine > 1 and self.sampling.engine != "vllm":
            raise ValueError(
                f"cluster.sampler.gpus {self.cluster.sampler.gpus}: sampling.engine '{self.sampling.engine}' uses one "
                "GPU: set the former to 1"
            )
        return self

    @model_validator(mode="after")
    def _one_process_counts_a_budget(self) -> "Recipe":
        counted = any(part.has_budget for part in self.judge_parts)
        if counted and self.cluster.judge.replicas > 1:
            raise ValueError(
                f"cluster.judge.replicas {self.cluster.judge.replicas}: a judge has a budget, counted by each process "
                "by itself: set the former to 1, or leave the budget out"
            )
        return self

    @model_validator(mode="after")
    def _engine_has_the_precision(self) -> "Recipe":
        if self.sampling.precision == "bfloat16" and self.sampling.engine != "vllm":
            raise ValueError(
                f"sampling.precision 'bfloat16' does not go with sampling.engine '{self.sampling.engine}', which "
                "computes in float32: choose vllm, or leave sampling.precision out"
            )
        return self

    @model_validator(mode="after")
    def _engine_takes_the_policy(self) -> "Recipe":
        policy = self.policy
        context = self.sampling.context
        if isinstance(policy, WarmStartPolicy) and context is not None and context > policy.context:
            raise ValueError(f"sampling.context {context} is more than policy.context {policy.context}: lower it")
        if isinstance(policy, WarmStartPolicy) and (self.sampling.engine, self.devices.sampler) == ("vllm", "cpu"):
            width = policy.hidden_size // policy.heads
            if width not in VLLM_CPU_HEAD_WIDTHS:
                raise ValueError(
                    f"policy.hidden_size {policy.hidden_size} over {policy.heads} heads makes heads {width} wide: "
                    f"vLLM on a CPU takes {', '.join(map(str, VLLM_CPU_HEAD_WIDTHS))}"
                )
        return self


def _ranks(devices: DevicesConfig) -> str:
    nodes, ranks = devices.trainer_nodes, devices.trainer_ranks
    return f"devices.trainer_ranks {ranks}" if nodes == 1 else f"devices.trainer_nodes {nodes}"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the models that a field may hold, by its annotation such as ``tuple[A | B, ...]``; of a judge, all."""
    if annotation is JudgeConfig:
        yield from judges()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)
