"""Chat templates: conversations rendered and encoded, and refused in one sentence if a template does not take them."""

from collections.abc import Sequence

from pipeline.data.conversations import Message, other_fields
from pipeline.data.special_tokens import Marked, Tokenizer, strings
from pipeline.errors import DataError


def encode_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    of: str,
    add_generation_prompt: bool,
    read_special_tokens: bool = False,
) -> tuple[str, list[int]]:
    """The text of a conversation in a tokenizer's chat template, and its token ids.

    Args:
        of: whose template it is, in words.
        read_special_tokens: take those that messages spell for control tokens, rather than for text.

    Raises:
        DataError: the template refuses the conversation; says at which message, and in the template's words.
    """
    marks = Marked(tokenizer, *([] if read_special_tokens else strings(list(messages))))
    rendered = _render(tokenizer, [marks.mark(message) for message in messages], of, add_generation_prompt)
    # The template writes the special tokens itself: adding them again would double the first.
    return marks.unmark(rendered), marks.encode(rendered, add_special_tokens=False)


def check_used(tokenizer: Tokenizer, messages: Sequence[Message], text: str, *, of: str) -> None:
    """Checks that a template has written all messages and all their fields, given the text that it wrote.

    Conversations that differ only in what a template leaves out would be one prompt.

    Raises:
        DataError: it left something out.
    """

    def left_out(number: int, changed: list[Message]) -> bool:
        try:
            return _write(tokenizer, [*messages[:number], *changed, *messages[number + 1 :]], True) == text
        except Exception:
            return False  # the template looks at it

    for number, message in enumerate(messages):
        content = (message.get("content") or "").strip()
        if content not in text and left_out(number, [{**message, "content": f"{content}?"}]):
            raise DataError(
                f"the chat template of {of} does not use message {number + 1}, of role '{message['role']}': leave it "
                "out, or give a template that writes it"
            )
        for name in other_fields(message):
            without = {field: value for field, value in message.items() if field != name}
            if left_out(number, [without]):
                raise DataError(
                    f"the chat template of {of} does not use the field '{name}' of message {number + 1}, of role "
                    f"'{message['role']}': leave it out, or give a template that writes it"
                )


def _render(tokenizer: Tokenizer, messages: list[Message], of: str, add_generation_prompt: bool) -> str:
    try:
        return _write(tokenizer, messages, add_generation_prompt)
    except Exception as error:  # a template may fail in any way that an expression can
        number = _first_refused(tokenizer, messages, add_generation_prompt, _words(error))
        raise DataError(
            f"the chat template of {of} refuses message {number}, of role '{messages[number - 1]['role']}': "
            f"{_words(error)}"
        ) from error


def _first_refused(tokenizer: Tokenizer, messages: list[Message], add_generation_prompt: bool, words: str) -> int:
    """The number of messages, from 1, with which a template first says these words; all, which it is known to refuse."""
    for count in range(1, len(messages)):
        try:
            _write(tokenizer, messages[:count], add_generation_prompt)
        except Exception as error:
            if _words(error) == words:
                return count
    return len(messages)


def _write(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
    )
    return text


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
