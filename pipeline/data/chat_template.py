"""Chat templates: conversations rendered and encoded, and refused in one sentence if a template does not take them."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.data.conversations import Message, other_fields
from pipeline.data.sources import Prompt
from pipeline.data.special_tokens import Marked, Tokenizer, strings
from pipeline.errors import DataError


def encode_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    of: str,
    add_generation_prompt: bool,
    read_special_tokens: bool = False,
) -> tuple[str, list[int]]:
    """Encodes a conversation in a tokenizer's chat template: returns its text and its token ids.

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


def check_judged(tokenizer: Tokenizer, prompts: Sequence[Prompt], *, of: str) -> None:
    """Checks that a judge's chat template takes the prompts, each with an answer; one of each order of roles is tried.

    Raises:
        DataError: it refuses one, or there are conversations and it has no template; names the row.
    """
    seen = set()
    for prompt in prompts:
        text = isinstance(prompt.content, str)
        messages = [{"role": "user", "content": prompt.content}] if isinstance(prompt.content, str) else prompt.content
        shape = tuple((*message, message["role"], bool(message["content"])) for message in messages)
        if shape in seen:
            continue
        seen.add(shape)
        try:
            if tokenizer.chat_template:
                answered = [*messages, {"role": "assistant", "content": "An answer."}]
                encode_conversation(tokenizer, answered, of=of, add_generation_prompt=False)
            elif not text:
                raise DataError(
                    f"a conversation, and {of} has no chat template: add one to its tokenizer's directory, or, if the "
                    "model reads plain text in the policy's own template, set judge.without_template"
                )
        except DataError as error:
            raise DataError(f"{prompt.place}: {error}") from error


def encode_joined(
    tokenizer: Tokenizer,
    prompt_text: str,
    messages: Sequence[Mapping[str, Any]] | None,
    answer: str,
    *,
    read_special_tokens: bool = False,
) -> list[int]:
    """Encodes a prompt, as the policy reads it, and an answer that goes on from it, without a template.

    Special tokens that the answer spells are ordinary text, and so are those that the prompt spells. Of a conversation
    this holds for what its messages hold: the rest is the policy's template.

    Args:
        messages: the conversation that the prompt's text was made from, if it was.
        read_special_tokens: take those that the prompt spells for control tokens.
    """
    if read_special_tokens:
        spelled = []
    elif messages is None:
        spelled = [prompt_text.removeprefix(tokenizer.bos_token or "")]
    else:
        spelled = strings(list(messages))
    marks = Marked(tokenizer, answer, *spelled)
    for text in sorted({text.strip() for text in spelled}, key=len, reverse=True):
        prompt_text = prompt_text.replace(text, marks.mark(text)) if text else prompt_text
    return marks.encode(prompt_text + marks.mark(answer), add_special_tokens=True)


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
    """Finds the least number of messages with which a template says these words; all of them together say them."""
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
