"""The recipes and experiments that rondo brings along, found by name wherever it is installed."""

from pathlib import Path

from pipeline.errors import ConfigError

_ROOT = Path(__file__).parents[2]


def shipped_folder(kind: str) -> Path:
    """Returns where rondo's own ``recipes`` or ``experiments`` lie.

    In a wheel that is the package rondo, in a checkout deploy/; pyproject.toml maps the one to the other.
    """
    installed = _ROOT / "rondo" / kind
    return installed if installed.is_dir() else _ROOT / "deploy" / kind


def shipped_recipes() -> dict[str, Path]:
    """Finds the files of the recipes, by name."""
    return _shipped("recipes")


def find_recipe(source: Path) -> Path:
    """Finds the file of a recipe: a path, or the name of one that rondo brings along.

    Raises:
        ConfigError: there is neither.
    """
    return _find(source, "recipe")


def find_experiment(source: Path) -> Path:
    """Finds the file of an experiment, as `find_recipe` does that of a recipe."""
    return _find(source, "experiment")


def described_recipes() -> list[dict[str, str]]:
    """Describes each recipe: its name, what it does in a sentence, and where it lies."""
    import yaml

    contents = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in shipped_recipes().values()}
    return [
        {"recipe": path.stem, "description": content["description"], "file": str(path)}
        for path, content in contents.items()
    ]


def _shipped(kind: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted(shipped_folder(kind).glob("*.yaml"))}


def _find(source: Path, what: str) -> Path:
    if source.exists() and not source.is_dir():
        return source
    shipped = _shipped(f"{what}s")
    if found := shipped.get(str(source)):
        return found
    raise ConfigError(
        f"there is no {what} '{source}': give the path of a YAML file, or one of the names {', '.join(shipped)}"
    )
