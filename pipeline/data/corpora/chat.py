"""What stands before the request of a generated conversation: nothing, a system prompt, or an earlier turn."""

import random
from collections.abc import Sequence

from pipeline.data.conversations import Message

Turn = tuple[str, str]
"""A user's question, and the assistant's answer."""

EARLIER: tuple[Turn, ...] = (
    ("Hello! Who are you?", "Hello! I am an assistant, and I am happy to help you today."),
    ("What is seven times six?", "Seven times six is 42."),
    ("How many days does a leap year have?", "A leap year has 366 days, one more than other years."),
    ("Which colour do I get from blue and yellow?", "If you mix blue and yellow, you get green."),
    ("Can you say good night in French?", "Of course. In French you say \"bonne nuit\"."),
    ("What comes after Tuesday?", "Wednesday comes after Tuesday."),
    ("Is Norway north of Italy?", "Yes. Norway lies far to the north of Italy."),
    ("Thank you for your help yesterday.", "You are very welcome! What can I do for you today?"),
)  # fmt: skip
"""Small talk about nothing that a corpus asks for."""


def conversation(
    request: str, rng: random.Random, *, systems: Sequence[str], earlier: Sequence[Turn] = EARLIER
) -> list[Message]:
    """Writes a conversation that ends with the request; of three, one is bare, one has a system prompt, one a turn."""
    shape = rng.randrange(3)
    messages: list[Message] = []
    if shape == 1:
        messages = [{"role": "system", "content": rng.choice(systems)}]
    elif shape == 2:
        question, answer = rng.choice(earlier)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": request}]


def with_article(words: str) -> str:
    """Sets the indefinite article before words, by their first letter."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
