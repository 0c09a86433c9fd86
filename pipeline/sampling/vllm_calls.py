"""What one call asks of a vLLM engine, and what has come of it so far."""

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Work:
    """A request: the tokens of its prompt, and vLLM's parameters."""

    token_ids: list[int]
    params: Any


@dataclass
class Answer:
    """What the engine has handed out of one request, piece by piece; ``last`` is the piece that ended it."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    last: Any = None


Turns = Generator[tuple[int, int], None, list[Answer]]
"""A call in progress: each turn yields the requests that are finished, and the tokens."""


@dataclass
class Call:
    """The answers to one call's requests."""

    answers: list[Answer]
    finished: int = 0
    tokens: int = 0

    @property
    def unfinished(self) -> bool:
        """Says whether some of the answers are not all there."""
        return self.finished < len(self.answers)

    def take(self, output: Any) -> None:
        """Takes a piece of an answer from the engine, whose request is named ``CALL-PLACE``."""
        answer, piece = self.answers[int(output.request_id.partition("-")[2])], output.outputs[0]
        answer.token_ids += piece.token_ids
        answer.logprobs += piece.logprobs.logprobs
        self.tokens += len(piece.token_ids)
        if output.finished:
            answer.last = output
            self.finished += 1
