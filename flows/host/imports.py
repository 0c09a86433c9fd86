"""What a command keeps from being imported, because it takes longer than the command itself."""

import os
import sys
from types import ModuleType
from typing import Any


class _WithoutPandas:
    """Says that there is no pandas."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is left out here", name=fullname)


def spare_pandas() -> None:
    """Lets pyarrow find that there is no pandas, if nothing has imported it yet; for processes without data frames.

    pyarrow looks for it once, as soon as it makes an array of Python's values, and that takes longer than most
    questions to a run. If it is asked for a data frame later, it looks again.
    """
    if "pandas" in sys.modules:
        return
    finder = _WithoutPandas()
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow as pa

        pa.array([0])
    finally:
        sys.meta_path.remove(finder)


def spare_help_parsers() -> None:
    """Imports typer's help pages without the parser of Markdown and the printer of tracebacks, which ours never use.

    They take longer than the page itself. Whoever imports them later gets the real ones.
    """
    unused = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}
    spared = {module: ModuleType(module) for module in unused if module not in sys.modules}
    for module, empty in spared.items():
        setattr(empty, unused[module], type(unused[module], (), {}))
    sys.modules.update(spared)
    try:
        import typer.rich_utils  # noqa: F401  typer takes it from here
    finally:
        for module in spared:
            del sys.modules[module]


def spare_plugins() -> None:
    """Keeps pydantic from looking for plugins, for which it reads what every installed package says of itself."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
