"""A first recipe for somebody's own model, prompts and judge, with a comment at whatever they will want to change."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from flows.registry.recipes import describe_fault
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_IN_FILE = re.compile(r"(?:\./)?(?P<module>[A-Za-z_]\w*)\.py:(?P<function>[A-Za-z_]\w*)")
_FILE_KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
_RULES = ("vader", "math", "exact_answer")
_NEED_REFERENCES = ("math", "exact_answer")

_TEMPLATE = """\
# {name}: rounds of sampling, judging and updating. Every field, with its range and default: docs/recipes.md.
#
#   rondo plan {name}.yaml                 what a round takes, before anything is started
#   rondo run {name}.yaml --rounds 1       a first round; 'rondo resume {name} --rounds 5' adds more
#   rondo run {name}.yaml --name other --set update.beta=0.2
name: {name}
description: {description}
seed: 0
rounds: 5
mode: phased            # streaming: sampling, judging and updating overlap; the result is the same

# The policy that the rounds start from: a local directory in the Hub's format, or an id on the Hub.
policy:
  source: pretrained
  path: {model}

{prompts}
# Each round samples K completions for each of its prompts. Round 0 says how many of them score at all: if it is none
# or all, there is nothing to learn, and the run says what to do.
sampling:
  prompts_per_round: {prompts_per_round}
  candidates: {candidates}         # K
  temperature: 1.0      # lower, and the K completions are alike
  max_tokens: {max_tokens:<10}# longest completion; an alarm names the share that is cut
  shard_prompts: {shard_prompts:<7}# an eighth of a round: what is lost at most if the run is killed
  context: {context:<13}# prompt and completion together
  cache_gib: {cache_gib}        # memory of the engine's KV cache

{judge}
# How scores become preferences: here the best completion of a prompt against its worst.
preferences:
  rule: best_vs_worst
  min_margin: 0.0       # a smaller difference of scores is a tie, and ties are left out
  drop_truncated: true  # leave out completions that were cut at max_tokens

update:
  objective: sigmoid    # the loss of DPO; there are fourteen others
  beta: 0.1             # strength of the pull towards the policy that sampled
  lora: {{rank: 16}}      # train an adapter: little memory, small checkpoints; leave it out for all weights
  learning_rate: 2.0e-4 # of an adapter; all weights take 1.0e-6 to 5.0e-5
  schedule: linear
  warmup_steps: {warmup_steps}
  epochs: 1
  batch_size: 8         # preferences of an optimizer step, so that a round has some eight steps or more
  token_budget: {token_budget:<8}# tokens that are computed at once; lower it if memory runs out
  stop_at_kl: 5.0       # end a round's steps once it is so far from the policy that sampled, in nats per sequence
{precision}
# Held-out prompts, which training never sees, answered at temperature 1 as the KL needs it, and once more as one would
# serve. Together they are at most half as many answers as a round samples.
evaluation:
  prompts: {evaluation}
  serving: {{temperature: 0.0}}   # the likeliest answer; leave it out to save that time
  kl_limit: 15.0        # an alarm above this KL to the initial policy, in nats per sequence

# Where each part runs: cpu, cuda, or cuda:1. On one GPU the parts take turns.
devices:
  sampler: {device}
  trainer: {device}
  judge: {device}
"""

_SIZES: dict[str, dict[str, Any]] = {
    # A model of some hundred million parameters has a round of minutes on two cores, one of some billions on one GPU.
    "cpu": {
        "prompts_per_round": 64, "candidates": 4, "max_tokens": 96, "shard_prompts": 8, "context": 1024,
        "cache_gib": 1.0, "warmup_steps": 2, "token_budget": 2048, "evaluation": 64, "precision": "",
    },
    "cuda": {
        "prompts_per_round": 256, "candidates": 8, "max_tokens": 256, "shard_prompts": 32, "context": 2048,
        "cache_gib": 4.0, "warmup_steps": 4, "token_budget": 8192, "evaluation": 256,
        "precision": "  precision: bfloat16   # of forward passes and of vLLM; master weights are float32\n",
    },
}  # fmt: skip

_PYTHON_JUDGE = """\
# A function of yours, in a module that Python finds from where rondo is started. For example in {file}:
#
#     import rondo
#
#     @rondo.judge
#     def {function}(*, prompt, answer, **_):     # also: messages, reference_answer, finish_reason
#         return float(len(answer) < 200)         # higher is better
judge:
  kind: python
  function: {path}
  # options: {{weight: 2}}                         # further keywords of the call
"""
_REWARD_MODEL = """\
# A sequence classifier with one output: a local directory, or an id on the Hub. 'rondo train-judge' makes one.
judge:
  kind: reward_model
  path: {path}
"""
_RULE = """\
# A judge by a rule: it needs no model. docs/judges.md lists the others.
judge:
  kind: {kind}
"""
_FILE = """\
# A file with a column of texts, or of conversations as lists of {{role, content}}.
prompts:
  source: {kind}
  path: {path}
  column: prompt
"""
_DATASET = """\
# A dataset on the Hub, or a local directory: a column of texts, or of conversations as lists of {{role, content}}.
prompts:
  source: datasets
  name: {path}
  split: train
  column: prompt
"""


def new_recipe(name: str, model: str, prompts: str, judge: str, device: str) -> str:
    """Writes a recipe with comments, as YAML.

    Args:
        name: of the recipe and of its runs.
        model: a directory, or an id on the Hub.
        prompts: a JSONL or Parquet file, or a dataset.
        judge: MODULE:FUNCTION, FILE.py:FUNCTION, the directory or id of a reward model, or a rule such as vader.
        device: cpu or cuda.

    Raises:
        ConfigError: the judge is none of these.
    """
    return _TEMPLATE.format(
        name=name,
        description=_text(f"{model} learns from the judge {judge}."),
        model=_text(model),
        prompts=_prompts(prompts) + _reference(judge),
        judge=_judge(judge),
        device=device,
        **_SIZES["cpu" if device == "cpu" else "cuda"],
    )


def write_new_recipe(path: Path, name: str, model: str, prompts: str, judge: str, device: str) -> None:
    """Writes a recipe with comments to a new file; see :func:`new_recipe`.

    Raises:
        ConfigError: the file is there, or the text would not be a valid recipe, as with a space in the name.
    """
    text = new_recipe(name, model, prompts, judge, device)
    try:
        Recipe.model_validate(yaml.safe_load(text))
    except ValidationError as error:
        faults = "; ".join(describe_fault(fault) for fault in error.errors())
        raise ConfigError(f"'{name}' cannot be made a recipe: {faults}") from None
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"'{path}' is already there: choose another name, or remove it") from None


def _prompts(prompts: str) -> str:
    kind = _FILE_KINDS.get(Path(prompts).suffix)
    return _DATASET.format(path=_text(prompts)) if kind is None else _FILE.format(kind=kind, path=_text(prompts))


def _reference(judge: str) -> str:
    return "  reference_column: answer   # the right answers, which the judge compares with\n" * (
        judge in _NEED_REFERENCES
    )


def _judge(judge: str) -> str:
    if found := _IN_FILE.fullmatch(judge):  # a run imports it from the directory where rondo is started
        judge = f"{found['module']}:{found['function']}"
    elif ".py:" in judge:
        raise ConfigError(f"--judge '{judge}': go to that file's directory, and give its name alone")
    if _FUNCTION.fullmatch(judge):
        module, _, function = judge.partition(":")
        file = f"{module.replace('.', '/')}.py"
        return _PYTHON_JUDGE.format(file=file, function=function, path=_text(judge))
    if judge in _RULES:
        return _RULE.format(kind=judge)
    if "/" in judge or judge.startswith((".", "~")):
        return _REWARD_MODEL.format(path=_text(judge))
    raise ConfigError(
        f"--judge '{judge}' is no judge: give MODULE:FUNCTION, FILE.py:FUNCTION, a reward model's directory or "
        f"OWNER/NAME, or one of {', '.join(_RULES)}"
    )


def _text(value: str) -> str:
    """Writes a value as YAML does, in quotes, so that nothing in it is taken for syntax."""
    return json.dumps(value, ensure_ascii=False)
