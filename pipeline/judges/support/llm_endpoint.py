"""An OpenAI-compatible endpoint: asked at most so much at a time, never twice for the same, never beyond a budget."""

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.errors import BudgetError, JudgeError
from pipeline.judges.base import ResponseCache
from pipeline.judges.llm import LlmConfig

try:
    import openai
except ImportError as missing:
    raise JudgeError("the judge llm needs the package openai: pip install 'rondo[judges]'") from missing

_FORM = 1  # of what is kept of a reply: with another one nothing older is found
_REASON_LENGTH = 300
_FEW = 3
_TOO_LONG = re.compile(r"context[ _](length|size|window)", re.IGNORECASE)

TokenLogprobs = tuple[str, Mapping[str, float]]
"""A token that was written, and log-probabilities of it and of the likeliest ones in its place, in nats."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model wrote, and what it cost.

    Args:
        content: None if it wrote nothing, as after a refusal.
        finish_reason: ``stop``, ``length`` where it was cut, or the endpoint's own word.
        tokens: each token that holds a digit, with its likeliest rivals, for only scores are weighed; None if none
            were asked for, or none given.
        spent: tokens read and written.
        latency: seconds until it came; a reply from the cache has that of the first time.
    """

    content: str | None
    finish_reason: str
    tokens: list[TokenLogprobs] | None
    spent: int | None
    latency: float


class TimedOutError(Exception):
    """One request that was not answered in time, whatever was tried."""


class TooLongError(Exception):
    """One request that is longer than the model reads."""


class Endpoint:
    """Replies to requests, from the cache where they were asked before.

    Where a request fails as a whole, those on the way are waited for and kept, and no other is sent: what was paid for
    is in the cache, and to ask again pays for the rest alone.
    """

    def __init__(self, config: LlmConfig, cache: ResponseCache | None) -> None:
        self._config = config
        self._cache = cache
        self._key = _api_key(config)
        self.requests = 0
        self.tokens = 0
        self._timed_out = 0  # one after the other

    async def __aenter__(self) -> "Endpoint":
        config = self._config
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=config.base_url, timeout=config.timeout_seconds,
            max_retries=config.retries,
        )  # fmt: skip
        self._slots = asyncio.Semaphore(config.concurrency)
        self._asked: dict[str, asyncio.Task[Reply]] = {}
        self._stopped: JudgeError | None = None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The reply to a request, the fields of which are those of a chat completion.

        Raises:
            TimedOutError, TooLongError: this request has no reply, others may have.
            BudgetError: the recipe allows no further request.
            JudgeError: the endpoint is gone, refuses, or does not speak the protocol.
        """
        request = {"model": self._config.model, **body, **self._config.extra_body}
        asked = {"form": _FORM, "url": self._config.base_url, "revision": self._config.revision, "body": request}
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        if key not in self._asked:
            self._asked[key] = asyncio.create_task(self._answer(key, request))
        return await self._asked[key]

    async def _answer(self, key: str, request: Mapping[str, Any]) -> Reply:
        async with self._slots:
            if self._cache is not None and (kept := await asyncio.to_thread(self._cache.get, key)) is not None:
                return Reply(**{**kept, "tokens": _pairs(kept["tokens"])})
            if self._stopped is not None:
                raise self._stopped
            try:
                reply = await self._send(request)
            except JudgeError as error:
                self._stopped = self._stopped or error
                raise
            if self._cache is not None:
                await asyncio.to_thread(self._cache.put, key, asdict(reply))
            return reply

    async def _send(self, request: Mapping[str, Any]) -> Reply:
        for last in (False, True):
            self._check_budget()
            self.requests += 1  # counted when sent, so that requests side by side cannot pass the limit together
            start = time.perf_counter()
            try:
                raw = await self._create(request)
                self.requests += raw.retries_taken
                reply = _reply(json.loads(raw.text), time.perf_counter() - start)
            except openai.OpenAIError as error:
                raise self._failure(error) from None  # its own text may repeat the key
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                if last:
                    raise JudgeError(
                        f"{self._config.base_url} answered twice with something that is no chat completion "
                        f"({self._without_key(repr(error))}): check judge.base_url, or see the endpoint's log"
                    ) from None
                continue
            self._timed_out = 0
            self._count(reply)
            return reply
        raise AssertionError("the second try returns or raises")

    async def _create(self, request: Mapping[str, Any]) -> Any:
        rest = {name: value for name, value in request.items() if name not in ("model", "messages")}
        completions = self._client.chat.completions.with_raw_response
        return await completions.create(model=request["model"], messages=request["messages"], extra_body=rest)

    def _check_budget(self) -> None:
        config = self._config
        for what, spent, budget in (
            ("requests", self.requests, config.budget_requests),
            ("tokens", self.tokens, config.budget_tokens),
        ):
            if budget is not None and spent >= budget:
                raise BudgetError(
                    f"the judge {config.label} has spent its budget: {self.requests} requests and {self.tokens} "
                    f"tokens, and judge.budget_{what} is {budget}; all replies are kept, and resuming the run goes on "
                    "from them with a new budget"
                )

    def _count(self, reply: Reply) -> None:
        if reply.spent is None and self._config.budget_tokens is not None:
            raise JudgeError(
                f"{self._config.base_url} does not say how many tokens a reply took, so judge.budget_tokens cannot be "
                "kept: set judge.budget_requests in its place"
            )
        self.tokens += reply.spent or 0

    def _failure(self, error: openai.OpenAIError) -> Exception:
        """What a failed request means: for itself alone, or for the judge as a whole."""
        config, tries = self._config, self._config.retries + 1
        where = f"{config.base_url} (model '{config.model}')"
        if isinstance(error, openai.APITimeoutError):
            self.requests += config.retries
            self._timed_out += 1
            if self._timed_out >= max(config.concurrency, _FEW):
                return JudgeError(
                    f"{where} answers no more: {self._timed_out} requests in a row were given "
                    f"{config.timeout_seconds:g} s {tries} times; see whether it runs, or raise judge.timeout_seconds"
                )
            return TimedOutError(f"no reply in {config.timeout_seconds:g} s, {tries} times")
        if isinstance(error, openai.APIConnectionError):
            self.requests += config.retries
            reason = self._without_key(str(error.__cause__ or error))
            return JudgeError(f"{where} cannot be reached, tried {tries} times: {reason}; start it, then resume")
        if isinstance(error, openai.APIStatusError):
            return self._refusal(error, where)
        return JudgeError(f"{where} cannot be asked: {self._without_key(str(error))}")

    def _refusal(self, error: openai.APIStatusError, where: str) -> Exception:
        """What an answer with a status of its own means."""
        config, tries = self._config, self._config.retries + 1
        status, reason = error.status_code, self._without_key(str(error.message))
        if status in (401, 403):  # the endpoint's own words may repeat the key
            given = f"judge.api_key_env is '{config.api_key_env}'" if config.api_key_env else "no api_key_env is given"
            return JudgeError(f"{where} denies access (status {status}), and {given}: check the key in it")
        if status == 429 or status >= 500:
            self.requests += config.retries
            wait = error.response.headers.get("retry-after")
            asks = f" (it asks to wait {wait} s)" if wait else ""
            remedy = "lower judge.concurrency, or resume later" if status == 429 else "see its log, then resume"
            return JudgeError(
                f"{where} answers with status {status}, tried up to {tries} times{asks}: {reason}; {remedy}"
            )
        if status in (400, 413, 422) and _TOO_LONG.search(reason):
            return TooLongError(reason)
        return JudgeError(f"{where} refuses the request with status {status}: {reason}; correct the recipe's judge")

    def _without_key(self, text: str) -> str:
        clean = text.replace(self._key, "[key]") if self._key else text
        return " ".join(clean.split())[:_REASON_LENGTH]


def _api_key(config: LlmConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise JudgeError(
            f"judge.api_key_env names the environment variable {config.api_key_env}, which is not set: put the key "
            f"for {config.base_url} into it"
        )
    return key


def _reply(completion: Mapping[str, Any], latency: float) -> Reply:
    choice = completion["choices"][0]
    logprobs = (choice.get("logprobs") or {}).get("content")
    tokens: list[TokenLogprobs] | None = None
    if logprobs:
        tokens = [
            (entry["token"], {one["token"]: float(one["logprob"]) for one in (entry, *entry["top_logprobs"])})
            for entry in logprobs
            if any(character.isdigit() for character in entry["token"])
        ]
    content = choice["message"].get("content")
    if content is not None and not isinstance(content, str):
        raise TypeError(f"the message's content is {content!r}")
    return Reply(
        content=content,
        finish_reason=str(choice.get("finish_reason")),
        tokens=tokens,
        spent=(completion.get("usage") or {}).get("total_tokens"),
        latency=latency,
    )


def _pairs(tokens: Any) -> list[TokenLogprobs] | None:
    return None if tokens is None else [(token, rivals) for token, rivals in tokens]
