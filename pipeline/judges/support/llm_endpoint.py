"""An OpenAI-compatible endpoint: asked at most so much at a time, never twice for the same, never beyond a budget."""

import asyncio
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.errors import BudgetError, JudgeError
from pipeline.judges.base import ResponseCache
from pipeline.judges.llm import LlmConfig
from pipeline.judges.support.llm_reply import Heard, Reply, kept_reply, reply_of
from pipeline.judges.support.llm_requests import keyed_request

try:
    import openai
except ImportError as missing:
    raise JudgeError("the judge llm needs the package openai: pip install 'rondo[judges]'") from missing

from pipeline.judges.support.llm_client import WITHIN_200, BoundedClient
from pipeline.judges.support.llm_errors import EndpointError, stated_error

_REASON_LENGTH = 300
_FEW = 3


class TimedOutError(Exception):
    """One request that was not answered in time, whatever was tried."""


class TooLongError(Exception):
    """One request that is longer than the model reads."""


class RefusedError(Exception):
    """One request that the endpoint does not answer, though it answers others."""


class _UnknownError(Exception):
    """An error of one request, or of all: that has to be found out."""


class Endpoint:
    """Replies to requests, from the cache if they were asked before.

    If the judge as a whole fails at a request, those in progress are waited for and kept, and no other is sent. So what
    was paid for is in the cache, and to ask again pays for the rest alone.

    Args:
        harmless: fields of a request that every endpoint answers, unless it answers none.
    """

    def __init__(self, config: LlmConfig, cache: ResponseCache | None, harmless: Mapping[str, Any]) -> None:
        self._config = config
        self._harmless = harmless
        self._cache = cache
        self._key = _api_key(config)
        self.requests = 0
        self.tokens = 0
        self._timed_out = 0  # one after the other
        self._refused = 0
        self._accepts = False  # whether a request was answered, if only once and from the cache
        self._accepts_now = False  # whether one was answered by the endpoint itself
        self._takes_forms: bool | None = None

    async def __aenter__(self) -> "Endpoint":
        config = self._config
        self._client = openai.AsyncOpenAI(
            api_key=self._key or "none", base_url=config.base_url, timeout=config.timeout_seconds,
            max_retries=config.retries, http_client=BoundedClient(config.timeout_seconds),
        )  # fmt: skip
        self._slots = asyncio.Semaphore(config.concurrency)
        self._asked: dict[str, asyncio.Task[Heard]] = {}
        self._stopped: JudgeError | None = None
        self._probe: asyncio.Task[bool] | None = None
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, body: Mapping[str, Any], form: Mapping[str, Any] | None = None) -> Heard:
        """Returns the reply to a request, the fields of which are those of a chat completion.

        Args:
            form: a ``response_format`` to ask for if the endpoint takes it; it does not change what is asked.

        Raises:
            TimedOutError, TooLongError, RefusedError: this request has no reply, others may have.
            BudgetError: the recipe allows no further request.
            JudgeError: the endpoint is gone, refuses, or does not speak the protocol.
        """
        key, request = keyed_request(self._config, body)
        if (same := self._asked.get(key)) is not None:
            return Heard((await same).reply, cached=True)
        self._asked[key] = asyncio.create_task(self._answer(key, request, form))
        return await self._asked[key]

    async def _answer(self, key: str, request: Mapping[str, Any], form: Mapping[str, Any] | None) -> Heard:
        async with self._slots:
            if self._cache is not None and (kept := await asyncio.to_thread(self._cache.get, key)) is not None:
                self._accepts = True
                return Heard(kept_reply(kept), cached=True)
            if self._stopped is not None:
                raise self._stopped
            try:
                reply = await self._send_in_form(request, form)
            except JudgeError as error:
                self._stopped = self._stopped or error
                raise
            if self._cache is not None:
                await asyncio.to_thread(self._cache.put, key, asdict(reply))
            return Heard(reply, cached=False)

    async def _send_in_form(self, request: Mapping[str, Any], form: Mapping[str, Any] | None) -> Reply:
        """Returns the reply in a form, or without one from an endpoint that takes none."""
        try:
            if form is None or self._takes_forms is False:
                return await self._send(request)
            in_doubt = self._takes_forms is None
            try:
                reply = await self._send({**request, "response_format": form}, form_in_doubt=in_doubt)
            except _UnknownError:
                if not in_doubt:
                    raise
                reply = await self._send(request)
                self._takes_forms = self._takes_forms or False
            else:
                self._takes_forms = True
            return reply
        except (_UnknownError, RefusedError) as error:
            certain = isinstance(error, RefusedError) and (self._accepts or self._refused < _FEW)
            if certain or await self._answers_others(request):
                raise RefusedError(str(error)) from None
            raise JudgeError(f"{self._where} refuses every request: {error}; correct the recipe's judge") from None

    async def _answers_others(self, request: Mapping[str, Any]) -> bool:
        """Says whether the endpoint answers requests with these settings; if none was yet, a harmless one tells."""
        if self._accepts_now:
            return True
        if self._probe is None:
            self._probe = asyncio.create_task(self._is_answered({**request, **self._harmless}))
        return await self._probe

    async def _is_answered(self, request: Mapping[str, Any]) -> bool:
        try:
            await self._send(request)
        except (_UnknownError, RefusedError, TooLongError):
            return False
        return True

    async def _send(self, request: Mapping[str, Any], *, form_in_doubt: bool = False) -> Reply:
        for last in (False, True):
            self._check_budget()
            self.requests += 1  # counted when sent, so that requests side by side cannot pass the limit together
            start = time.perf_counter()
            try:
                raw = await self._create(request)
                self.requests += raw.retries_taken
                reply = reply_of(json.loads(raw.text), time.perf_counter() - start)
            except openai.OpenAIError as error:
                raise self._failure(error, form_in_doubt) from None  # its own text may repeat the key
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                if last:
                    raise JudgeError(
                        f"{self._config.base_url} answered twice with something that is no chat completion "
                        f"({self._without_key(repr(error))}): check judge.base_url, or see the endpoint's log"
                    ) from None
                continue
            self._timed_out = self._refused = 0
            self._accepts = self._accepts_now = True
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

    def _failure(self, error: openai.OpenAIError, form_in_doubt: bool) -> Exception:
        """Says what a failed request means: for itself alone, or for the judge as a whole."""
        config, tries = self._config, self._config.retries + 1
        if isinstance(error, openai.APITimeoutError):
            self.requests += config.retries
            self._timed_out += 1
            if self._timed_out >= max(config.concurrency, _FEW):
                return JudgeError(
                    f"{self._where} answers no more: {self._timed_out} requests in a row were given "
                    f"{config.timeout_seconds:g} s {tries} times; see whether it runs, or raise judge.timeout_seconds"
                )
            return TimedOutError(f"no reply in {config.timeout_seconds:g} s, {tries} times")
        if isinstance(error, openai.APIConnectionError):
            self.requests += config.retries
            reason = self._without_key(str(error.__cause__ or error))
            return JudgeError(f"{self._where} cannot be reached, tried {tries} times: {reason}; start it, then resume")
        if isinstance(error, openai.APIStatusError):
            stated = stated_error(error.status_code, error.response.content)
            if form_in_doubt and stated.may_be_the_form:
                return _UnknownError(self._without_key(stated.message))
            return self._stated_failure(stated, error.response)
        return JudgeError(f"{self._where} cannot be asked: {self._without_key(str(error))}")

    def _stated_failure(self, stated: EndpointError, response: Any) -> Exception:
        """Says what an error means that the endpoint states."""
        config, reason = self._config, self._without_key(stated.message)
        status = "200 and an error within" if WITHIN_200 in response.extensions else f"{stated.status}"
        match stated.meaning:
            case "too_long":
                return TooLongError(reason)
            case "refused":
                self._refused += 1
                return RefusedError(reason)
            case "unknown":
                return _UnknownError(f"status {status}: {reason}")
            case "later":
                self.requests += config.retries
                wait = response.headers.get("retry-after")
                asks = f" (it asks to wait {wait} s)" if wait else ""
                later = (
                    "see its log, then resume" if stated.status >= 500 else "lower judge.concurrency, or resume later"
                )
                tried = f"tried up to {config.retries + 1} times{asks}"
                return JudgeError(f"{self._where} answers with status {status}, {tried}: {reason}; {later}")
        if stated.status in (401, 403):  # the endpoint's own words may repeat the key
            given = f"judge.api_key_env is '{config.api_key_env}'" if config.api_key_env else "no api_key_env is given"
            return JudgeError(f"{self._where} denies access (status {status}), and {given}: check the key in it")
        return JudgeError(
            f"{self._where} refuses the request with status {status}: {reason}; correct the recipe's judge"
        )

    @property
    def _where(self) -> str:
        return f"{self._config.base_url} (model '{self._config.model}')"

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
