"""What the parts of a recipe must agree on.

Each function takes the parts that it compares. It raises ValueError, a sentence with their values and the remedy. A
recipe calls all of them when it is made.
"""

from collections.abc import Iterable, Sequence

from pipeline.config.base import among
from pipeline.config.devices import ClusterConfig, DevicesConfig, ReplicasConfig
from pipeline.config.objectives import OBJECTIVES, RANKING_OBJECTIVES, SOFT_LABEL_OBJECTIVES
from pipeline.config.policy import Policy, WarmStartPolicy
from pipeline.config.preferences import RANKING_RULES, PreferencesConfig
from pipeline.config.prompts import GeneratedPrompts, Prompts
from pipeline.config.sampling import VLLM_CPU_HEAD_WIDTHS, SamplingConfig
from pipeline.config.update import UpdateConfig
from pipeline.data.corpora import CORPORA, TEXT_CORPORA
from pipeline.gate import GateConfig, least_pairs
from pipeline.judges import JudgeConfig
from pipeline.judges.human import HumanConfig, HumanFeedbackConfig

# Policy, prompts and sampling.


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


# The judges.


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


# Preferences and the update.


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


# Devices.


def check_ranks(devices: DevicesConfig, update: UpdateConfig) -> None:
    """Refuses what one process alone can do, if several share the update."""
    nodes, ranks = devices.trainer_nodes, devices.trainer_ranks
    if devices.trainer_world == 1:
        return
    refused = {
        f"update.optimizer '{update.optimizer}', whose moments of 8 bits are not spread": update.optimizer != "adamw",
        "update.compile": update.compile,
        f"devices.trainer '{devices.trainer}', which is one GPU: cuda means all": ":" in devices.trainer,
    }
    if found := next((what for what, given in refused.items() if given), None):
        several = f"devices.trainer_ranks {ranks}" if nodes == 1 else f"devices.trainer_nodes {nodes}"
        raise ValueError(f"{several} does not go with {found}; set the former to 1, or leave the latter out")


def check_offload(devices: DevicesConfig, update: UpdateConfig) -> None:
    """Refuses to put into main memory what is there, what ranks hold in parts, or moments of another library."""
    refused = {
        f"devices.trainer '{devices.trainer}', whose memory is the main one": devices.trainer == "cpu",
        f"{devices.trainer_world} ranks, which hold weights and moments in parts": devices.trainer_world > 1,
        f"update.optimizer '{update.optimizer}', which keeps its moments itself": update.optimizer != "adamw",
        "update.compile, whose layers are compiled for where they are": update.compile and devices.offload == "all",
    }
    found = next((what for what, given in refused.items() if given), None)
    if devices.offload != "none" and found:
        raise ValueError(f"devices.offload '{devices.offload}' does not go with {found}: leave the former out")


def check_replicas(cluster: ClusterConfig, devices: DevicesConfig, sampling: SamplingConfig) -> None:
    """Refuses replicas on another device than Ray gives them, and GPUs that an engine cannot use."""
    parts: dict[str, tuple[ReplicasConfig, str]] = {
        "sampler": (cluster.sampler, devices.sampler), "judge": (cluster.judge, devices.judge)
    }  # fmt: skip
    for name, (part, device) in parts.items():
        if part.replicas and device != ("cuda" if part.gpus else "cpu"):
            raise ValueError(
                f"cluster.{name}.gpus {part.gpus} does not go with devices.{name} '{device}': a replica sees the "
                "GPUs that Ray gives it, as 'cuda'; without any it is on 'cpu'"
            )
    if cluster.sampler.replicas and cluster.sampler.gpus > 1 and sampling.engine != "vllm":
        raise ValueError(
            f"cluster.sampler.gpus {cluster.sampler.gpus}: sampling.engine '{sampling.engine}' uses one "
            "GPU: set the former to 1"
        )


def check_engines(cluster: ClusterConfig, devices: DevicesConfig, sampling: SamplingConfig) -> None:
    """Refuses GPUs that do not make up engines."""
    names, gpus = devices.sampler.split(","), sampling.tensor_parallel
    if not devices.samples_on_cpu and (twice := next((name for name in names if names.count(name) > 1), None)):
        raise ValueError(f"devices.sampler names {twice} twice, and an engine has its GPUs to itself: leave one out")
    if gpus == 1:
        return
    if cluster.sampler.replicas:
        raise ValueError(
            f"sampling.tensor_parallel {gpus} does not go with cluster.sampler.replicas, whose GPUs are "
            "cluster.sampler.gpus: set that, and leave the former out"
        )
    if devices.samples_on_cpu or sampling.engine != "vllm":
        raise ValueError(
            f"sampling.tensor_parallel {gpus} splits a model over GPUs, in vLLM, and sampling.engine is "
            f"'{sampling.engine}' on '{devices.sampler}': leave it out"
        )
    if names != ["cuda"] and len(names) % gpus:
        raise ValueError(
            f"devices.sampler names {len(names)} GPUs, which make no engines of sampling.tensor_parallel {gpus}: name "
            f"a multiple of {gpus}, or cuda for the first ones"
        )


def check_counted_budget(cluster: ClusterConfig, judge_parts: Iterable[JudgeConfig]) -> None:
    """Refuses a budget that several processes would each spend."""
    counted = any(part.has_budget for part in judge_parts)
    if counted and cluster.judge.replicas > 1:
        raise ValueError(
            f"cluster.judge.replicas {cluster.judge.replicas}: a judge has a budget, counted by each process "
            "by itself: set the former to 1, or leave the budget out"
        )
