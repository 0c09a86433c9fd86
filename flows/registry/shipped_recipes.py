"""The recipes that rondo brings along, found by name wherever it is installed."""

from pathlib import Path

from pipeline.errors import ConfigError

_ROOT = Path(__file__).parents[2]
# In a wheel they lie in the package rondo, in a checkout in deploy/; pyproject.toml maps the one to the other.
_FOLDERS = (_ROOT / "rondo" / "recipes", _ROOT / "deploy" / "recipes")


def shipped_recipes() -> dict[str, Path]:
    """Finds the files of the recipes, by name."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {} if folder is None else {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_recipe(source: Path) -> Path:
    """Finds the file of a recipe: a path, or the name of one that rondo brings along.

    Raises:
        ConfigError: there is neither.
    """
    if source.exists():
        return source
    shipped = shipped_recipes()
    if found := shipped.get(str(source)):
        return found
    raise ConfigError(
        f"there is no recipe '{source}': give the path of a YAML file, or one of the names {', '.join(shipped)}"
    )


def described_recipes() -> list[dict[str, str]]:
    """Describes each recipe: its name, what it does in a sentence, and where it lies."""
    import yaml

    contents = {path: yaml.safe_load(path.read_text(encoding="utf-8")) for path in shipped_recipes().values()}
    return [
        {"recipe": path.stem, "description": content["description"], "file": str(path)}
        for path, content in contents.items()
    ]
