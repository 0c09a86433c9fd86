"""What every sampling engine does, and the records that go in and come out.

Token ids in, token ids and raw log-probabilities out. Text is derived from ids, never the other way round.
"""

import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import pyarrow as pa

from pipeline.config import SamplingConfig, ThoughtMarks
from pipeline.errors import DataError, PromptTooLongError
from pipeline.model.weight_pieces import WantedWeights, WeightPiece
from pipeline.records import CANDIDATES, THINKING_CANDIDATES, to_table
from pipeline.sampling.decoding import Tokenizer, completion_texts
from pipeline.sampling.thoughts import find_thoughts

Result = TypeVar("Result")
FinishReason = Literal["stop", "length"]
Progress = Callable[[int, int], None]
"""Called about twice a second with the candidates finished and the tokens sampled so far in this call."""

PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class SamplingRequest:
    """One prompt. Candidate ``k`` draws its random numbers from ``seed + k``: space seeds by at least K.

    vLLM on a CPU keeps the low 32 bits of a seed: two of a thousand seeds meet there with a probability of 1 in 10,000.
    """

    prompt_id: str
    token_ids: Sequence[int]
    seed: int


@dataclass(frozen=True)
class Candidate:
    """One answer, token for token as it was sampled.

    ``token_ids`` ends with the end-of-sequence token if ``finish_reason`` is ``stop``. ``logprobs`` holds
    one value in nats for each of them, under the untempered policy: the same for every temperature and top-p.
    """

    prompt_id: str
    candidate: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    seed: int


Sampling = Generator[tuple[int, int], None, list[Candidate]]
"""Sampling in progress: each turn is one step of the engine, and yields the candidates finished and the tokens sampled.

Several may be in progress in one engine: each turn of one moves them all on. To close one gives its candidates up.
"""


class Sampler(Protocol):
    """A sampling engine that holds one policy.

    The same requests on the same weights and device give the same result to the bit, whatever was called before. With
    one thread on a CPU this holds whatever else is in progress, too; elsewhere the last bits may differ then.
    """

    def sample(self, requests: Sequence[SamplingRequest], config: SamplingConfig) -> Sampling:
        """Samples K candidates for each request; they come in the order of the requests, then by index.

        Raises, at the first turn or a later one:
            PromptTooLongError: a prompt and ``max_tokens`` do not fit the context; nothing was sampled.
            EngineError: the engine failed.
        """
        ...

    def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Scores pairs (prompt, answer) of token ids: the log-probability, in nats, of each token of each answer.

        Raises:
            PromptTooLongError: a sequence does not fit the context.
            EngineError: the engine failed.
        """
        ...

    def load_weights(self, directory: Path) -> None:
        """Replaces the weights in place by those of a checkpoint of the same shape; nothing of the old stays.

        Raises:
            EngineError: sampling is in progress, or the checkpoint is unreadable or does not fit, and nothing changed;
                or the engine failed on it.
        """
        ...


@runtime_checkable
class Sleepable(Protocol):
    """An engine that can lend the memory of its device."""

    def sleep(self, *, keeps_weights: bool) -> None:
        """Lends that memory, until the next call.

        Args:
            keeps_weights: whether the weights are wanted again. If not, the engine may drop them: it then refuses to
                sample or score, with EngineError, until it is given others.

        Raises:
            EngineError: sampling is in progress, and nothing changed; or the engine is lost.
        """
        ...


@runtime_checkable
class WeightReceiver(Protocol):
    """An engine that can take new weights out of another process's memory."""

    def wanted_weights(self) -> WantedWeights | None:
        """Returns what it wants of a policy; None if it can take weights from a checkpoint alone."""
        ...

    def take_weights(self, piece: WeightPiece) -> None:
        """Takes a piece of a policy's weights. Until `finish_weights` the engine can do nothing else.

        Raises:
            EngineError: sampling is in progress, and nothing changed; or the engine is lost.
        """
        ...

    def finish_weights(self, policy: str) -> None:
        """Ends the new weights, which are those of the policy of this hash or name; nothing of the old stays.

        Raises:
            EngineError: some of the weights have not come: the engine is lost.
        """
        ...

    def name_weights(self, policy: str) -> None:
        """Takes note of the hash of the policy in place, which came before that was known."""
        ...


@runtime_checkable
class AdapterServer(Protocol):
    """An engine that computes with an adapter beside the weights that it holds."""

    def serve_adapter(self, directory: Path | None) -> None:
        """Computes with a saved adapter from now on, or with its own weights alone.

        Raises:
            ConfigError: the adapter is larger than those that the engine was started for; nothing changed.
            EngineError: sampling is in progress, and nothing changed; or the engine does not take it.
        """
        ...


def reported(sampling: Sampling, on_progress: Progress | None = None) -> Sampling:
    """Runs the same sampling, and passes its counts on about twice a second and at its end."""
    last, counts = time.monotonic(), (0, 0)
    with closing(sampling):
        while True:
            try:
                counts = next(sampling)
            except StopIteration as end:
                if on_progress:
                    on_progress(*counts)
                found: list[Candidate] = end.value
                return found
            if on_progress and time.monotonic() - last >= PROGRESS_SECONDS:
                last = time.monotonic()
                on_progress(*counts)
            yield counts


def finish(turns: Generator[object, None, Result]) -> Result:
    """Takes all turns that are left, and gives what they return."""
    with closing(turns):
        while True:
            try:
                next(turns)
            except StopIteration as end:
                result: Result = end.value
                return result


def candidates_table(
    candidates: Sequence[Candidate],
    prompts: Mapping[str, Sequence[int]],
    tokenizer: Tokenizer,
    policy: str,
    marks: ThoughtMarks | None = None,
) -> pa.Table:
    """Turns candidates into a table of the ``CANDIDATES`` schema; of a policy that thinks, ``THINKING_CANDIDATES``.

    Args:
        prompts: token ids of each prompt by its id.
        policy: hash of the weights that sampled.
        marks: those around its thoughts, if it thinks.

    Raises:
        DataError: a candidate does not fit the schema.
    """
    texts: dict[tuple[str, int], str] = {}
    thoughts: dict[tuple[str, int], dict[str, Any]] = {}
    for prompt_id, group in groupby(candidates, attrgetter("prompt_id")):
        own = list(group)
        keys = [(prompt_id, candidate.candidate) for candidate in own]
        sampled = [candidate.token_ids for candidate in own]
        texts |= zip(keys, completion_texts(tokenizer, prompts[prompt_id], sampled), strict=True)
        if marks is not None:
            found = find_thoughts(tokenizer, marks, prompts[prompt_id], sampled)
            thoughts |= {
                key: {"thought_tokens": thought and thought.tokens, "answer": thought and thought.answer}
                for key, thought in zip(keys, found, strict=True)
            }
    rows = [
        {
            "prompt_id": candidate.prompt_id,
            "candidate": candidate.candidate,
            "token_ids": candidate.token_ids,
            "text": texts[candidate.prompt_id, candidate.candidate],
            "logprobs": candidate.logprobs,
            "finish_reason": candidate.finish_reason,
            "seed": candidate.seed,
            "policy": policy,
            **thoughts.get((candidate.prompt_id, candidate.candidate), {}),
        }
        for candidate in candidates
    ]
    return to_table(rows, CANDIDATES if marks is None else THINKING_CANDIDATES)


def check_lengths(requests: Sequence[SamplingRequest], max_tokens: int, context: int) -> None:
    """Refuses a prompt that is empty, or that leaves no room for an answer of ``max_tokens`` tokens.

    Raises:
        PromptTooLongError: names the prompt and the lengths.
        DataError: the prompt is empty.
    """
    for request in requests:
        length = len(request.token_ids)
        if length == 0:
            raise DataError(f"prompt {request.prompt_id} has no tokens: give it a text, or a begin-of-sequence token")
        if length + max_tokens > context:
            raise PromptTooLongError(
                f"prompt {request.prompt_id} has {length} tokens, and with max_tokens {max_tokens} that is "
                f"more than the context of {context}: shorten or drop the prompt, or lower max_tokens"
            )


def check_sequences(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], context: int) -> None:
    """Refuses a sequence to score that has an empty part or does not fit the context.

    Raises:
        PromptTooLongError: names the sequence and its length.
        DataError: prompt or answer is empty.
    """
    for index, (prompt, answer) in enumerate(sequences):
        if not prompt or not answer:
            raise DataError(
                f"sequence {index} has {len(prompt)} prompt and {len(answer)} answer tokens: give each some"
            )
        if len(prompt) + len(answer) > context:
            raise PromptTooLongError(
                f"sequence {index} has {len(prompt) + len(answer)} tokens, more than the context of "
                f"{context}: shorten or drop it"
            )


def read_json(directory: Path, name: str) -> Mapping[str, Any]:
    """Reads a JSON file of a checkpoint directory; empty if the file does not exist."""
    path = directory / name
    if not path.is_file():
        return {}
    content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def stop_tokens(directory: Path) -> frozenset[int]:
    """Reads the tokens that end an answer, from the checkpoint's generation configuration or else its model's."""
    config = read_json(directory, "config.json")
    for part in (read_json(directory, "generation_config.json"), config, config.get("text_config", {})):
        found = part.get("eos_token_id")
        if found is not None:
            return frozenset([found] if isinstance(found, int) else found)
    return frozenset()
