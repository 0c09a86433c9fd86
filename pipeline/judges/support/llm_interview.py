"""Asks a language model about the candidates of prompts, side by side, and turns its replies into judgments."""

import asyncio
import json
import random
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.errors import JudgeError
from pipeline.judges.base import Judge, JudgeItem, Judgment, ResponseCache, Status, Verdict, judgment_of
from pipeline.judges.llm import Listwise, LlmConfig, Pairwise, Rubric
from pipeline.judges.support.comparisons import places, schedule, shuffles, strengths
from pipeline.judges.support.llm_endpoint import Endpoint, Reply, TimedOutError, TooLongError
from pipeline.judges.support.llm_questions import (
    Question,
    expected_score,
    listwise_question,
    pairwise_question,
    rubric_question,
)

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """The model's verdict on a question; none unless the status is ok."""

    verdict: Any = None
    status: Status = "ok"
    reason: str | None = None
    reply: Reply | None = None
    latency: float = 0.0

    @property
    def raw(self) -> str | None:
        return None if self.reply is None else self.reply.content


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Two candidates by their places, and what was said of them with either first."""

    pair: tuple[int, int]
    orders: tuple[Spoken, Spoken]

    @property
    def spoken(self) -> bool:
        return all(spoken.status == "ok" for spoken in self.orders)

    @property
    def flipped(self) -> bool:
        return self.spoken and self._winners[0] != self._winners[1]

    @property
    def winner(self) -> int | None:
        """The place of the better one; None for a tie, and where the verdict turns with the order."""
        return None if self.flipped else self._winners[0]

    @property
    def _winners(self) -> tuple[int | None, int | None]:
        a, b = self.pair
        first, second = self.orders
        return {"A": a, "B": b}.get(first.verdict), {"A": b, "B": a}.get(second.verdict)


class Interview:
    """Judgments of a language model, in the name of a judge."""

    def __init__(self, of: Judge, config: LlmConfig, cache: ResponseCache | None) -> None:
        self._of, self._config = of, config
        self._endpoint = Endpoint(config, cache)

    @property
    def requests(self) -> int:
        """Requests that were sent so far."""
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
            return [judgment_of(self._of, item, candidate, alone, 0.0) for candidate in item.candidates]
        # Each prompt draws by itself, so that it does not matter in which shard it is.
        rng = random.Random(f"{mode.seed}/{item.prompt_id}")  # noqa: S311  nothing here is secret
        if isinstance(mode, Pairwise):
            return await self._comparisons(item, schedule(len(item.candidates), mode.opponents, rng))
        return await self._orders(item, mode, rng)

    async def _scores(self, item: JudgeItem, mode: Rubric) -> list[Judgment]:
        expected = mode.score == "expected"
        questions = [
            rubric_question(self._config, item, candidate, scale=mode.scale, distribution=expected)
            for candidate in item.candidates
        ]
        said = await _all([self._ask(question) for question in questions])
        return [
            judgment_of(self._of, item, candidate, self._score(spoken, mode), spoken.latency)
            for candidate, spoken in zip(item.candidates, said, strict=True)
        ]

    def _score(self, spoken: Spoken, mode: Rubric) -> Verdict:
        written, reply = spoken.verdict, spoken.reply
        if spoken.status != "ok" or reply is None:
            return Verdict(score=None, status=spoken.status, rationale=spoken.reason, raw=spoken.raw)
        if mode.score == "parsed":
            return Verdict(score=float(written), rationale=spoken.reason, raw=reply.content)
        if reply.tokens is None:
            raise JudgeError(
                f"{self._config.base_url} gives no log-probabilities, from which the expected score is taken: set "
                "judge.mode to {kind: rubric, score: parsed}"
            )
        found = expected_score(reply.tokens, written, mode.scale)
        if found is None:
            reason = "the score is no token of its own"
            return Verdict(score=None, status="unparsable", rationale=reason, raw=reply.content)
        mean, std, mass = found
        components = {"written": float(written), "mass": mass}
        return Verdict(score=mean, score_std=std, components=components, rationale=spoken.reason, raw=reply.content)

    async def _comparisons(self, item: JudgeItem, pairs: Sequence[tuple[int, int]]) -> list[Judgment]:
        compared = await _all([self._compare(item, pair) for pair in pairs])
        wins: dict[tuple[int, int], float] = {}
        for one in compared:
            a, b = one.pair
            if one.spoken:
                wins[a, b] = 0.5 if one.winner is None else float(one.winner == a)
                wins[b, a] = 1 - wins[a, b]
        means, stds = strengths(len(item.candidates), wins)
        judgments = []
        for k, candidate in enumerate(item.candidates):
            mine = [one for one in compared if k in one.pair]
            verdict = _standing(item, k, mine, float(means[k]), float(stds[k]))
            # The time of a comparison is shared between the two.
            latency = sum(spoken.latency for one in mine for spoken in one.orders) / 2
            judgments.append(judgment_of(self._of, item, candidate, verdict, latency))
        return judgments

    async def _compare(self, item: JudgeItem, pair: tuple[int, int]) -> _Comparison:
        a, b = (item.candidates[k] for k in pair)
        if a.text == b.text:
            equal = Spoken(verdict="tie")
            return _Comparison(pair=pair, orders=(equal, equal))
        orders = [pairwise_question(self._config, item, *shown) for shown in ((a, b), (b, a))]
        first, second = await _all([self._ask(question) for question in orders])
        return _Comparison(pair=pair, orders=(first, second))

    async def _orders(self, item: JudgeItem, mode: Listwise, rng: random.Random) -> list[Judgment]:
        count = len(item.candidates)
        shown = shuffles(count, mode.shuffles, rng)
        questions = [listwise_question(self._config, item, [item.candidates[k] for k in order]) for order in shown]
        said = await _all([self._ask(question) for question in questions])
        scores = [
            places([order[place] for place in spoken.verdict], count)
            for order, spoken in zip(shown, said, strict=True)
            if spoken.status == "ok"
        ]
        raw = json.dumps([{"shown": order, "reply": spoken.raw} for order, spoken in zip(shown, said, strict=True)])
        latency = sum(spoken.latency for spoken in said) / count
        return [
            judgment_of(
                self._of, item, candidate, _mean_place([found[k] for found in scores], mode, said, raw), latency
            )
            for k, candidate in enumerate(item.candidates)
        ]

    async def _ask(self, question: Question) -> Spoken:
        """The model's verdict, asked for a second time where the first reply cannot be read."""
        latency, reply = 0.0, None
        for again in (False, True):
            try:
                reply = await self._endpoint.ask(question.body(self._config, again=again))
            except TimedOutError as error:
                return Spoken(status="timed_out", reason=str(error), latency=latency)
            except TooLongError as error:
                return Spoken(status="too_long", reason=str(error), latency=latency)
            latency += reply.latency
            verdict, reason = question.verdict(reply)
            if verdict is not None:
                return Spoken(verdict=verdict, reason=reason, reply=reply, latency=latency)
        cut = reply is not None and reply.finish_reason == "length"
        reason = f"cut at max_tokens {self._config.max_tokens}" if cut else "not the form that was asked for"
        return Spoken(status="unparsable", reason=f"two replies: {reason}", reply=reply, latency=latency)


def _standing(item: JudgeItem, k: int, mine: Sequence[_Comparison], mean: float, std: float) -> Verdict:
    """What a candidate's comparisons come to."""
    spoken = [one for one in mine if one.spoken]
    wins = sum(one.winner == k for one in spoken)
    ties = sum(one.winner is None for one in spoken)
    components = {
        "comparisons": len(spoken), "wins": wins, "losses": len(spoken) - wins - ties, "ties": ties,
        "flips": sum(one.flipped for one in spoken), "unspoken": len(mine) - len(spoken),
    }  # fmt: skip
    raw = json.dumps([
        {
            "candidates": [item.candidates[place].index for place in one.pair],
            "replies": [order.raw for order in one.orders],
        }
        for one in mine
    ])  # fmt: skip
    floats = {name: float(value) for name, value in components.items()}
    if spoken:
        return Verdict(score=mean, score_std=std, components=floats, raw=raw)
    failed = next(order for one in mine for order in one.orders if order.status != "ok")
    return Verdict(score=None, status=failed.status, components=floats, rationale=failed.reason, raw=raw)


def _mean_place(found: Sequence[float], mode: Listwise, said: Sequence[Spoken], raw: str) -> Verdict:
    components: Mapping[str, float] = {"orders": float(len(found)), "unspoken": float(len(said) - len(found))}
    # An order that one of two shuffles gives has no spread that could be seen: it is no verdict of this judge.
    if len(found) < min(2, mode.shuffles):
        failed = next(spoken for spoken in said if spoken.status != "ok")
        return Verdict(score=None, status=failed.status, components=components, rationale=failed.reason, raw=raw)
    mean = sum(found) / len(found)
    std = (sum((place - mean) ** 2 for place in found) / (len(found) - 1)) ** 0.5 if len(found) > 1 else None
    reason = next((spoken.reason for spoken in said if spoken.status == "ok"), None)
    return Verdict(score=mean, score_std=std, components=components, rationale=reason, raw=raw)


async def _all(parts: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """What all parts return. If one fails, the others still end by themselves: their replies are kept."""
    results = await asyncio.gather(*parts, return_exceptions=True)
    failed = next((result for result in results if isinstance(result, BaseException)), None)
    if failed is not None:
        raise failed
    return [result for result in results if not isinstance(result, BaseException)]
