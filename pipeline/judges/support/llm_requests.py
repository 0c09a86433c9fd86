"""What a language model is asked about a prompt's candidates, in order, and what of it has a reply already."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.judges.base import JudgeConfig, JudgedCandidate, JudgeItem, ResponseCache, seen_by
from pipeline.judges.llm import Listwise, LlmConfig, Pairwise, Rubric
from pipeline.judges.support.comparisons import schedule, shuffles
from pipeline.judges.support.llm_questions import Question, listwise_question, pairwise_question, rubric_question
from pipeline.judges.support.llm_reply import kept_reply

_FORM = 1  # of what is kept of a reply: with another one nothing older is found


@dataclass(frozen=True)
class Requests:
    """Requests that judging would make of an endpoint, each once.

    Attributes:
        new: those that would be sent, and paid for. A reply that cannot be read is asked for once more, and what fails
            is tried again: these are not among them.
        cached: those whose reply is kept from an earlier time.
    """

    new: int
    cached: int


@dataclass
class RequestCounter:
    """Counts the requests of a judge, or of those that it is made of; a request that it has met counts no more."""

    cache: ResponseCache
    _met: set[str] = field(default_factory=set)

    def count(self, judge: JudgeConfig, items: Sequence[JudgeItem]) -> Requests | None:
        """Counts those of judging these items; None if no language model is asked."""
        models = [part for part in judge.parts() if isinstance(part, LlmConfig)]
        if not models:
            return None
        for outer in judge.parts():
            items = items if outer.MEMBER else seen_by(outer, items)  # what a judge of others sees, these see too
        kept = [
            is_kept
            for model in models
            for item in seen_by(model, items)
            for question in questions_of(model, item)
            for is_kept in self._are_kept(model, question)
        ]
        return Requests(new=kept.count(False), cached=kept.count(True))

    def _are_kept(self, model: LlmConfig, question: Question) -> list[bool]:
        """Says of each request that the question makes, and that was not met yet, whether its reply is kept."""
        said = []
        for again in (False, True):
            key, _ = keyed_request(model, question.body(model, again=again))
            kept = self.cache.get(key)
            if key not in self._met:
                self._met.add(key)
                said.append(kept is not None)
            reply = None if kept is None else kept_reply(kept)
            if reply is None or reply.refusal is not None or question.said(reply) is not None:
                break
        return said


def keyed_request(config: LlmConfig, body: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns a request with the recipe's further fields, and the key under which its reply is kept."""
    fields = {"model": config.model, **body, **config.extra_body}
    request = {name: value for name, value in fields.items() if value is not None}
    asked = {"form": _FORM, "url": config.base_url, "revision": config.revision, "body": request}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest(), request


def questions_of(config: LlmConfig, item: JudgeItem) -> list[Question]:
    """Lists the questions about a prompt's candidates, as `Interview` asks them."""
    match config.mode:
        case Rubric():
            return score_questions(config, item, config.mode)
        case Pairwise():
            pairs = pairs_of(item, config.mode)
            return [question for pair in pairs for question in comparison_questions(config, item, pair)]
        case Listwise():
            return [question for _, question in order_questions(config, item, config.mode)]


def score_questions(config: LlmConfig, item: JudgeItem, mode: Rubric) -> list[Question]:
    """Returns the question about each candidate by itself."""
    return [
        rubric_question(config, item, candidate, scale=mode.scale, distribution=mode.score == "expected")
        for candidate in item.candidates
    ]


def pairs_of(item: JudgeItem, mode: Pairwise) -> Sequence[tuple[int, int]]:
    """Lists the pairs of candidates that are compared, by their places; none of a single one."""
    count = len(item.candidates)
    return schedule(count, mode.opponents, _draws(mode, item)) if count > 1 else []


def comparison_questions(config: LlmConfig, item: JudgeItem, pair: tuple[int, int]) -> list[Question]:
    """Returns the questions about two candidates, in both orders; none if their texts are equal."""
    a, b = (item.candidates[k] for k in pair)
    shown: Sequence[tuple[JudgedCandidate, JudgedCandidate]] = () if a.text == b.text else ((a, b), (b, a))
    return [pairwise_question(config, item, *order) for order in shown]


def order_questions(config: LlmConfig, item: JudgeItem, mode: Listwise) -> list[tuple[list[int], Question]]:
    """Returns the orders in which all candidates are shown, by their places, each with its question."""
    count = len(item.candidates)
    orders = shuffles(count, mode.shuffles, _draws(mode, item)) if count > 1 else []
    return [(order, listwise_question(config, item, [item.candidates[k] for k in order])) for order in orders]


def _draws(mode: Pairwise | Listwise, item: JudgeItem) -> random.Random:
    """Makes the generator of a prompt's own draws, so that it does not matter in which shard it is."""
    return random.Random(f"{mode.seed}/{item.prompt_id}")  # noqa: S311  nothing here is secret
