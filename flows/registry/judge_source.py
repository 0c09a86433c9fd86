"""The judge that a command names: a function, a kind of judge, or the judge of a file; and a run's recipe with it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.registry.recipes import apply_change, check_judge_files, parse_recipe, read_yaml
from flows.registry.resume import recipe_of
from flows.registry.shipped_files import find_recipe, shipped_recipes
from pipeline.config.objectives import RANKING_OBJECTIVES
from pipeline.config.preferences import RANKING_RULES
from pipeline.errors import ConfigError
from pipeline.judges.registry import judges, kinds
from pipeline.recipe import Recipe
from storage.log.run import Run

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_IN_FILE = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")
_OF_SINGLE_ANSWERS = {"kind": "length", "name": "not-asked", "limit": 1}
"""A recipe needs a judge of single answers, which one that compares them is not; this one judges nothing."""
_LARGEST_BUDGET = 1_000_000  # of tokens, for an update that there is not
_SECTIONS = ("judge", "preferences")
_FORMS = (
    "give MODULE:FUNCTION, FILE.py:FUNCTION, a kind of judge, or a YAML file with a recipe or a judge; the kinds are "
)


@dataclass(frozen=True)
class NamedJudge:
    """A run's recipe with another judge alone: all that judging and preferences are made of.

    Attributes:
        directory: where the judge's module lies, if it is a file of the user's.
    """

    recipe: Recipe
    directory: Path | None


def with_judge(run: Run, judge: str | None, changes: Sequence[str]) -> NamedJudge:
    """Returns the recipe of a run with the judge that is named in place of all of its own.

    What is beside it, as held-out judges, people and replicas, is left out, and so is the update, which no score and
    no preference depends on.

    Args:
        judge: MODULE:FUNCTION, FILE.py:FUNCTION, a kind, or a file; the run's own training judge if None.
        changes: of fields of ``judge`` and ``preferences``, as ``dotted.key=value``.

    Raises:
        ConfigError: there is no such judge, or it does not go with the run's prompts or with the preferences.
    """
    if other := next((change for change in changes if change.split(".")[0].split("=")[0] not in _SECTIONS), None):
        raise ConfigError(f"--set '{other}': only fields of {' and '.join(_SECTIONS)} matter to what is judged again")
    own = recipe_of(run).model_dump(mode="json")
    content, directory = (own["judge"], None) if judge is None else _named(judge)
    tree: dict[str, Any] = {
        **{name: own[name] for name in ("name", "seed", "policy", "prompts", "sampling", "devices")},
        "judge": dict(content),
        "preferences": {**own["preferences"], "replay": {}},
        "evaluation": {"judges": [_OF_SINGLE_ANSWERS]},
    }
    for change in changes:
        apply_change(tree, change)
    tree["update"] = {"token_budget": _LARGEST_BUDGET}
    if isinstance(tree["preferences"], dict) and tree["preferences"].get("rule") in RANKING_RULES:
        tree["update"]["objective"] = RANKING_OBJECTIVES[0]
    # The prompts and the policy were read when the run began, and may lie elsewhere by now.
    recipe = parse_recipe(tree, (), "the judge, or the rule,", files=False)
    check_judge_files(recipe)
    if late := next((part for part in recipe.judge.parts() if not part.comes_early), None):
        raise ConfigError(
            f"the judge '{late.label}' needs people, or policies of the run, and cannot judge what is stored: name "
            "another one with --judge"
        )
    return NamedJudge(recipe, directory)


def _named(judge: str) -> tuple[Mapping[str, Any], Path | None]:
    if found := _IN_FILE.fullmatch(judge):
        return _of_python_file(Path(found["file"]), found["function"])
    if _FUNCTION.fullmatch(judge):
        return _of_function(judge), None
    known = sorted(kind for config in judges() for kind in kinds(config))
    if judge in known:
        return {"kind": judge}, None
    if not Path(judge).is_file() and judge not in shipped_recipes():
        raise ConfigError(f"'{judge}' is no judge: {_FORMS}{', '.join(known)}")
    return _of_yaml(find_recipe(Path(judge))), None


def _of_python_file(path: Path, function: str) -> tuple[Mapping[str, Any], Path]:
    """Names the function by its module, which Python finds from the file's own directory."""
    if not path.is_file():
        raise ConfigError(f"there is no file '{path}': correct the path")
    if not path.stem.isidentifier():
        raise ConfigError(f"'{path.name}' is no name that Python can import: rename the file, such as my_judges.py")
    directory = path.resolve().parent
    here = Path.cwd()
    if here != directory and any((here / name).exists() for name in (path.stem, path.name)):
        raise ConfigError(
            f"Python would find '{path.stem}' in {here} and not in {directory}: go there, or rename one of the two"
        )
    return _of_function(f"{path.stem}:{function}"), directory


def _of_function(path: str) -> dict[str, Any]:
    """Describes a function as a judge, under its own name."""
    return {"kind": "python", "function": path, "name": path.rpartition(":")[2].strip("_") or None}


def _of_yaml(path: Path) -> Mapping[str, Any]:
    """Reads the judge of a recipe, or a file that describes nothing but a judge."""
    content = read_yaml(path, f"'{path}'")
    judge = content.get("judge", content) if isinstance(content, dict) else None
    if not isinstance(judge, dict) or "kind" not in judge:
        raise ConfigError(f"'{path}' has no judge: begin it with 'kind: ...', or with 'judge:' and its fields")
    # An ensemble's own field 'judge' lies deeper; a noisy judge has one at the top, beside its kind.
    return content if "kind" in content else judge
