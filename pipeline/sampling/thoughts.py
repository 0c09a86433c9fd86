"""Completions of models that think: where the thought ends and the answer begins.

A thought stands between two marks, such as ``<think>`` and ``</think>``. It begins where the completion begins, or at
the end of the prompt, if the chat template opens it there. What comes later between such marks belongs to the answer.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.sampling import ThoughtMarks
from pipeline.sampling.decoding import Tokenizer, completion_texts

KNOWN_MARKS = (
    ThoughtMarks(begin="<think>", end="</think>"),
    ThoughtMarks(begin="[THINK]", end="[/THINK]"),
    ThoughtMarks(begin="<|START_THINKING|>", end="<|END_THINKING|>"),
    ThoughtMarks(begin="<seed:think>", end="</seed:think>"),
    ThoughtMarks(begin="◁think▷", end="◁/think▷"),
)
"""Those that tokenizers are known to have."""


@dataclass(frozen=True)
class Thought:
    """The thought that a completion begins with.

    Attributes:
        tokens: how many tokens it has, both marks included; without the first, if that stands in the prompt.
        answer: the text after it, without the white space that it begins with; None if the thought never ends.
    """

    tokens: int
    answer: str | None


def thought_marks(tokenizer: Any, given: ThoughtMarks | None) -> ThoughtMarks | None:
    """Returns the marks that a recipe gives, or else known ones that are tokens, or stand in the chat template.

    None stands for a policy that does not think.
    """
    if given is not None:
        return given
    tokens = {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    template = str(getattr(tokenizer, "chat_template", None) or "")
    for marks in KNOWN_MARKS:
        both = (marks.begin, marks.end)
        if tokens.issuperset(both) or all(mark in template for mark in both):
            return marks
    return None


def find_thoughts(
    tokenizer: Tokenizer, marks: ThoughtMarks, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]
) -> list[Thought | None]:
    """Finds the thought of each completion of a prompt; None if it has none.

    Marks are looked for in the text with all special tokens, for they may be special tokens, others, or plain text.
    """
    prompt = _decoded(tokenizer, prompt_ids)
    _, opened, after = prompt.rpartition(marks.begin)
    is_open = bool(opened) and not after.strip()
    return [_find(tokenizer, marks, prompt_ids, token_ids, is_open) for token_ids in completions]


def _find(
    tokenizer: Tokenizer, marks: ThoughtMarks, prompt_ids: Sequence[int], token_ids: Sequence[int], is_open: bool
) -> Thought | None:
    text = _decoded(tokenizer, token_ids)
    begins = text.lstrip().startswith(marks.begin)
    if not begins and not is_open:
        return None
    start = text.index(marks.begin) + len(marks.begin) if begins else 0
    if text.find(marks.end, start) < 0:
        return Thought(len(token_ids), None)

    def ended(count: int) -> bool:
        return _decoded(tokenizer, token_ids[:count]).find(marks.end, start) >= 0

    tokens = bisect_left(range(len(token_ids)), True, key=ended)
    thought, answer = token_ids[:tokens], token_ids[tokens:]
    # A mark that is plain text may share its last token with the answer's first letters.
    shared = _decoded(tokenizer, thought)
    shared = shared[shared.find(marks.end, start) + len(marks.end) :]
    (rest,) = completion_texts(tokenizer, [*prompt_ids, *thought], [answer])
    return Thought(tokens, f"{shared}{rest}".lstrip())


def _decoded(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(token_ids), skip_special_tokens=False)
    return text
