"""The implicit reward of a policy: how much more probable than the reference it holds an answer."""

import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.errors import JudgeError
from pipeline.judges.base import (
    ON_CPU,
    JudgeConfig,
    JudgedCandidate,
    JudgeItem,
    Judgment,
    Resources,
    Verdict,
    judge_version,
    judgment_of,
)
from pipeline.judges.registry import judge

if TYPE_CHECKING:
    from pipeline.packing.packing import TokenGroup

TOKEN_BUDGET = 8192
"""Tokens of a forward pass, unless a single prompt with its candidates has more."""

Locate = Callable[[], Path]
"""Where a policy's whole checkpoint lies; asked when its weights are needed, and not before."""

PolicyName = Literal["latest", "initial"] | Annotated[int, Field(ge=0, le=999_999)]
"""A policy of the run: that which a round begins with, that of round 0, or that of a round by its number."""


class ImplicitConfig(JudgeConfig):
    """The implicit reward of a policy that preferences have trained: ``beta * log(policy / reference)``.

    Both are policies of the run. Of a run that begins they are one, and every reward is 0: fork from a round that
    another judge has trained.
    """

    MEMBER = False

    kind: Literal["implicit"]
    policy: PolicyName = Field("latest", description="whose reward it is: latest, initial, or the number of a round")
    reference: PolicyName = Field("initial", description="what it is held against: latest, initial, or a round")
    beta: float = Field(0.1, gt=0, le=1000, description="factor of the log-ratio, as in the update")
    length_penalty: float = Field(
        0.0, ge=0, le=1000, description="taken off for each token, in units of the reward, against longer completions"
    )

    @model_validator(mode="after")
    def _two_policies(self) -> "ImplicitConfig":
        if self.policy == self.reference or {self.policy, self.reference} == {"initial", 0}:
            raise ValueError(
                f"policy {self.policy} and reference {self.reference} are one, and every reward would be 0: name two"
            )
        return self

    @property
    def comes_early(self) -> bool:
        """Says no: the policy that it asks is the one that the round begins with."""
        return False

    def rounds(self, number: int) -> tuple[int, int]:
        """Returns the rounds that policy and reference come from when the answers of this round are judged.

        ``latest`` is the policy that the round begins with; of round 0, its own.
        """
        return _round(self.policy, number), _round(self.reference, number)


@judge(ImplicitConfig)
class ImplicitJudge:
    """``beta * (log policy(y|x) - log reference(y|x)) - length_penalty * |y|``, over the tokens as they were sampled.

    The reward that a DPO-trained policy stands for, up to a term of the prompt alone (arXiv:2305.18290, eq. 5); with
    the penalty of arXiv:2406.09760. Rewards of answers to one prompt can be compared, and so can means over prompts of
    rounds that the same two policies judge.

    One model is in memory, which takes the weights of both in turn.
    """

    name = "implicit"

    def __init__(self, config: ImplicitConfig, resources: Resources = ON_CPU) -> None:
        self._config, self._device, self._threads = config, resources.device, resources.threads
        self._model: Any = None
        self._in_place: str | None = None
        self._policies: dict[str, tuple[str, Locate]] = {}
        self.version = self._version()

    def use(self, policy: tuple[str, Locate], reference: tuple[str, Locate]) -> None:
        """Names the two policies of the judgments that follow, each by the hash of its weights and where they lie."""
        self._policies = {"policy": policy, "reference": reference}
        self.version = self._version(policy[0], reference[0])

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Scores each answer. Components: both log-probabilities, in nats, and the tokens of the answer.

        Raises:
            JudgeError: no policies were named, or items come without token ids.
            ConfigError, UnsupportedModelError, PromptTooLongError: a policy cannot be loaded, or reads fewer tokens.
        """
        if not self._policies:
            raise JudgeError("the implicit judge was asked before its two policies were named")
        groups = [_group(item) for item in items]
        start = time.perf_counter()
        logps = self._logps(groups)
        count = sum(len(item.candidates) for item in items)
        latency = (time.perf_counter() - start) / max(count, 1)
        judgments = []
        for place, item in enumerate(items):
            for k, candidate in enumerate(item.candidates):
                tokens = len(groups[place].candidate_token_ids[k])
                verdict = self._verdict({name: logps[name][place][k] for name in logps}, tokens)
                judgments.append(judgment_of(self, item, candidate, verdict, latency))
        return judgments

    def _verdict(self, logps: dict[str, float], tokens: int) -> Verdict:
        config = self._config
        score = config.beta * (logps["policy"] - logps["reference"]) - config.length_penalty * tokens
        named = {f"{name}_logp": value for name, value in logps.items()}
        return Verdict(score=score, components={**named, "tokens": float(tokens)})

    def _logps(self, groups: "Sequence[TokenGroup]") -> dict[str, list[list[float]]]:
        """Computes each answer's log-probability under both policies, beginning with the one that is loaded."""
        import torch

        from pipeline.model.logprobs import sequence_logps

        found: dict[str, list[list[float]]] = {}
        by_hash: dict[str, list[list[float]]] = {}
        budget = max([TOKEN_BUDGET, *(group.packed_tokens for group in groups)])
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            for name in sorted(self._policies, key=lambda name: self._policies[name][0] != self._in_place):
                weights, locate = self._policies[name]
                if weights not in by_hash:
                    self._load(weights, locate)
                    by_hash[weights] = sequence_logps(self._model, groups, budget)
                found[name] = by_hash[weights]
        finally:
            torch.set_num_threads(threads)
        return found

    def _load(self, weights: str, locate: Locate) -> None:
        from pipeline.model.check import check_model
        from pipeline.model.policy import load_policy, load_weights

        if self._in_place == weights:
            return
        self._in_place = None
        if self._model is None:
            model, _ = load_policy(locate(), device=self._device)
            check_model(model)
            self._model = model
        else:
            load_weights(self._model, locate())
        self._in_place = weights

    def _version(self, *policies: str) -> str:
        return judge_version(self._config, version("transformers"), version("torch"), policies)


def _group(item: JudgeItem) -> "TokenGroup":
    from pipeline.packing.packing import TokenGroup

    if item.prompt_token_ids is None or any(candidate.token_ids is None for candidate in item.candidates):
        raise JudgeError(f"prompt {item.prompt_id} comes without token ids, which the implicit judge reads")
    return TokenGroup(item.prompt_id, item.prompt_token_ids, [_ids(candidate) for candidate in item.candidates])


def _ids(candidate: JudgedCandidate) -> Sequence[int]:
    assert candidate.token_ids is not None
    return candidate.token_ids


def _round(name: PolicyName, number: int) -> int:
    if name == "latest":
        return max(number - 1, 0)
    return 0 if name == "initial" else name
