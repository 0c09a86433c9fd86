"""Asks a language model about the candidates of prompts, side by side, and turns its replies into judgments."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from pipeline.judges.base import Judge, JudgedCandidate, JudgeItem, Judgment, ResponseCache, Verdict, judgment_of
from pipeline.judges.llm import Listwise, LlmConfig, Pairwise, Rubric
from pipeline.judges.support.comparisons import places, strength_orders, strengths
from pipeline.judges.support.llm_endpoint import Endpoint, RefusedError, TimedOutError, TooLongError
from pipeline.judges.support.llm_questions import (
    Question,
    Said,
    listwise_question,
    pairwise_question,
    rubric_question,
)
from pipeline.judges.support.llm_reply import Heard, Reply
from pipeline.judges.support.llm_requests import comparison_questions, order_questions, pairs_of, score_questions
from pipeline.judges.support.llm_verdicts import (
    Compared,
    Spoken,
    listwise_verdicts,
    pairwise_verdicts,
    rubric_verdict,
)
from pipeline.usage import NOTHING, Usage, total, usage_of_reply

Result = TypeVar("Result")


class Interview:
    """Judgments of a language model, in the name of a judge."""

    def __init__(self, of: Judge, config: LlmConfig, cache: ResponseCache | None) -> None:
        self._of, self._config = of, config
        self._endpoint = Endpoint(config, cache, _harmless(config))
        price = config.price_per_million
        self._price = None if price is None else (price.input, price.output)

    @property
    def requests(self) -> int:
        """Counts the requests that were sent so far."""
        return self._endpoint.requests

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Asks side by side, see ``LlmJudge.judge``; must not be called from a running event loop."""
        return asyncio.run(self._judge(items))

    async def _judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        async with self._endpoint:
            by_item = await _all([self._judge_item(item) for item in items])
        return [judgment for judgments in by_item for judgment in judgments]

    async def _judge_item(self, item: JudgeItem) -> list[Judgment]:
        mode = self._config.mode
        if isinstance(mode, Rubric):
            return await self._scores(item, mode)
        if len(item.candidates) < 2:
            alone = Verdict(score=None, status="alone", rationale="there is nothing to compare it with")
            return [judgment_of(self._of, item, candidate, alone, 0.0, NOTHING) for candidate in item.candidates]
        if isinstance(mode, Pairwise):
            return await self._comparisons(item, pairs_of(item, mode))
        return await self._orders(item, mode)

    async def _scores(self, item: JudgeItem, mode: Rubric) -> list[Judgment]:
        compared = len(item.candidates) > 1
        said = await _all([self._ask(question) for question in score_questions(self._config, item, mode)])
        verdicts = [rubric_verdict(spoken, mode, self._config.base_url, compared=compared) for spoken in said]
        return [
            judgment_of(self._of, item, candidate, verdict, spoken.latency, spoken.usage)
            for candidate, verdict, spoken in zip(item.candidates, verdicts, said, strict=True)
        ]

    async def _comparisons(self, item: JudgeItem, pairs: Sequence[tuple[int, int]]) -> list[Judgment]:
        compared = await _all([self._compare(item, pair) for pair in pairs])
        wins: dict[tuple[int, int], float] = {}
        for one in compared:
            a, b = one.pair
            if one.spoken:
                wins[a, b] = 0.5 if one.winner is None else float(one.winner == a)
                wins[b, a] = 1 - wins[a, b]
        # In a thread, so that the replies to other prompts are read meanwhile.
        count = len(item.candidates)
        found, orders = strengths(count, wins), await asyncio.to_thread(strength_orders, count, wins)
        judgments = []
        for k, verdict in enumerate(pairwise_verdicts(item, compared, found, orders)):
            # What a comparison takes is shared between the two.
            mine = [spoken for one in compared if k in one.pair for spoken in one.orders]
            latency, usage = sum(spoken.latency for spoken in mine) / 2, total(spoken.usage for spoken in mine)
            judgments.append(judgment_of(self._of, item, item.candidates[k], verdict, latency, usage.shared_by(2)))
        return judgments

    async def _compare(self, item: JudgeItem, pair: tuple[int, int]) -> Compared:
        questions = comparison_questions(self._config, item, pair)
        if not questions:  # two equal texts
            equal = Spoken(said=Said("tie"))
            return Compared(pair=pair, orders=(equal, equal))
        first, second = await _all([self._ask(question) for question in questions])
        return Compared(pair=pair, orders=(first, second))

    async def _orders(self, item: JudgeItem, mode: Listwise) -> list[Judgment]:
        count = len(item.candidates)
        asked = order_questions(self._config, item, mode)
        shown = [order for order, _ in asked]
        said = await _all([self._ask(question) for _, question in asked])
        ranked = [
            places([order[place] for place in spoken.verdict], count)
            for order, spoken in zip(shown, said, strict=True)
            if spoken.status == "ok"
        ]
        verdicts = listwise_verdicts(item, mode, shown, said, ranked)
        latency = sum(spoken.latency for spoken in said) / count
        usage = total(spoken.usage for spoken in said).shared_by(count)
        return [
            judgment_of(self._of, item, candidate, verdict, latency, usage)
            for candidate, verdict in zip(item.candidates, verdicts, strict=True)
        ]

    async def _ask(self, question: Question) -> Spoken:
        """Returns the model's verdict, asked for a second time if the first reply cannot be read."""
        latency, usage, reply = 0.0, NOTHING, None
        for again in (False, True):
            try:
                heard = await self._endpoint.ask(question.body(self._config, again=again), question.form(self._config))
            except TimedOutError as error:
                return Spoken(status="timed_out", reason=str(error), latency=latency, usage=usage)
            except TooLongError as error:
                return Spoken(status="too_long", reason=str(error), latency=latency, usage=usage)
            except RefusedError as error:
                return Spoken(status="refused", reason=str(error), latency=latency, usage=usage)
            reply = heard.reply
            latency, usage = latency + reply.latency, total([usage, self._usage(heard)])
            said = question.said(reply)
            if said is not None:
                return Spoken(said=said, reason=said.reason, reply=reply, latency=latency, usage=usage)
            if reply.refusal is not None:
                return Spoken(status="refused", reason=reply.refusal, reply=reply, latency=latency, usage=usage)
        why = f"two replies: {_why(reply, self._config)}"
        return Spoken(status="unparsable", reason=why, reply=reply, latency=latency, usage=usage)

    def _usage(self, heard: Heard) -> Usage:
        reply = heard.reply
        return usage_of_reply(reply.tokens_in, reply.tokens_out, cached=heard.cached, price=self._price)


def _harmless(config: LlmConfig) -> dict[str, Any]:
    """Builds a request of the judge's kind, with nothing in it that is too long or that anybody filters."""
    answers = [JudgedCandidate(index=index, text=text, finish_reason="stop") for index, text in enumerate(("4", "5"))]
    item = JudgeItem(prompt_id="", prompt_text="What is 2 + 2?", reference_answer="4", candidates=answers)
    match config.mode:
        case Rubric(scale=scale, score=score):
            question = rubric_question(config, item, answers[0], scale=scale, distribution=score == "expected")
        case Pairwise():
            question = pairwise_question(config, item, *answers)
        case Listwise():
            question = listwise_question(config, item, answers)
    return question.body(config, again=False)


def _why(reply: Reply | None, config: LlmConfig) -> str:
    """Says why a reply cannot be read."""
    if reply is not None and reply.finish_reason == "length":
        return f"cut at max_tokens {config.max_tokens}"
    return "not the form that was asked for"


async def _all(parts: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Returns what all parts return. If one fails, the others still end by themselves: their replies are kept."""
    results = await asyncio.gather(*parts, return_exceptions=True)
    failed = next((result for result in results if isinstance(result, BaseException)), None)
    if failed is not None:
        raise failed
    return [result for result in results if not isinstance(result, BaseException)]
