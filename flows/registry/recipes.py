"""Recipes on disk: read YAML, apply changes from the command line, and say what is wrong in one sentence a fault."""

import difflib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flows.registry.shipped_files import find_recipe
from pipeline.agreement.preferences import unlike_samples
from pipeline.config import DatasetPrompts, FilePrompts, PretrainedPolicy, Prompts, SamplingConfig
from pipeline.errors import ConfigError
from pipeline.gate import is_task_file
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.model.gguf_files import find_gguf
from pipeline.recipe import Recipe, models_in

NOT_COMPARED = ("rounds", "description")
"""What may differ between a recipe and the run that was started with it."""
RENAMED = {f"sampling.{old}": f"sampling.{new}" for old, new in SamplingConfig.OLD_NAMES.items()}
"""Fields by their names in version 0.1.0, which a recipe or a change may still use."""
_OTHER_NAME = RENAMED | {new: old for old, new in RENAMED.items()}


def load_recipe(path: Path, changes: Sequence[str] = (), *, files: bool = True) -> Recipe:
    """Reads the recipe of a file, with ``dotted.key=value`` changes applied; values are read as YAML.

    Args:
        path: the file, or the name of a recipe that rondo brings along.
        files: check that what the recipe names is on this machine, which it need not be before a run begins.

    Raises:
        ConfigError: the file, a change or a field is wrong; the message names each fault, its value and the remedy.
    """
    path = find_recipe(path)
    content = read_yaml(path, f"the recipe '{path}'")
    if not isinstance(content, dict):
        raise ConfigError(f"the recipe '{path}' is not a mapping of fields to values: begin it with 'name: ...'")
    return parse_recipe(content, changes, str(path), files=files)


def read_yaml(path: Path, name: str) -> Any:
    """Returns what a YAML file holds.

    Args:
        name: what the file is called in an error.

    Raises:
        ConfigError: it cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {' '.join(str(error).split())}") from error


def parse_recipe(
    content: Mapping[str, Any], changes: Sequence[str] = (), source: str = "the recipe", *, files: bool = True
) -> Recipe:
    """Makes a recipe of plain data; see ``load_recipe``."""
    tree = _copy(content)
    for change in changes:
        apply_change(tree, change)
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        faults = "\n  ".join(describe_fault(fault) for fault in error.errors())
        raise ConfigError(f"{source} cannot be run:\n  {faults}") from None
    if files:
        check_files(recipe)
    return recipe


def check_new_run(recipe: Recipe) -> None:
    """Refuses what a new run may not do; runs that version 0.1.0 began with it still go on with it.

    Raises:
        ConfigError: exploration is asked for, whose mean is over samples of the reference, and the completions are not.
    """
    update = recipe.update
    if not update.exploration_weight:
        return
    if found := unlike_samples(recipe.preferences, recipe.sampling, update):
        what, value = found
        raise ConfigError(
            f"update.exploration_weight {update.exploration_weight:g} is of a mean over completions that the reference "
            f"has sampled, and {what}: set it to {value}, or set update.exploration_weight to 0"
        )


def check_files(recipe: Recipe) -> None:
    """Checks that the local files that a recipe names are there.

    Raises:
        ConfigError: one of them is not there, or has no revisions.
    """
    _check_prompts("prompts", recipe.prompts)
    if recipe.gate is not None:
        _check_prompts("gate.prompts", recipe.gate.prompts)
        if recipe.gate.text is not None and not Path(recipe.gate.text).is_file():
            raise ConfigError(f"gate.text: there is no file '{recipe.gate.text}': correct the path")
        for task in filter(is_task_file, recipe.gate.tasks):
            if not Path(task).is_file():
                raise ConfigError(f"gate.tasks: there is no file '{task}': correct the path")
    check_judge_files(recipe)
    if isinstance(recipe.policy, PretrainedPolicy):
        _check_policy(recipe.policy)


def check_judge_files(recipe: Recipe) -> None:
    """Checks that the local files that the judges of a recipe need are there, as ``check_files`` does for all."""
    for part in recipe.all_judge_parts:
        if isinstance(part, RewardModelConfig):
            _check_model("judge.path", part.path)
            _check_revision("judge", part.path, part.revision)


def _check_prompts(field: str, prompts: Prompts | None) -> None:
    if isinstance(prompts, FilePrompts) and not (path := Path(prompts.path)).is_file():
        found = f"'{path}' is a directory, and no file" if path.is_dir() else f"there is no file '{path}'"
        raise ConfigError(f"{field}.path: {found}: correct the path")
    # Anything that does not look like a path may be a name on the data hub.
    named = prompts.name if isinstance(prompts, DatasetPrompts) else ""
    if named.startswith((".", "/", "~")) and not Path(named).is_dir():
        raise ConfigError(f"{field}.name: there is no directory '{named}': correct the path")


def _check_policy(policy: PretrainedPolicy) -> None:
    file = find_gguf(policy.path)
    if file is None:
        _check_model("policy.path", policy.path)
    _check_revision("policy", policy.path, policy.revision, file)


def _check_revision(part: str, path: str, revision: str | None, file: Path | None = None) -> None:
    """Refuses a revision of what lies on this machine, which has none: it would be ignored."""
    there = f"file {file}" if file else f"directory {Path(path).absolute()}" if Path(path).is_dir() else None
    if revision is not None and there:
        raise ConfigError(
            f"{part}.revision '{revision}' is of a model on the hub, and {part}.path '{path}' means the {there}: leave "
            f"{part}.revision out"
        )


def _check_model(field: str, path: str) -> None:
    # A hub id has the form owner/name; anything else can only be a directory.
    local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if local and not (Path(path) / "config.json").is_file():
        raise ConfigError(f"{field}: '{path}' is no directory with a config.json: give a checkpoint, or owner/name")


def differences(recipe: Recipe, other: Recipe) -> list[str]:
    """Lists the fields in which two recipes would give different runs, as ``field: a -> b``."""
    return [f"{key}: {before} -> {after}" for key, before, after in changed_fields(recipe, other)]


def changed_fields(recipe: Recipe, other: Recipe) -> list[tuple[str, Any, Any]]:
    """Lists the fields in which two recipes would give different runs, by today's names, with both values."""
    flat, flat_other = _comparable(recipe), _comparable(other)
    return [
        (key, flat.get(key), flat_other.get(key))
        for key in sorted(flat.keys() | flat_other.keys())
        if flat.get(key) != flat_other.get(key) and key not in NOT_COMPARED
    ]


def _comparable(recipe: Recipe) -> dict[str, Any]:
    """Returns all fields by today's names, with values as they are hashed: an old name makes no difference."""
    hashed = {RENAMED.get(key, key): value for key, value in flatten(recipe.hashed()).items()}
    return flatten(recipe.model_dump(mode="json")) | hashed


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def apply_change(tree: dict[str, Any], change: str) -> None:
    """Applies ``dotted.key=value`` to plain data, in place; raises ConfigError if it has not that form."""
    key, equals, text = change.partition("=")
    names = key.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"--set '{change}' has not the form dotted.key=value, such as update.beta=0.2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set '{change}': the value is not YAML: {' '.join(str(error).split())}") from error
    for name in names[:-1]:
        if tree.get(name) is None:  # a run's recorded recipe has None for what it was not given
            tree[name] = {}
        inner = tree[name]
        if not isinstance(inner, dict):
            raise ConfigError(f"--set '{change}': '{name}' is a value and has no fields below it")
        tree = inner
    if key.strip() in _OTHER_NAME:
        tree.pop(_OTHER_NAME[key.strip()].rpartition(".")[2], None)
    tree[names[-1]] = value


def describe_fault(fault: ErrorDetails) -> str:
    """Says a fault as ``field: what is wrong with the value: remedy``."""
    location, owners = _locate(fault["loc"])
    value = fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            fields = [name for owner in owners for name in owner.model_fields]
            close = difflib.get_close_matches(location.rpartition(".")[2], fields, n=1)
            remedy = f"did you mean '{close[0]}'?" if close else f"its neighbours are {', '.join(fields)}"
            return f"{location}: there is no such field (its value is {value!r}): {remedy}"
        case "missing":
            return f"{location}: this field is missing: give it a value"
        case "union_tag_invalid":
            tag = fault["ctx"]
            name = tag["discriminator"].strip("'")
            return f"{location}.{name}: '{tag['tag']}' does not exist: choose one of {tag['expected_tags']}"
        case "union_tag_not_found":
            name = fault["ctx"]["discriminator"].strip("'")
            return f"{location}.{name}: this field is missing: it says what kind of {location} is meant"
        case "old_name":
            return f"{location}.{fault['msg']}"
        case "value_error":
            return fault["msg"].removeprefix("Value error, ")
    message = fault["msg"][0].lower() + fault["msg"][1:]
    name = location.rpartition(".")[2]
    field = next((owner.model_fields[name] for owner in owners if name in owner.model_fields), None)
    meaning = field.description if field else None
    if fault["type"] == "string_pattern_mismatch" and field and field.examples:
        message = f"give it a form such as {', '.join(map(str, field.examples))}"
    return f"{location}: {value!r} is not allowed: {message}" + (f" ({meaning})" if meaning else "")


def _locate(loc: Sequence[int | str]) -> tuple[str, list[type[BaseModel]]]:
    """Returns a place's dotted name, without tags that choose among kinds, and the models that its last part is in."""
    names: list[str] = []
    models: list[type[BaseModel]] = [Recipe]
    for position, part in enumerate(loc):
        known = [model for model in models if part in model.model_fields]
        last = position == len(loc) - 1
        if isinstance(part, int) or known or last:
            names.append(str(part))
        if known and not last:
            models = [inner for model in known for inner in models_in(model.model_fields[str(part)].annotation)]
        elif not last and not isinstance(part, int):
            # A tag such as 'warm_start' narrows the models to those that carry it.
            models = [model for model in models if part in _tags(model)]
    return ".".join(names), models


def _tags(model: type[BaseModel]) -> Iterator[Any]:
    for field in model.model_fields.values():
        if typing.get_origin(field.annotation) is typing.Literal:
            yield from typing.get_args(field.annotation)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested fields by their dotted names."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value for name, part in tree.items() for key, value in flatten(part, f"{prefix}.{name}".strip(".")).items()
    }
