"""The address of each page and filter, which can be shared; and the files that stand for some of them in an export."""

from collections.abc import Mapping
from typing import Protocol
from urllib.parse import quote, urlencode


class Addresses(Protocol):
    """Gives the address of a page; None if there is no such page, as in an export that leaves it out."""

    def __call__(self, *parts: object, **query: object) -> str | None: ...


def served(*parts: object, **query: object) -> str:
    """Returns the address of a page on the server.

    Args:
        parts: such as ``"run", "demo", "round", 3``.
        query: the filter; what is None or empty is left out, and a list gives a name several values.
    """
    path = "/" + "/".join(quote(str(part), safe="") for part in parts)
    pairs = [
        (name, value)
        for name, values in query.items()
        for value in (values if isinstance(values, list | tuple) else [values])
        if value is not None and value != ""
    ]
    return f"{path}?{urlencode(pairs)}" if pairs else path


_WITHIN = ("candidate",)
"""Parts of a filter that only say what to look at within a page."""


class Exported:
    """Addresses within an export: of the pages that are there, as files beside each other.

    Args:
        files: the file of each page, by the address that it has on the server.
    """

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def __call__(self, *parts: object, **query: object) -> str | None:
        whole = {name: value for name, value in query.items() if name not in _WITHIN}
        return self._files.get(served(*parts, **query)) or self._files.get(served(*parts, **whole))
