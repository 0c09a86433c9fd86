"""A worker that answers prompts that people try on committed policies; it writes nothing to the store."""

import gc
import shutil
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.workers.base import ProgressCall, Worker
from flows.workers.references import PolicyRef
from flows.workers.sampler import SamplerWorker
from pipeline.config import SamplingConfig
from pipeline.data.prompts import check_conversations, encode_prompt
from pipeline.data.sources import Prompt
from pipeline.errors import OutOfMemoryError
from pipeline.model.devices import check_device
from pipeline.sampling import Sampler, SamplingRequest, import_engine, make_sampler, reported
from pipeline.sampling.decoding import completion_texts
from pipeline.sampling.environment import configure_environment

_LOADED = 2
"""Policies that stay in memory: the two that people hold against each other."""
_NAME = "the prompt that was tried"


@dataclass(frozen=True)
class TriedPrompt:
    """A prompt that is tried.

    Args:
        text: it, if the policy reads plain text.
        messages: the conversation, if there is one.
        template_kwargs: what the policy's chat template is told beside it.
        read_special_tokens: whether special tokens that it spells are control tokens.
    """

    text: str | None
    messages: list[dict[str, Any]] | None
    template_kwargs: dict[str, Any]
    read_special_tokens: bool


@dataclass(frozen=True)
class TrialSettings:
    """How it is answered: a temperature of 0 takes the likeliest token."""

    temperature: float
    top_p: float
    max_tokens: int
    seed: int


@dataclass(frozen=True)
class Tried:
    """An answer.

    Args:
        prompt: what the policy read, its template applied.
        tokens: its length.
        finish_reason: stop or length.
        logp: its log-probability under the untempered policy, in nats.
        seconds: what sampling took, without loading.
    """

    prompt: str
    text: str
    tokens: int
    finish_reason: str
    logp: float
    seconds: float


Answering = Generator[tuple[int, int], None, Tried]


class TrialWorker(Worker):
    """Samples one completion at a time with transformers on the processor, whatever engine the run has."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        configure_environment(self.device, self.recipe.devices.threads)
        import_engine(self._config)
        self._kept: dict[PolicyRef, tuple[Sampler, Any]] = {}

    @property
    def _config(self) -> SamplingConfig:
        changes = {"engine": "transformers", "context": None, "candidates": 1}
        return self.recipe.sampling.model_copy(update=changes)

    def answer(self, policy: PolicyRef, prompt: TriedPrompt, settings: TrialSettings) -> Answering:
        """Answers a prompt.

        Raises:
            ConfigError: it is a conversation, and the policy has no chat template.
            DataError, PromptTooLongError: the template does not take it, or it leaves no room for an answer.
            OutOfMemoryError: the weights do not fit into the memory that is free.
        """
        if policy not in self._kept:
            self.progress(stage="loads")
        sampler, tokenizer = self._loaded(policy)
        return (yield from _answer(sampler, tokenizer, self._config, prompt, settings, self.progress))

    def _loaded(self, policy: PolicyRef) -> tuple[Sampler, Any]:
        """Returns a policy's engine and tokenizer; the one that was used last is kept last."""
        found = self._kept.pop(policy, None)
        if found is None:
            while len(self._kept) >= _LOADED:  # first, as the new one may need that memory
                self._let_go(next(iter(self._kept)))
            found = self._load(policy)
        self._kept[policy] = found
        return found

    def _let_go(self, policy: PolicyRef) -> None:
        """Frees a policy's memory, and the disk that an adapter takes once it is merged with its base."""
        del self._kept[policy]
        gc.collect()
        shutil.rmtree(self.merged / _name_of(policy), ignore_errors=True)

    def _load(self, policy: PolicyRef) -> tuple[Sampler, Any]:
        from pipeline.model.policy import load_tokenizer

        _check_memory(_weight_bytes(policy))
        directory: Path = self.whole(policy, _name_of(policy))
        sampler = make_sampler(self._config, directory, device=self.device, threads=self.recipe.devices.threads)
        return sampler, load_tokenizer(directory)


class VllmTrialWorker(SamplerWorker):
    """Samples one completion at a time with vLLM, on the device of the run's sampler; weights are taken in place."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        for device in self.device.split(","):
            check_device("devices.sampler", device)

    def answer(self, policy: PolicyRef, prompt: TriedPrompt, settings: TrialSettings) -> Answering:
        """Answers a prompt, once the engine has shown on the policy's probe that it computes with its weights.

        Raises:
            ConfigError: as `TrialWorker.answer`, or there is no such device.
            DataError, PromptTooLongError, OutOfMemoryError: as `TrialWorker.answer`.
            EngineError: the engine cannot start or failed, or computes with other weights.
        """
        if self._policy != policy.digest:
            self.progress(stage="loads")
            if self.device == "cpu" and self._engine.sampler is None:
                _check_memory(_weight_bytes(policy))
            self.use(policy)
        sampler = self._engine.sampler
        assert sampler is not None
        tokenizer, sampling = self._engine.tokenizer, self.recipe.sampling
        return (yield from _answer(sampler, tokenizer, sampling, prompt, settings, self.progress))


def _answer(
    sampler: Sampler,
    tokenizer: Any,
    sampling: SamplingConfig,
    prompt: TriedPrompt,
    settings: TrialSettings,
    progress: ProgressCall,
) -> Answering:
    """Answers a prompt with an engine that holds the policy."""
    progress(stage="samples")
    content = prompt.messages if prompt.messages is not None else prompt.text or ""
    given = Prompt(content, None, "tried", _NAME, prompt.template_kwargs)
    check_conversations([given], tokenizer)
    text, ids = encode_prompt(given, tokenizer, read_special_tokens=prompt.read_special_tokens)
    config = sampling.served(settings.temperature, settings.top_p)
    config = config.model_copy(update={"max_tokens": settings.max_tokens})
    began = time.perf_counter()

    def report(_done: int, tokens: int) -> None:
        progress(tokens=tokens, total=settings.max_tokens)

    (found,) = yield from reported(sampler.sample([SamplingRequest(_NAME, ids, settings.seed)], config), report)
    (said,) = completion_texts(tokenizer, ids, [found.token_ids])
    seconds = time.perf_counter() - began
    return Tried(text, said, len(found.token_ids), found.finish_reason, sum(found.logprobs), seconds)


def _weight_bytes(policy: PolicyRef) -> int:
    return sum(file.bytes for file in (*policy.files, *policy.base))


def _name_of(policy: PolicyRef) -> str:
    return policy.digest[:16]


def _check_memory(needed: int) -> None:
    free = psutil.virtual_memory().available
    if needed > free:
        raise OutOfMemoryError(
            f"the weights take at least {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: end what "
            "else is at work on this machine, or look at this run on another one"
        )


def spoken(system: str, user: str) -> list[dict[str, Any]]:
    """Makes a conversation of a user's message, behind a system message if there is one."""
    messages: Sequence[dict[str, Any]] = [{"role": "user", "content": user}]
    return [*([{"role": "system", "content": system}] if system.strip() else []), *messages]
