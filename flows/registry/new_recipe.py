"""A first recipe for somebody's own model, prompts and judge, with a comment at whatever they will want to change."""

import json
import re
from pathlib import Path

import yaml
from pydantic import ValidationError

from flows.registry.recipes import describe_fault
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
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
# Each round samples K completions for each of its prompts.
sampling:
  prompts_per_round: 256
  candidates: 8         # K
  temperature: 1.0
  max_tokens: 256       # longest completion
  context: 2048         # prompt and completion together
  cache_gib: 4.0        # memory of the engine's KV cache

{judge}
# How scores become preferences: here the best completion of a prompt against its worst.
preferences:
  rule: best_vs_worst
  min_margin: 0.0       # a smaller difference of scores is a tie, and ties are left out
  drop_truncated: true  # leave out completions that were cut at max_tokens

update:
  objective: sigmoid    # the loss of DPO; there are fourteen others
  beta: 0.1             # strength of the pull towards the policy that sampled
  learning_rate: 1.0e-6
  schedule: linear
  epochs: 1
  batch_size: 32        # preferences of an optimizer step
  token_budget: 8192    # tokens that are computed at once; lower it if memory runs out
  # lora: {{rank: 16}}    # train an adapter in place of all weights

# Held-out prompts, which training never sees, and the divergence above which an alarm is raised.
evaluation:
  prompts: 128
  kl_limit: 50.0

# Where each part runs: cpu, cuda, or cuda:1. On one GPU the parts take turns.
devices:
  sampler: {device}
  trainer: {device}
  judge: {device}
"""

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
        judge: MODULE:FUNCTION, the directory or id of a reward model, or a rule such as vader.
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
    if _FUNCTION.fullmatch(judge):
        module, _, function = judge.partition(":")
        file = f"{module.replace('.', '/')}.py"
        return _PYTHON_JUDGE.format(file=file, function=function, path=_text(judge))
    if judge in _RULES:
        return _RULE.format(kind=judge)
    if "/" in judge or judge.startswith((".", "~")):
        return _REWARD_MODEL.format(path=_text(judge))
    raise ConfigError(
        f"--judge '{judge}' is no judge: give MODULE:FUNCTION, a reward model's directory or OWNER/NAME, or one of "
        f"{', '.join(_RULES)}"
    )


def _text(value: str) -> str:
    """Writes a value as YAML does, in quotes, so that nothing in it is taken for syntax."""
    return json.dumps(value, ensure_ascii=False)
