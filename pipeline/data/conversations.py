"""Conversations: messages with a role, mostly a content, and what other fields a chat template may read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.errors import DataError

Message = dict[str, Any]
_COLUMNS = ("role", "content")


def prompt_content(value: object, place: str, *, padded: bool) -> str | list[Message]:
    """Returns a prompt's text, or its messages with all their fields; a field that is null is absent.

    Args:
        place: where it stands, for messages.
        padded: nulls within fields stand for what is absent, too, as in Arrow's structs.

    Raises:
        DataError: neither a text nor a conversation that awaits an answer, or empty.
    """
    if isinstance(value, str) and value:
        return value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not value:
        raise DataError(f"{place} holds {value!r:.80}: give a text or a list of messages, not empty")
    messages = [_message(message, place, padded) for message in value]
    if messages[-1]["role"] == "assistant":
        raise DataError(f"{place} ends with an assistant's message: end it where the answer is to begin")
    return messages


def _message(value: object, place: str, padded: bool) -> Message:
    fields = {name: field for name, field in value.items() if field is not None} if isinstance(value, Mapping) else {}
    # Instead of a content a message may have others, as a call of a tool has.
    content = fields.setdefault("content", None if fields.keys() - {"role"} else False)
    if not isinstance(fields.get("role"), str) or not isinstance(content, str | None):
        raise DataError(f"{place} holds the message {value!r:.80}: give role and content as texts")
    message = {name: fields.pop(name) for name in _COLUMNS}
    rest = {name: _without_nulls(field) if padded else field for name, field in fields.items()}
    try:
        json.dumps(rest, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place} holds a message with a field that JSON cannot hold: {error}") from error
    return message | rest


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(field) for name, field in value.items() if field is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def stored_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Returns messages as the prompts' table holds them: role, content, and JSON of the other fields."""
    return [
        {
            **{name: message.get(name) for name in _COLUMNS},
            "fields": json.dumps(rest, ensure_ascii=False) if (rest := other_fields(message)) else None,
        }
        for message in messages
    ]


def messages_of(stored: Sequence[Mapping[str, Any]] | None) -> list[Message] | None:
    """Reads messages from a row of the prompts' table, whose version 1 has no other fields; None of a text."""
    if stored is None:
        return None
    return [
        {name: message[name] for name in _COLUMNS} | (json.loads(more) if (more := message.get("fields")) else {})
        for message in stored
    ]


def other_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a message beside role and content."""
    return {name: field for name, field in message.items() if name not in _COLUMNS}


def written_out(messages: Sequence[Mapping[str, Any]]) -> str:
    """Writes a conversation for people and judges that read text: each message with its role, and all that it holds."""
    return "\n\n".join(f"[{message['role']}]\n{message_text(message)}" for message in messages)


def question(messages: Sequence[Mapping[str, Any]]) -> str:
    """Says in short what a conversation asks: its last user's message and what follows; "…" for what comes before.

    If none of the messages is a user's, it is the last one. Roles are named if there are several.
    """
    users = [place for place, message in enumerate(messages) if message["role"] == "user"]
    first = users[-1] if users else len(messages) - 1
    shown = messages[first:]
    alone = len(shown) == 1 and shown[0]["role"] == "user"
    texts = [message_text(message) if alone else f"[{message['role']}] {message_text(message)}" for message in shown]
    return ("… " if first else "") + "\n".join(texts)


def message_text(message: Mapping[str, Any]) -> str:
    """Returns the content of a message, followed by its other fields as JSON."""
    more = [f"{name}: {json.dumps(field, ensure_ascii=False)}" for name, field in other_fields(message).items()]
    return "\n".join([*([message["content"]] if message.get("content") is not None else []), *more])
