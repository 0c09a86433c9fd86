"""Blocks between ``` marks, in which models write code and JSON."""

import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)


def last_block(text: str, languages: tuple[str, ...]) -> str | None:
    """The content of the last closed block of one of these languages ('' where none is named); None without any."""
    blocks = [content for language, content in _FENCE.findall(text) if language.lower() in languages]
    return blocks[-1] if blocks else None
