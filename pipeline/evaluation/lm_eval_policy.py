"""A policy as lm-eval sees a language model: its requests go to the sampler that holds the policy.

This module needs the package ``lm-eval`` to be imported.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM

from pipeline.config import SamplingConfig
from pipeline.data.prompts import encode_prompt
from pipeline.data.sources import Prompt
from pipeline.data.special_tokens import Tokenizer
from pipeline.errors import EngineError
from pipeline.sampling import Sampler, SamplingRequest, finish

_TOKENS = 256
"""Most tokens of an answer of a task that names no limit, as in lm-eval's own models."""


class SamplerLM(TemplateLM):  # type: ignore[misc]
    """Scores continuations by the sampler's raw log-probabilities, and answers greedily.

    Args:
        sampler: holds the policy.
        tokenizer: the policy's.
        settings: greedy, one answer each; ``max_tokens`` is the most that an answer gets.
    """

    def __init__(self, sampler: Sampler, tokenizer: Tokenizer, settings: SamplingConfig) -> None:
        super().__init__()
        self._sampler, self.tokenizer, self._settings = sampler, tokenizer, settings

    @property
    def eot_token_id(self) -> int:
        """Returns the token that stands before a continuation without a context."""
        return int(self.tokenizer.eos_token_id)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encodes a text as the run's own prompts are."""
        if add_special_tokens is False:
            return list(self.tokenizer.encode(string, add_special_tokens=False))
        return encode_prompt(Prompt(string, None, "gate.tasks", "gate.tasks"), self.tokenizer)[1]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """Returns the log-probability of each continuation; whether it is the likeliest of all is not computed."""
        scores = self._sampler.score([(context, continuation) for _, context, continuation in requests])
        return [(sum(logps), False) for logps in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Is asked of no task that `pipeline.evaluation.gate_tasks` lets in."""
        raise EngineError("the gate's tasks ask for no likelihood of whole texts")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers greedily, and cuts an answer where a task's mark of its end begins.

        As in lm-eval's own models, an answer's text is that of its tokens alone.
        """
        contexts, limits = zip(*(request.args for request in requests), strict=True)
        tokens = min(self._settings.max_tokens, max(limit.get("max_gen_toks", _TOKENS) for limit in limits))
        asked = [
            SamplingRequest(str(place), self.tok_encode(context), seed=place) for place, context in enumerate(contexts)
        ]
        answers = finish(self._sampler.sample(asked, self._settings.model_copy(update={"max_tokens": tokens})))
        return [
            _until(self.tokenizer.decode(answer.token_ids, skip_special_tokens=True), limit.get("until") or ())
            for answer, limit in zip(answers, limits, strict=True)
        ]


def _until(text: str, marks: str | Sequence[str]) -> str:
    for mark in [marks] if isinstance(marks, str) else marks:
        text = text.split(mark)[0] if mark else text
    return text
