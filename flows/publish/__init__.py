"""What goes to other trainers and to the Hub."""

from enum import StrEnum


class What(StrEnum):
    """What is published of a round."""

    model = "model"
    dataset = "dataset"
    both = "both"


class Style(StrEnum):
    """How an export writes prompts and answers: as lists of messages, or as texts."""

    messages = "messages"
    text = "text"
