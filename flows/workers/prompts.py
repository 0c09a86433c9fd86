"""The prompts of a run: checked before anything is paid for, and loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.workers.references import TrialPrompt
from pipeline.config import DatasetPrompts, PretrainedPolicy
from pipeline.data.conversations import written_out
from pipeline.data.prompts import check_conversations, check_lengths, load_prompts, round_slice
from pipeline.data.sources import Prompt, all_prompts, check_count, check_reference_answers
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


def _check_reward_model(prompts: Sequence[Prompt], path: str, revision: str | None) -> None:
    """Checks that the chat template of a reward model takes the conversations, each with an answer."""
    from transformers import AutoTokenizer

    from pipeline.data.chat_template import check_judged

    tokenizer: Any = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    check_judged(tokenizer, prompts, of=f"the reward model '{path}'")
