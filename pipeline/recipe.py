"""The recipe: one frozen tree that says everything a run does.

Each field has a type, a range and a sentence with its unit; what fields of several parts must agree on is in
``pipeline/agreement/``. ``flows/registry/recipes.py`` reads the file.
"""

import typing
from collections.abc import Iterable, Iterator
from math import comb
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from pipeline import agreement
from pipeline.config.base import Config, Later
from pipeline.config.devices import ClusterConfig, DevicesConfig, StoreConfig
from pipeline.config.monitors import NotificationsConfig, TrackingConfig
from pipeline.config.policy import CheckpointDtype, Policy, PretrainedPolicy
from pipeline.config.preferences import PreferencesConfig
from pipeline.config.prompts import Prompts
from pipeline.config.sampling import BFLOAT16_TOLERANCE, FLOAT32_TOLERANCE, AdapterServing, Precision, SamplingConfig
from pipeline.config.update import UpdateConfig
from pipeline.gate import GateConfig
from pipeline.judges import AnyJudge, JudgeConfig
from pipeline.judges.human import HumanFeedbackConfig
from pipeline.judges.registry import judges


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
    gate: Annotated[GateConfig | None, Later(None)] = Field(
        None, description="what a round's policy must not have lost for the next round to start from it; none if empty"
    )
    devices: DevicesConfig = Field(DevicesConfig(), description="where each part runs")
    cluster: ClusterConfig = Field(ClusterConfig(), description="replicas of sampler and judge on Ray")
    store: Annotated[StoreConfig, Later(StoreConfig())] = Field(
        StoreConfig(), description="how patient a run is with its store"
    )
    tracking: TrackingConfig = Field(TrackingConfig(), description="where metrics go besides the store")
    notifications: NotificationsConfig = Field(NotificationsConfig(), description="who is told what becomes of the run")

    @model_validator(mode="after")
    def _half_precision_on_a_gpu(self) -> "Recipe":
        """Lets an update on a GPU compute in bfloat16 if the recipe leaves its precision out."""
        if self.devices.trainer != "cpu" and "precision" not in self.update.model_fields_set:
            update = self.update.model_copy(update={"precision": "bfloat16"})
            update.model_fields_set.discard("precision")  # still left out: a run that goes on keeps its own
            self.__dict__["update"] = update
        return self

    @model_validator(mode="after")
    def _parts_agree(self) -> "Recipe":
        """Compares the parts, in this order: of several faults the first one is told."""
        judge, preferences, update, sampling = self.judge, self.preferences, self.update, self.sampling
        agreement.sampling.check_room_for_prompts(self.policy, sampling)
        agreement.preferences.check_objective(preferences, update)
        agreement.judges.check_people(self.people, judge, preferences)
        agreement.judges.check_early_judging(self.staleness, judge)
        agreement.judges.check_gate(self.gate, self.staleness, self.rounds, update)
        agreement.judges.check_probe(self.evaluation.judge_probe, self.drifting_judges)
        agreement.judges.check_names(self.judge_names)
        agreement.judges.check_held_out_judges(judge, self.evaluation.judges)
        agreement.sampling.check_prompts(self.prompts, sampling, self.judge_parts)
        agreement.sampling.check_conversations(self.prompts, self.policy)
        agreement.preferences.check_rule(preferences, judge)
        agreement.preferences.check_budget(preferences, sampling, update)
        agreement.preferences.check_replay(preferences, update)
        agreement.preferences.check_importance(preferences, sampling, update)
        agreement.preferences.check_soft_labels(preferences, judge)
        agreement.devices.check_ranks(self.devices, update)
        agreement.devices.check_offload(self.devices, update)
        agreement.devices.check_replicas(self.cluster, self.devices, sampling)
        agreement.devices.check_engines(self.cluster, self.devices, sampling)
        agreement.devices.check_counted_budget(self.cluster, self.all_judge_parts)
        agreement.sampling.check_engine_precision(sampling)
        agreement.sampling.check_served_adapters(sampling, update)
        agreement.sampling.check_engine_takes_policy(self.policy, sampling, self.devices)
        return self

    @property
    def cpu_threads(self) -> int | Literal["auto"]:
        """Returns the threads that are asked for; if the recipe leaves them out, what fits the policy.

        A pretrained policy is slow, so it gets all cores. A warm start keeps what version 0.1.0 gave it: one thread,
        with which samples are the same to the last bit.
        """
        by_policy: int | Literal["auto"] = "auto" if isinstance(self.policy, PretrainedPolicy) else 1
        return self.devices.cpu_threads or by_policy

    @property
    def checkpoint_dtype(self) -> CheckpointDtype:
        """Returns the precision of weights in checkpoints; adapters are float32 whatever it is, and this their base's.

        A base never changes, so it loses nothing in the precision that it came in. Weights that all change lose much.
        """
        if not isinstance(self.policy, PretrainedPolicy):
            return "float32"
        return self.policy.dtype or ("float32" if self.update.lora is None else "source")

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
        if devices.samples_on_cpu or devices.trainer == "cpu" or self.sampling.engine != "vllm":
            return False
        replicas = self.cluster.sampler.replicas
        shared = replicas > 0 or devices.one_card(self.gpus_per_engine)  # nobody knows which cards Ray gives
        return shared and self.mode == "phased" and not self.staleness

    @property
    def adapter_serving(self) -> AdapterServing:
        """Says how the engine gets a round's adapter; auto if it is served, but for one that vLLM cannot serve."""
        if self.update.lora is None or self.sampling.engine != "vllm":
            return "merged"
        on_cpu = self.devices.samples_on_cpu
        return "merged" if self.sampling.lora == "auto" and on_cpu else self.sampling.lora

    @property
    def gpus_per_engine(self) -> int:
        """Counts the GPUs that one sampling engine splits its model over."""
        replicas = self.cluster.sampler
        return max(1, replicas.gpus) if replicas.replicas else self.sampling.tensor_parallel

    @property
    def engines(self) -> tuple[str, ...]:
        """Returns the devices of each of this machine's sampling engines; replicas on Ray are none of them."""
        return self.devices.engines(self.gpus_per_engine)

    @property
    def sampler_precision(self) -> Precision | Literal["auto"]:
        """Returns the sampler's precision; auto if that depends on the processor, which its worker's recipe answers."""
        if self.sampling.engine != "vllm":
            return "float32"
        asked = self.sampling.precision
        if asked in ("float32", "bfloat16"):
            return asked
        if not self.devices.samples_on_cpu:
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
    def gate_judges(self) -> tuple[AnyJudge, ...]:
        """Returns the judges of the gate, whose places come after those of `judges`."""
        return () if self.gate is None else self.gate.judges

    @property
    def gate_tokens(self) -> int:
        """Returns the most tokens of an answer to a prompt of the gate."""
        return (self.gate and self.gate.max_tokens) or self.sampling.max_tokens

    @property
    def judge_parts(self) -> list[JudgeConfig]:
        """Returns all judges, and those that they are made of."""
        return [part for judge in self.judges for part in judge.parts()]

    @property
    def all_judge_parts(self) -> list[JudgeConfig]:
        """Returns those, and the judges of the gate with theirs: all that a process of judges loads."""
        return [*self.judge_parts, *(part for judge in self.gate_judges for part in judge.parts())]

    @property
    def held_out_judges(self) -> list[int]:
        """Returns the places among the judges of those that score the held-out answers, of which a prompt has one."""
        return [place for place, judge in enumerate(self.judges) if not judge.compares]

    @property
    def drifting_judges(self) -> list[int]:
        """Returns the places among the judges of those that score the held-out answers and may drift."""
        return [place for place in self.held_out_judges if any(part.drifts for part in self.judges[place].parts())]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yields the models that a field may hold, by its annotation such as ``tuple[A | B, ...]``; of a judge, all."""
    if annotation is JudgeConfig:
        yield from judges()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in typing.get_args(annotation):
        yield from models_in(inner)
