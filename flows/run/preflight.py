"""What is looked at in the command's own process before anything heavy starts, the cheapest first.

Each check takes well under a second and imports no torch; but for the prompts of large files, which take 0.1 s of
processor time for 10,000 prompts of 500 bytes, 1.4 s for 100,000 and 10 s for 500,000. Judges that a recipe brings
along are loaded beside it (`flows.run.judge_check`). Their call, and what needs a tokenizer, follow in the workers: see
`flows.run.execute`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.analysis.forecast import forecast, with_local_config
from flows.host.allotment import Allotment
from flows.registry.first_facts import sampled_in
from flows.workers.initial_policy import DEQUANTISED
from flows.workers.precision import Agreement
from flows.workers.prompts import check_gate, first_prompt
from flows.workers.references import TrialPrompt
from pipeline.config import PretrainedPolicy
from pipeline.config.sampling import FLOAT32_TOLERANCE, VLLM_CPU_HEAD_WIDTHS
from pipeline.errors import ConfigError
from pipeline.model.gguf_files import find_gguf
from pipeline.model.model_config import CONTEXT_NAMES
from pipeline.recipe import Recipe
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.checkpoints import has_shared


def preflight(store: Store, run: Run, recipe: Recipe, goal: int, say: Callable[[str], None]) -> TrialPrompt | None:
    """Checks precision, model configuration, disk and prompts, and says what the run will take.

    Returns:
        A prompt to try the judges on; None if the store or a fork's parent has them, or if they are a dataset's, which
        takes a library to read.

    Raises:
        ConfigError, DataError: the recipe cannot be run here.
    """
    allotment = Allotment.of(recipe, sampled_in=sampled_in(store, run))
    for notice in (_slow_update(recipe), _precision(allotment.recipe(recipe, "sampler"))):
        if notice:
            say(notice)
    parent = run.header.get("parent")  # whose policy and prompts a fork has, before it names them as its own
    done = parent["round"] if parent else -1
    if parent is None and not run.files(0, "checkpoint"):
        _check_model(recipe)
    done = max(done, len(run.rounds()) - 1)
    for line in forecast(recipe, done, goal, store.local_root, made=_made(store, run, recipe, done + 1)):
        say(line)
    if len(run.finished) <= (parent["round"] + 1 if parent else 0):  # a fork may ask for another gate than its parent
        check_gate(recipe)
    return None if parent or run.files(0, "prompts") else first_prompt(recipe)


def _made(store: Store, run: Run, recipe: Recipe, number: int) -> bool:
    """Says whether a round's checkpoint need not be written, as it is there, or may be.

    What was made of a GGUF file is shared: another run may have left it.
    """
    if run.files(number, "checkpoint"):
        return True
    dequantised = number == 0 and isinstance(recipe.policy, PretrainedPolicy) and find_gguf(recipe.policy.path)
    return bool(dequantised) and has_shared(store, DEQUANTISED)


def _slow_update(recipe: Recipe) -> str | None:
    """Says if a GPU is to compute in float32, for which it has far fewer operations a second."""
    devices, update = recipe.devices, recipe.update
    if devices.trainer == "cpu" or update.precision == "bfloat16":
        return None
    return (
        f"update.precision is float32 and devices.trainer '{devices.trainer}': its passes take about ten times as long "
        "as in bfloat16, on most GPUs. Leave update.precision out unless you compare with a run in float32"
    )


def _precision(recipe: Recipe) -> str | None:
    """Says if the two engines are likely to differ by more than the recipe allows: they do in bfloat16, on any weights.

    It is no error: whether they do is measured, and a small model may keep to it.
    """
    agreed = Agreement.of(recipe)
    if agreed.exact or agreed.tolerance > FLOAT32_TOLERANCE:
        return None
    return (
        f"sampling.handover_tolerance {agreed.tolerance:g} is what float32 keeps to; the sampler is {agreed.sampler}, "
        f"the trainer {agreed.trainer}, and the first weight sync may stop the run: leave it empty"
    )


def _check_model(recipe: Recipe) -> None:
    """Checks what the policy's ``config.json`` says, if it lies on this machine; the weights are not looked at.

    Raises:
        ConfigError: it is no configuration of a model, its context is too short, or vLLM has no kernel for its heads.
    """
    policy = with_local_config(recipe.policy)
    path = Path(policy.path) / "config.json" if isinstance(policy, PretrainedPolicy) else None
    if path is None or not path.is_file():
        return
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"policy.path: {path} is not JSON ({error}): fetch the model anew") from error
    if not isinstance(content, dict):
        raise ConfigError(f"policy.path: {path} is no mapping of fields to values: fetch the model anew")
    text = content["text_config"] if isinstance(content.get("text_config"), dict) else content
    _check_context(recipe, text)
    _check_heads(recipe, text)


def _check_context(recipe: Recipe, text: dict[str, Any]) -> None:
    sampling = recipe.sampling
    name, limit = next(((name, text[name]) for name in CONTEXT_NAMES if isinstance(text.get(name), int)), ("", None))
    if limit is None:
        return
    if sampling.context is not None and sampling.context > limit:
        raise ConfigError(
            f"sampling.context {sampling.context} is more than the model's own {limit} ({name}): lower it, or leave it "
            "empty"
        )
    if sampling.max_tokens >= limit:
        raise ConfigError(
            f"sampling.max_tokens {sampling.max_tokens} leaves no room for a prompt in the model's {limit} tokens "
            f"({name}): lower it"
        )


def _check_heads(recipe: Recipe, text: dict[str, Any]) -> None:
    if recipe.sampling.engine != "vllm" or not recipe.devices.samples_on_cpu:
        return
    hidden, heads = text.get("hidden_size"), text.get("num_attention_heads")
    width = text.get("head_dim") or (hidden // heads if isinstance(hidden, int) and heads else None)
    if width is not None and width not in VLLM_CPU_HEAD_WIDTHS:
        raise ConfigError(
            f"policy.path: the attention heads of '{getattr(recipe.policy, 'path', '')}' are {width} wide, and vLLM on "
            f"a CPU takes {', '.join(map(str, VLLM_CPU_HEAD_WIDTHS))}: set sampling.engine to transformers"
        )
