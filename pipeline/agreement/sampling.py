"""What policy, prompts and sampling must agree on."""

from collections.abc import Iterable

from pipeline.config.devices import DevicesConfig
from pipeline.config.policy import Policy, WarmStartPolicy
from pipeline.config.prompts import GeneratedPrompts, Prompts
from pipeline.config.sampling import VLLM_CPU_HEAD_WIDTHS, SamplingConfig
from pipeline.config.update import UpdateConfig
from pipeline.data.corpora import CORPORA, TEXT_CORPORA
from pipeline.judges import JudgeConfig


def check_room_for_prompts(policy: Policy, sampling: SamplingConfig) -> None:
    """Refuses completions that could fill the whole context."""
    if isinstance(policy, WarmStartPolicy) and sampling.max_tokens >= policy.context:
        raise ValueError(
            f"sampling.max_tokens {sampling.max_tokens} leaves no room for a prompt in policy.context "
            f"{policy.context}: lower the first or raise the second"
        )


def check_prompts(prompts: Prompts, sampling: SamplingConfig, judge_parts: Iterable[JudgeConfig]) -> None:
    """Refuses prompts that are too few for a round, or lack reference answers that a judge needs."""
    wanted = sampling.prompts_per_round
    if isinstance(prompts, GeneratedPrompts) and prompts.train < wanted:
        raise ValueError(
            f"prompts.train {prompts.train} is less than sampling.prompts_per_round {wanted}: raise the first"
        )
    if isinstance(prompts, GeneratedPrompts):
        answers = CORPORA[prompts.corpus].has_reference_answers
    else:
        answers = prompts.reference_column is not None
    needing = next((part.kind for part in judge_parts if part.needs_reference), None)
    if needing is not None and not answers:
        raise ValueError(
            f"the judge {needing} compares with reference answers, and these prompts have none: "
            "name their column in prompts.reference_column, or choose another judge"
        )


def check_conversations(prompts: Prompts, policy: Policy) -> None:
    """Refuses conversations for a policy without a chat template."""
    texts_only = isinstance(policy, WarmStartPolicy)
    if isinstance(prompts, GeneratedPrompts) and texts_only and CORPORA[prompts.corpus].chat:
        raise ValueError(
            f"prompts.corpus '{prompts.corpus}' has conversations, and a warm-started policy has no chat template: "
            f"choose one of {', '.join(TEXT_CORPORA)}, or a pretrained policy that was tuned for chat"
        )


def check_engine_precision(sampling: SamplingConfig) -> None:
    """Refuses a precision that the engine does not compute in."""
    if sampling.precision == "bfloat16" and sampling.engine != "vllm":
        raise ValueError(
            f"sampling.precision 'bfloat16' does not go with sampling.engine '{sampling.engine}', which "
            "computes in float32: choose vllm, or leave sampling.precision out"
        )


def check_served_adapters(sampling: SamplingConfig, update: UpdateConfig) -> None:
    """Refuses adapters to be served that nobody trains, that the engine cannot serve, or that go where none is."""
    if sampling.lora != "adapter":
        return
    if update.lora is None:
        raise ValueError("sampling.lora 'adapter' goes with update.lora, which is empty: leave the former out")
    if sampling.engine != "vllm":
        raise ValueError(
            f"sampling.lora 'adapter' does not go with sampling.engine '{sampling.engine}', which has no adapters: "
            "choose vllm, or set sampling.lora to merged"
        )
    ends = ("lm_head", "embed_tokens")
    if end := next((name for name in update.lora.target_modules if name.rpartition(".")[2] in ends), None):
        raise ValueError(
            f"sampling.lora 'adapter' does not go with update.lora.target_modules '{end}', as vLLM is not given "
            "adapters of embeddings and head: set sampling.lora to merged"
        )


def check_engine_takes_policy(policy: Policy, sampling: SamplingConfig, devices: DevicesConfig) -> None:
    """Refuses a policy whose context or heads the engine cannot take."""
    context = sampling.context
    if isinstance(policy, WarmStartPolicy) and context is not None and context > policy.context:
        raise ValueError(f"sampling.context {context} is more than policy.context {policy.context}: lower it")
    if isinstance(policy, WarmStartPolicy) and sampling.engine == "vllm" and devices.samples_on_cpu:
        width = policy.hidden_size // policy.heads
        if width not in VLLM_CPU_HEAD_WIDTHS:
            raise ValueError(
                f"policy.hidden_size {policy.hidden_size} over {policy.heads} heads makes heads {width} wide: "
                f"vLLM on a CPU takes {', '.join(map(str, VLLM_CPU_HEAD_WIDTHS))}"
            )
