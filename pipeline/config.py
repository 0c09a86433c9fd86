"""The recipe: one frozen tree that says everything a run does.

Each field has a type, a range and a sentence with its unit. Nothing here reads a file: see ``flows/recipes.py``.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_serializer,
    field_validator,
    model_validator,
)

Corpus = Literal["film_reviews", "additions"]
OBJECTIVES = (
    "sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "simpo", "sppo", "dpop", "apo_zero", "apo_down", "exo_pair",
    "nca_pair", "bco_pair", "plackett_luce", "all_pairs",
)  # fmt: skip
RANKING_OBJECTIVES = ("plackett_luce", "all_pairs")
SOFT_LABEL_OBJECTIVES = ("sigmoid", "sigmoid_norm", "sppo")
SMOOTHED_OBJECTIVES = ("exo_pair",)
"""Infinite without label smoothing."""
REVERSE_KL_OBJECTIVES = ("simpo", "sppo", "dpop", "apo_zero", "apo_down", "nca_pair", "bco_pair")
"""Not functions of a difference of rewards, without which no other divergence is defined."""
VLLM_CPU_HEAD_WIDTHS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""With another width vLLM 0.32 starts, and dies on the first prompt."""
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]


class Config(BaseModel):
    """Base of every part of a recipe: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _among(objectives: Iterable[str], names: Iterable[str]) -> str | None:
    """The first objective that is one of those."""
    known = set(names)
    return next((name for name in objectives if name in known), None)


class PretrainedPolicy(Config):
    """A policy that exists: a local directory in the hub's format, or a hub id."""

    source: Literal["pretrained"]
    path: str = Field(min_length=1, description="local directory, or id on the model hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")


class WarmStartPolicy(Config):
    """The supervised warm start: a small Llama-shaped policy, trained from scratch on a generated corpus."""

    source: Literal["warm_start"]
    corpus: Corpus = Field(description="the generated corpus that it learns")
    examples: int = Field(20_000, ge=100, le=10_000_000, description="texts in the corpus")
    steps: int = Field(600, ge=1, le=1_000_000, description="optimizer steps")
    batch_size: int = Field(32, ge=1, le=4096, description="texts per optimizer step")
    learning_rate: float = Field(3e-3, gt=0, le=1, description="peak learning rate of AdamW")
    hidden_size: int = Field(128, ge=16, le=8192, multiple_of=16, description="width of the residual stream")
    layers: int = Field(4, ge=1, le=128, description="transformer blocks")
    heads: int = Field(4, ge=1, le=128, description="attention heads; divides hidden_size")
    vocabulary: int = Field(512, ge=258, le=200_000, description="most tokens that the tokenizer may learn")
    context: int = Field(128, ge=16, le=131_072, description="longest sequence, in tokens")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of corpus, initial weights and batch order")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "WarmStartPolicy":
        head = self.hidden_size // self.heads
        if self.hidden_size % self.heads or head % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not split into {self.heads} heads of an even width: "
                "choose heads so that hidden_size / heads is an even number"
            )
        return self


class GeneratedPrompts(Config):
    """Prompts from a corpus that rondo generates; warm start, training and evaluation never share one."""

    source: Literal["generated"]
    corpus: Corpus = Field(
        description="the corpus whose openings (film_reviews) or problems (additions) are the prompts"
    )
    train: int = Field(4096, ge=1, le=10_000_000, description="training prompts to generate")


class FilePrompts(Config):
    """Prompts from a JSONL or Parquet file with a column of texts or of conversations."""

    source: Literal["jsonl", "parquet"]
    path: str = Field(min_length=1, description="the file")
    column: str = Field("prompt", description="column with a text, or a list of {role, content} messages")
    reference_column: str | None = Field(None, description="column with the right answer, for judges that need one")


class DatasetPrompts(Config):
    """Prompts from a dataset by name, or from a local directory in the hub's format, read by the datasets library."""

    source: Literal["datasets"]
    name: str = Field(min_length=1, description="name on the data hub, or a local directory")
    subset: str | None = Field(None, description="configuration of the dataset, where it has several")
    split: str = Field("train", description="split to read")
    column: str = Field("prompt", description="column with a text, or a list of {role, content} messages")
    reference_column: str | None = Field(None, description="column with the right answer, for judges that need one")


Prompts = Annotated[GeneratedPrompts | FilePrompts | DatasetPrompts, Field(discriminator="source")]
Policy = Annotated[PretrainedPolicy | WarmStartPolicy, Field(discriminator="source")]


class SamplingConfig(Config):
    """How the candidates of a round are sampled from the current policy."""

    engine: Literal["vllm", "transformers"] = Field(
        "vllm", description="vllm, or the plain and slow transformers loop that tests use in its place"
    )
    prompts_per_round: int = Field(256, ge=1, le=10_000_000, description="prompts of one round (P)")
    candidates: int = Field(4, ge=2, le=256, description="candidates per prompt (K)")
    temperature: float = Field(1.0, gt=0, le=5, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus: smallest share of probability mass to sample from")
    max_tokens: int = Field(48, ge=1, le=131_072, description="longest answer, in tokens")
    shard_prompts: int = Field(128, ge=1, le=1_000_000, description="prompts in one shard, the unit that is committed")
    max_sequences: int = Field(256, ge=1, le=65_536, description="most sequences that the engine runs at once")
    context: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="longest sequence of the engine, in tokens; the model's own where empty",
    )
    handover_tolerance: float = Field(
        1e-3,
        gt=0,
        le=10,
        description="largest difference to the trainer after a hand-over of weights, in nats per token",
    )
    cache_gib: float = Field(1.0, gt=0, le=2000, description="memory of the engine's KV cache, in GiB")


class JudgeConfig(Config):
    """Base of the judges' configurations."""

    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="name in the tables; the kind where empty"
    )


class VaderJudge(JudgeConfig):
    """Sentiment by the VADER lexicon: the compound score, from -1 to 1."""

    kind: Literal["vader"]


class ExactAnswerJudge(JudgeConfig):
    """1 where the answer equals the prompt's reference answer, else 0; surrounding white space is ignored."""

    kind: Literal["exact_answer"]
    after: str | None = Field(
        None, min_length=1, description="the answer is what follows the last of these marks; the whole text where empty"
    )


class GrammarJudge(JudgeConfig):
    """Share of an answer's clauses that the grammar of a generated corpus can produce, from 0 to 1."""

    kind: Literal["grammar"]
    corpus: Literal["film_reviews"] = Field("film_reviews", description="the corpus whose grammar is used")


class RewardModelJudge(JudgeConfig):
    """A sequence classifier with one output, applied to prompt and answer."""

    kind: Literal["reward_model"]
    path: str = Field(min_length=1, description="local directory, or id on the model hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    batch_size: int = Field(16, ge=1, le=4096, description="sequences per forward pass")


Judge = Annotated[VaderJudge | ExactAnswerJudge | GrammarJudge | RewardModelJudge, Field(discriminator="kind")]


class PreferencesConfig(Config):
    """How judgments become pairs or rankings."""

    rule: Literal["best_vs_worst", "best_vs_random", "all_pairs", "full_ranking"] = Field(
        "best_vs_worst", description="which candidates of a prompt are set against each other"
    )
    min_margin: float = Field(0.0, ge=0, description="least difference in score; what is not above it is a tie")
    drop_truncated: bool = Field(False, description="leave out candidates that were cut at max_tokens")
    soft_labels: bool = Field(
        False,
        description="weigh each pair by the probability that its order is right; needs a judge with uncertainty",
    )


# What a form offers: schedulers check parameters against it, in the short form that a recipe has.
_OBJECTIVE_FORM = {
    "anyOf": [
        {"type": "string", "enum": list(OBJECTIVES)},
        {"type": "object", "additionalProperties": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000}},
    ]
}


class UpdateConfig(Config):
    """The DPO update of a round.

    ``objective`` is a name, or a mapping of names to weights for a weighted sum; it is kept as a mapping, and written
    as a name where there is one of weight 1. The sources of the formulas are in ``pipeline/losses.py``.

    ``exploration_weight`` is that of XPO's optimism, arXiv:2405.21046, which is meant as a mean over answers that were
    sampled from the reference. It is taken over the candidates that are in the preference: where a rule picked a pair
    out of more than two by their scores, the mean is biased towards the picked ones. It is unbiased with two candidates
    for each prompt, and with rankings of all of them.
    """

    objective: Annotated[Mapping[str, Annotated[float, Field(gt=0, le=1000)]], WithJsonSchema(_OBJECTIVE_FORM)] = Field(
        default_factory=lambda: {"sigmoid": 1.0},
        min_length=1,
        description="loss of a pair or of a ranking: a name, or a mapping of names to weights",
    )
    beta: float = Field(0.1, gt=0, le=100, description="strength of the pull towards the reference")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a pair's order is wrong")
    target_margin: float = Field(0.5, ge=0, le=100, description="margin of simpo, in its rewards' unit")
    dpop_penalty: float = Field(50.0, ge=0, le=1e6, description="factor of dpop's penalty on chosen answers that fall")
    divergence: Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha"] = Field(
        "reverse_kl", description="divergence that the rewards are derived from"
    )
    divergence_alpha: float = Field(
        0.5, gt=0, lt=1, description="of the divergence alpha, between reverse KL (0) and forward KL (1)"
    )
    wpo: bool = Field(False, description="weigh each pair by its probability under the policy (WPO)")
    nll_weight: float = Field(0.0, ge=0, le=100, description="weight of the chosen answer's negative log-likelihood")
    exploration_weight: float = Field(0.0, ge=0, le=100, description="weight of the exploration term (XPO)")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="learning rate over the steps of a round"
    )
    warmup_steps: int = Field(0, ge=0, le=1_000_000, description="steps of linear warm-up at the start of a round")
    weight_decay: float = Field(0.0, ge=0, le=1, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="gradients are clipped to this norm")
    epochs: int = Field(1, ge=1, le=100, description="passes over the round's preferences")
    batch_size: int = Field(16, ge=1, le=1_000_000, description="preferences per optimizer step")
    token_budget: int = Field(4096, ge=16, le=10_000_000, description="most tokens of one forward pass")
    reference_logprobs: Literal["sampler", "trainer", "auto"] = Field(
        "auto", description="whose log-probabilities are the reference's"
    )
    reference_tolerance: float = Field(
        1e-2,
        gt=0,
        le=100,
        description="auto takes the sampler's where they differ from the trainer's by less, in nats per sequence",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward pass; master weights are float32"
    )
    gradient_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")

    @field_validator("objective", mode="before")
    @classmethod
    def _weights(cls, value: Any) -> Any:
        weights = {value: 1.0} if isinstance(value, str) else value
        for name in weights if isinstance(weights, Mapping) else ():
            if name not in OBJECTIVES:
                raise ValueError(
                    f"update.objective: there is no objective '{name}': choose among {', '.join(OBJECTIVES)}"
                )
        return weights

    @field_serializer("objective")
    def _shortest(self, weights: Mapping[str, float]) -> str | dict[str, float]:
        return next(iter(weights)) if list(weights.values()) == [1.0] else dict(weights)

    @model_validator(mode="after")
    def _constants_fit(self) -> "UpdateConfig":
        if self.label_smoothing == 0 and (found := _among(self.objective, SMOOTHED_OBJECTIVES)):
            raise ValueError(
                f"update.label_smoothing 0 makes update.objective '{found}' infinite: choose it above 0, such as 0.001"
            )
        if self.divergence != "reverse_kl" and (found := _among(self.objective, REVERSE_KL_OBJECTIVES)):
            raise ValueError(
                f"update.divergence '{self.divergence}' does not go with update.objective '{found}', which is defined "
                "for reverse_kl alone: change one of them"
            )
        return self


class EvaluationConfig(Config):
    """Held-out evaluation after each round, and of the initial policy (round 0).

    One answer for each prompt, at temperature 1 and from the whole distribution: only then is the mean log-ratio an
    estimate of the divergence.
    """

    prompts: int = Field(256, ge=1, le=1_000_000, description="held-out prompts, never sampled in training")
    judges: tuple[Judge, ...] = Field((), description="further judges, which training never sees")
    kl_limit: float | None = Field(
        None, gt=0, description="raise an alarm above this KL to the initial policy, in nats per sequence"
    )


class DevicesConfig(Config):
    """Where each part runs."""

    sampler: Device = Field("cpu", description="device of the sampling engine")
    trainer: Device = Field("cpu", description="device of the update")
    judge: Device = Field("cpu", description="device of a reward model")
    cpu_threads: int = Field(
        1, ge=1, le=1024, description="threads of one CPU worker; a change changes results in the last bits"
    )


class Recipe(Config):
    """A whole run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
        description="name of the recipe, and of a run that is given none",
    )
    description: str = Field("", max_length=1000, description="one sentence for people")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the run: prompts, samples and batch order follow from it")
    rounds: int = Field(5, ge=1, le=100_000, description="rounds of the run")
    policy: Policy = Field(description="the initial policy")
    prompts: Prompts = Field(description="where prompts come from, in training and held out")
    sampling: SamplingConfig = Field(SamplingConfig(), description="how candidates are sampled")
    judge: Judge = Field(description="the judge that training hears")
    preferences: PreferencesConfig = Field(PreferencesConfig(), description="how judgments become preferences")
    update: UpdateConfig = Field(UpdateConfig(), description="the DPO update of a round")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="what is measured after each round")
    devices: DevicesConfig = Field(DevicesConfig(), description="where each part runs")

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
        rule, objectives = self.preferences.rule, self.update.objective
        pairwise = [name for name in OBJECTIVES if name not in RANKING_OBJECTIVES]
        if found := _among(objectives, pairwise if rule == "full_ranking" else RANKING_OBJECTIVES):
            raise ValueError(
                f"preferences.rule '{rule}' does not go with update.objective '{found}': full_ranking goes with "
                f"{' and '.join(RANKING_OBJECTIVES)}, and they with it"
            )
        if self.update.wpo and rule == "full_ranking":
            raise ValueError(
                "update.wpo weighs pairs, and preferences.rule is 'full_ranking': turn it off, or make pairs"
            )
        hard = [name for name in OBJECTIVES if name not in SOFT_LABEL_OBJECTIVES]
        if self.preferences.soft_labels and (found := _among(objectives, hard)):
            raise ValueError(
                f"preferences.soft_labels do not go with update.objective '{found}': they go with "
                f"{', '.join(SOFT_LABEL_OBJECTIVES)}"
            )
        return self

    @property
    def judge_names(self) -> list[str]:
        """Names of the judges in the tables; the first is the one that training hears."""
        return [judge.name or judge.kind for judge in (self.judge, *self.evaluation.judges)]

    @model_validator(mode="after")
    def _judges_differ(self) -> "Recipe":
        names = self.judge_names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(
                f"two judges are named '{twice}': give one of them another name, as evaluation.judges.0.name"
            )
        return self

    @model_validator(mode="after")
    def _prompts_suffice(self) -> "Recipe":
        prompts, wanted = self.prompts, self.sampling.prompts_per_round
        if isinstance(prompts, GeneratedPrompts) and prompts.train < wanted:
            raise ValueError(
                f"prompts.train {prompts.train} is less than sampling.prompts_per_round {wanted}: raise the first"
            )
        answers = prompts.corpus == "additions" if isinstance(prompts, GeneratedPrompts) else prompts.reference_column
        if any(judge.kind == "exact_answer" for judge in (self.judge, *self.evaluation.judges)) and not answers:
            raise ValueError(
                "the judge exact_answer compares with reference answers, and these prompts have none: "
                "name their column in prompts.reference_column, or choose another judge"
            )
        return self

    @model_validator(mode="after")
    def _budget_holds_a_preference(self) -> "Recipe":
        candidates = self.sampling.candidates if self.preferences.rule == "full_ranking" else 2
        least = candidates * self.sampling.max_tokens
        if self.update.token_budget <= least:
            raise ValueError(
                f"update.token_budget {self.update.token_budget} does not hold a prompt with {candidates} answers of "
                f"sampling.max_tokens {self.sampling.max_tokens}: raise it above {least} by the longest prompt"
            )
        return self

    @model_validator(mode="after")
    def _soft_labels_have_a_source(self) -> "Recipe":
        if self.preferences.soft_labels:
            raise ValueError(
                f"preferences.soft_labels need a judge that states standard deviations, and '{self.judge.kind}' states "
                "none: set it to false"
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
