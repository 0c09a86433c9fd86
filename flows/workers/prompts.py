"""The prompts of a run: checked before anything is paid for, and loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.workers.references import TrialPrompt
from pipeline.config import DatasetPrompts, PretrainedPolicy
from pipeline.data.conversations import written_out
from pipeline.data.prompts import check_conversations, check_lengths, load_prompts, round_slice
from pipeline.data.regression_set import PROMPT_SPLIT, TEXT_SPLIT, read_text, regression_prompts, regression_set
from pipeline.data.sources import Prompt, all_prompts, check_count, check_reference_answers
from pipeline.errors import ConfigError
from pipeline.evaluation.gate_tasks import check_package
from pipeline.gate import least_pairs
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.recipe import Recipe

Say = Callable[[str], None]


def check_source(recipe: Recipe, policy: str | None, say: Say) -> tuple[list[Prompt], pa.Table | None]:
    """Checks prompts as far as they can be before there is a policy: with a pretrained one that is all.

    Args:
        policy: where a pretrained one is loaded from: a directory or a hub id.

    Returns:
        The prompts, for `run_prompts`; and their table, if there is a tokenizer to make it with.

    Raises:
        ConfigError: they cannot be read or are too few, or the policy has no chat template for them.
        DataError: a row that is no prompt, that the chat template of policy or reward model refuses, or that has no
            reference answer for a judge that needs one.
    """
    prompts = _counted(recipe)
    _gate_prompts(recipe)
    for part in recipe.judge_parts:
        if isinstance(part, RewardModelConfig) and not part.without_template:
            _check_reward_model(prompts, part.path, part.revision)
    if isinstance(recipe.policy, PretrainedPolicy):
        return prompts, run_prompts(recipe, policy or recipe.policy.path, recipe.policy.revision, say, prompts)
    check_conversations(prompts, None)
    return prompts, None


def first_prompt(recipe: Recipe) -> TrialPrompt | None:
    """Checks how many prompts there are, and their answers, if that takes neither a library nor a network.

    Returns:
        One of them to try the judges on; None if they are of a dataset, which `check_source` reads.

    Raises:
        ConfigError, DataError: as for `check_source`.
    """
    return None if isinstance(recipe.prompts, DatasetPrompts) else trial_of(_counted(recipe)[0])


def _counted(recipe: Recipe) -> list[Prompt]:
    prompts = all_prompts(recipe.prompts, recipe.evaluation.prompts, recipe.seed)
    check_count(len(prompts), recipe.evaluation.prompts, recipe.sampling.prompts_per_round)
    if (judge := next((part.kind for part in recipe.judge_parts if part.needs_reference), None)) is not None:
        check_reference_answers(prompts, judge)
    return prompts


def trial_of(prompt: Prompt) -> TrialPrompt:
    """Returns what judges are tried on."""
    messages = None if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]
    text = prompt.content if isinstance(prompt.content, str) else written_out(prompt.content)
    return TrialPrompt(prompt.prompt_id, text, messages, prompt.reference_answer)


def run_prompts(
    recipe: Recipe, policy: str | Path, revision: str | None, say: Say, prompts: Sequence[Prompt] | None = None
) -> pa.Table:
    """Loads the prompts of a run, tokenised, and checks them against the context of the policy.

    Args:
        policy: directory or hub id of its checkpoint.
        prompts: what `check_source` gave; they are read or generated if it is None.

    Raises:
        ConfigError, DataError: as for `load_prompts` and `check_lengths`.
    """
    from pipeline.model.policy import load_tokenizer, max_context

    tokenizer = load_tokenizer(policy, revision=revision)
    table = load_prompts(recipe.prompts, recipe.evaluation.prompts, recipe.seed, tokenizer, say, prompts)
    context = min(max_context(policy, revision=revision), recipe.sampling.context or 2**62)
    check_lengths(table, recipe.sampling.max_tokens, context)
    round_slice(table, 1, recipe.sampling.prompts_per_round, recipe.seed)
    return table


def gate_prompts(recipe: Recipe, policy: Path) -> pa.Table:
    """Loads what the gate measures policies on, tokenised, and checks it against the context of the policy.

    Raises:
        ConfigError, DataError: as for `regression_set`; or there is too little of it for the test to tell a loss.
        PromptTooLongError: a prompt leaves no room for an answer.
    """
    from pipeline.model.policy import load_tokenizer, max_context

    gate = recipe.gate
    assert gate is not None, "the recipe has a gate"
    prompts, context = _gate_prompts(recipe), min(max_context(policy), recipe.sampling.context or 2**62)
    if gate.text is not None and gate.window > context:
        raise ConfigError(f"gate.window {gate.window} is more than the policy's context of {context}: lower it")
    text = None if gate.text is None else read_text(gate.text, gate.text_tokens)
    tokenizer = load_tokenizer(policy)
    table = regression_set(prompts, gate.prompts, text, tokenizer, gate.text_tokens, gate.window)
    asked = table.filter(pc.field("split") == PROMPT_SPLIT)
    check_lengths(asked, recipe.gate_tokens, context)
    least, splits = least_pairs(gate.level(recipe.rounds)), {PROMPT_SPLIT: gate.prompts, TEXT_SPLIT: gate.text}
    for split in (split for split, given in splits.items() if given is not None):
        if (count := sum(found == split for found in table["split"].to_pylist())) < least:
            what = "prompts of the regression set" if split == PROMPT_SPLIT else f"windows of gate.text '{gate.text}'"
            raise ConfigError(
                f"there are {count} {what}, and a gate over {recipe.rounds} rounds takes at least {least} to tell a "
                "loss: give more, or raise gate.error_rate"
            )
    return table


def check_gate(recipe: Recipe) -> None:
    """Checks what the gate measures policies on, if that takes neither a library nor a network.

    Raises:
        ConfigError, DataError: it cannot be read, or a judge of the gate lacks reference answers, or its tasks lack
            their package.
    """
    gate = recipe.gate
    if gate is not None and gate.tasks:
        check_package()
    if gate is None or isinstance(gate.prompts, DatasetPrompts):
        return
    _gate_prompts(recipe)
    if gate.text is not None:
        read_text(gate.text, 1)


def _gate_prompts(recipe: Recipe) -> list[Prompt]:
    """Reads the prompts of the gate, if it has some, and checks that its judges find their reference answers."""
    gate = recipe.gate
    if gate is None or gate.prompts is None:
        return []
    prompts = regression_prompts(gate.prompts, gate.count, recipe.seed)
    if not isinstance(recipe.policy, PretrainedPolicy):
        check_conversations(prompts, None)
    needing = (part.kind for judge in gate.judges for part in judge.parts() if part.needs_reference)
    if (judge := next(needing, None)) is not None:
        check_reference_answers(prompts, judge)
    return prompts


def _check_reward_model(prompts: Sequence[Prompt], path: str, revision: str | None) -> None:
    """Checks that the chat template of a reward model takes the conversations, each with an answer."""
    from transformers import AutoTokenizer

    from pipeline.data.chat_template import check_judged

    tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    check_judged(tokenizer, prompts, of=f"the reward model '{path}'")
