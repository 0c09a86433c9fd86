"""How an export writes prompts and answers."""

from enum import StrEnum


class Style(StrEnum):
    """Lists of messages, or texts."""

    messages = "messages"
    text = "text"
