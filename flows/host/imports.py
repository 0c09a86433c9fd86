"""What a command keeps from being imported, because it takes longer than the command itself."""

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class _WithoutPandas(MetaPathFinder):
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
