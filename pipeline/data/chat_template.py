"""Chat templates: conversations rendered and encoded, and refused in one sentence if a template does not take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from pipeline.config.prompts import RESERVED_KEYWORDS
from pipeline.data.conversations import Message, other_fields
from pipeline.data.sources import Prompt
from pipeline.data.special_tokens import Marked, Tokenizer, strings
from pipeline.errors import ConfigError, DataError

_NO_SWITCHES: Mapping[str, Any] = {}


def encode_conversation(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    of: str,
    add_generation_prompt: bool,
    read_special_tokens: bool = False,
    template_kwargs: Mapping[str, Any] = _NO_SWITCHES,
) -> tuple[str, list[int]]:
    """Encodes a conversation in a tokenizer's chat template: returns its text and its token ids.

    Args:
        of: whose template it is, in words.
        read_special_tokens: take those that messages spell for control tokens, rather than for text.
        template_kwargs: what the template is told beside the messages, such as ``enable_thinking``.

    Raises:
        DataError: the template refuses the conversation; says at which message, and in the template's words.
    """
    marks = Marked(tokenizer, *([] if read_special_tokens else strings(list(messages))))
    write = _Writer(tokenizer, add_generation_prompt, template_kwargs)
    rendered = _render(write, [marks.mark(message) for message in messages], of)
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


def check_switches(tokenizer: Tokenizer, template_kwargs: Mapping[str, Any], *, of: str) -> None:
    """Checks that a chat template reads each of these keywords: of one that it does not read nothing would be seen.

    Raises:
        ConfigError: it does not read one; names those that it reads.
    """
    if not template_kwargs:
        return
    switches = template_switches(tokenizer, of=of)
    if unknown := next((name for name in template_kwargs if name not in switches), None):
        known = f"it reads {', '.join(switches)}" if switches else "it has no switches"
        raise ConfigError(
            f"prompts.chat_template_kwargs sets '{unknown}', which the chat template of {of} does not read: {known}; "
            "correct the name, or leave it out"
        )


def template_switches(tokenizer: Tokenizer, *, of: str) -> list[str]:
    """Lists the variables that a chat template reads and that a recipe may set.

    Raises:
        ConfigError: the template is not Jinja; says at which line, in Jinja's words.
    """
    environment = Environment(extensions=[loopcontrols, _Generation])  # noqa: S701  it parses, and writes nothing
    try:
        variables = meta.find_undeclared_variables(environment.parse(tokenizer.get_chat_template()))
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template of {of} cannot be read: line {error.lineno}: {error.message}; correct it"
        ) from error
    return sorted(variables - RESERVED_KEYWORDS - getattr(tokenizer, "special_tokens_map", {}).keys())


class _Generation(Extension):
    """Lets templates mark what the assistant says by ``{% generation %}``, as those of transformers do."""

    tags = {"generation"}  # noqa: RUF012  Jinja's own type

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def check_used(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    text: str,
    *,
    of: str,
    template_kwargs: Mapping[str, Any] = _NO_SWITCHES,
) -> None:
    """Checks that a template has written all messages and all their fields, given the text that it wrote.

    Conversations that differ only in what a template leaves out would be one prompt.

    Raises:
        DataError: it left something out.
    """
    write = _Writer(tokenizer, True, template_kwargs)

    def left_out(number: int, changed: list[Message]) -> bool:
        try:
            return write([*messages[:number], *changed, *messages[number + 1 :]]) == text
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


@dataclass(frozen=True)
class _Writer:
    """Writes conversations in a tokenizer's chat template."""

    tokenizer: Tokenizer
    add_generation_prompt: bool
    template_kwargs: Mapping[str, Any]

    def __call__(self, messages: Sequence[Message]) -> str:
        text: str = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=self.add_generation_prompt, tokenize=False, **self.template_kwargs
        )
        return text


def _render(write: _Writer, messages: list[Message], of: str) -> str:
    try:
        return write(messages)
    except Exception as error:  # a template may fail in any way that an expression can
        number = _first_refused(write, messages, _words(error))
        raise DataError(
            f"the chat template of {of} refuses message {number}, of role '{messages[number - 1]['role']}': "
            f"{_words(error)}"
        ) from error


def _first_refused(write: _Writer, messages: list[Message], words: str) -> int:
    """Finds the least number of messages with which a template says these words; all of them together say them."""
    for count in range(1, len(messages)):
        try:
            write(messages[:count])
        except Exception as error:
            if _words(error) == words:
                return count
    return len(messages)


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
