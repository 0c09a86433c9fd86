"""What a round has to do, in prompts, completions and tokens, from its recipe."""

from dataclasses import dataclass
from math import ceil

from pipeline.planning.devices import FLOAT, HALF, Device
from pipeline.planning.shapes import ModelShape
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Workload:
    """A round's work.

    ``judge`` is the reward model's shape, if there is one. Lengths are means. ``preferences``, replayed ones included,
    are trained on in each epoch; one has its prompt once, and its completions without their last tokens.
    """

    recipe: Recipe
    policy: ModelShape
    judge: ModelShape | None
    prompt_tokens: float
    answer_tokens: float
    preferences: int
    preference_tokens: float

    @property
    def answers(self) -> int:
        """Counts the completions that are sampled for training."""
        return self.recipe.sampling.prompts_per_round * self.recipe.sampling.candidates

    @property
    def evaluations(self) -> int:
        """Counts how often held-out prompts are answered and judged: once more if the recipe says how one serves."""
        return 1 if self.recipe.evaluation.serving is None else 2

    @property
    def gate_answers(self) -> int:
        """Counts the answers to the gate's prompts: one each, of as many as the recipe takes at most."""
        gate = self.recipe.gate
        return 0 if gate is None or gate.prompts is None else gate.count

    @property
    def gate_tokens(self) -> float:
        """Counts the tokens that are sampled for the gate in a round, at most."""
        return self.gate_answers * self.recipe.gate_tokens

    @property
    def sampled_tokens(self) -> float:
        """Counts the tokens that are sampled in a round, the evaluation's included."""
        return (
            self.answers + self.evaluations * self.recipe.evaluation.prompts
        ) * self.answer_tokens + self.gate_tokens

    @property
    def trained_weights(self) -> int:
        """Counts the weights that the update changes, and that a checkpoint has."""
        lora = self.recipe.update.lora
        return self.policy.parameters if lora is None else self.policy.adapter(lora.rank)

    @property
    def saved_bytes(self) -> int:
        """Counts the bytes of a weight in a whole checkpoint, and in an adapter's base."""
        dtype = self.recipe.checkpoint_dtype
        return HALF if dtype == "bfloat16" or (dtype == "source" and self.policy.half) else FLOAT

    @property
    def checkpoint_bytes(self) -> int:
        """Counts the bytes of a round's checkpoint; an adapter is float32."""
        return self.trained_weights * (self.saved_bytes if self.recipe.update.lora is None else FLOAT)

    def sent_from_memory(self, device: Device) -> bool:
        """Says whether samplers take weights out of the trainer's memory: engines of one device, on its machine."""
        return (
            self.recipe.cluster.sampler.replicas == 0
            and self.recipe.gpus_per_engine == 1
            and not self.serves_adapters(device)
        )

    def serves_adapters(self, device: Device) -> bool:
        """Says whether the sampler serves a round's adapter beside its base, if vLLM can."""
        update, sampling = self.recipe.update, self.recipe.sampling
        if update.lora is None or sampling.engine != "vllm":
            return False
        return sampling.lora == "adapter" or (sampling.lora == "auto" and device.name != "cpu")

    def element_bytes(self, device: Device) -> int:
        """Counts the bytes of a weight while it computes; processors compute in float32."""
        return 2 if self.recipe.update.precision == "bfloat16" and device.name != "cpu" else 4

    def shared_tokens(self, device: Device) -> float:
        """Counts the tokens of a prompt that its completions share in the KV cache: whole blocks."""
        return self.prompt_tokens // device.cache_block * device.cache_block

    def step_tokens(self, ranks: int) -> float:
        """Counts the tokens of a step on the rank that has most of them: whole preferences, evenly spread."""
        return ceil(min(self.recipe.update.batch_size, self.preferences) / ranks) * self.preference_tokens


def workload_of(
    recipe: Recipe, policy: ModelShape, judge: ModelShape | None = None, *,
    prompt_tokens: float | None = None, answer_tokens: float | None = None,
) -> Workload:  # fmt: skip
    """Counts the work of a round if no prompt is dropped as a tie.

    If no mean lengths are given, a completion is as long as the recipe allows, and a prompt has 256 tokens, as a
    question with a chat template. In generated corpora it has 12, as the texts have 8 to 16, or the chats' median.
    """
    count, corpus = recipe.sampling.candidates, getattr(recipe.prompts, "corpus", None)
    prompt_tokens = prompt_tokens or {None: 256, "json_objects": 69, "instructions": 53}.get(corpus, 12)
    answer_tokens = answer_tokens or recipe.sampling.max_tokens
    tokens = prompt_tokens + (count if recipe.preferences.ranks else 2) * max(0.0, answer_tokens - 1)
    return Workload(recipe, policy, judge, prompt_tokens, answer_tokens, recipe.most_preferences, tokens)
