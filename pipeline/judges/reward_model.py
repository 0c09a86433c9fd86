"""A reward model: a sequence classifier on prompt and answer, with one output or several."""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config
from pipeline.errors import DataError, JudgeError
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

MEAN_AND_LOG_STD = ("mean", "log_std")
"""Labels of a classifier that is sure of its scores or not: each has a mean, and a logarithm of its deviation."""
MEAN_AND_LOG_STD_LOGITS = ("mean_logit", "log_std_logit")
"""The same of one whose differences are in logits: of two exact scores the better one wins with ``sigmoid(d)``."""
_WITH_STD = (MEAN_AND_LOG_STD, MEAN_AND_LOG_STD_LOGITS)
_LOGISTIC_STD = 1.702
"""``sigmoid(x)`` is ``Phi(x / 1.702)`` to within 0.0095 (Haley 1952): the deviation of a logistic choice."""
_LARGEST_EXPONENT = 700.0


class Head(Config):
    """One output of a classifier that has several."""

    name: str = Field(min_length=1, max_length=100, description="name among the components; the model's label for it")
    output: int | None = Field(None, ge=0, description="its number, from 0; found by the model's label if empty")
    weight: float = Field(1.0, ge=-1000, le=1000, description="weight in the score")


class RewardModelConfig(JudgeConfig):
    """A sequence classifier, applied to prompt and completion: its one output, or a weighted sum of named ones."""

    kind: Literal["reward_model"]
    path: str = Field(min_length=1, description="local directory, or id on the model hub")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    heads: tuple[Head, ...] = Field((), description="the outputs that count, if the classifier has several")
    without_template: bool = Field(
        False, description="join prompt and completion as they are, in place of the classifier's chat template"
    )
    gives_std: bool = Field(
        False,
        description="it was trained to state standard deviations (train-judge --objective thurstone, or "
        "expected_logistic)",
    )
    batch_size: int = Field(16, ge=1, le=4096, description="sequences per forward pass")

    OPERATIONAL = JudgeConfig.OPERATIONAL | {"batch_size", "gives_std"}

    @property
    def states_uncertainty(self) -> bool:
        return self.gives_std

    @model_validator(mode="after")
    def _heads_differ(self) -> "RewardModelConfig":
        names = [head.name for head in self.heads]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two heads are named '{twice}': give each a name of its own")
        return self


@dataclass(frozen=True)
class _Output:
    """One output of the classifier that counts: its name among the components, its column, and its weight."""

    name: str
    column: int
    weight: float


@judge(RewardModelConfig)
class RewardModelJudge:
    """The classifier's raw output, of no fixed range; with several, the weighted sum of those that the recipe names.

    A classifier with the labels `MEAN_AND_LOG_STD`, as ``rondo train-judge`` makes them, gives the mean and states the
    standard deviation, unless the recipe names outputs. With `MEAN_AND_LOG_STD_LOGITS` it adds to each deviation half
    of the variance of a logistic choice, so that ``Phi`` of two scores is the probability that was fitted.

    Where the classifier has a chat template, the conversation goes through it with the answer as the assistant's
    message (a text prompt is the user's message). Without one, or where the recipe says so, prompt and answer are
    joined as they are; a conversation then has the policy's template around it, so that this has to be asked for.
    What is longer than the classifier can read is not cut: its status says ``too_long``.
    """

    name = "reward_model"

    def __init__(self, config: RewardModelConfig, resources: Resources = ON_CPU) -> None:
        self._config = config
        self._device, self._threads = resources.device, resources.threads
        self._of = f"the reward model '{config.path}'"
        self._model, self._tokenizer = _load(config, resources.device)
        self._outputs = _outputs(self._model, config)
        self._states_std = not config.heads and _labels(self._model) in _WITH_STD
        self._in_logits = _labels(self._model) == MEAN_AND_LOG_STD_LOGITS
        self._pads_freely = self._model.config.pad_token_id is None
        self._context = _context(self._model, self._tokenizer)
        self.version = judge_version(config, version("transformers"), _weights_digest(self._model))

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Judges in batches by length, so that little is padded; the latency of a judgment is its share of the batch's.

        Components: each output by its name, if the recipe names outputs.

        Raises:
            JudgeError: out of memory; or conversations, and the classifier has no chat template.
        """
        keys = [(item, candidate) for item in items for candidate in item.candidates]
        ids = [
            encode(self._tokenizer, item, candidate, without_template=self._config.without_template, of=self._of)
            for item, candidate in keys
        ]
        fitting = [row for row in range(len(keys)) if len(ids[row]) <= self._context]
        fitting.sort(key=lambda row: (len(ids[row]), row))
        scored: dict[int, tuple[list[float], float]] = {}
        size = self._config.batch_size
        for start in range(0, len(fitting), size):
            rows = fitting[start : start + size]
            begin = time.perf_counter()
            logits = self._forward([ids[row] for row in rows])
            seconds = (time.perf_counter() - begin) / len(rows)
            scored |= {row: (values, seconds) for row, values in zip(rows, logits, strict=True)}
        judgments = []
        for row, (item, candidate) in enumerate(keys):
            values, seconds = scored.get(row, (None, 0.0))
            judgments.append(judgment_of(self, item, candidate, self._verdict(values, len(ids[row])), seconds))
        return judgments

    def _verdict(self, values: list[float] | None, length: int) -> Verdict:
        if values is None:
            reason = f"{length} tokens, and the judge reads {self._context:.0f}"
            return Verdict(score=None, status="too_long", rationale=reason)
        score = sum(output.weight * values[output.column] for output in self._outputs)
        named = {output.name: values[output.column] for output in self._outputs} if self._config.heads else {}
        std = math.exp(min(values[1], _LARGEST_EXPONENT)) if self._states_std else None
        if std is not None and self._in_logits:
            std = math.hypot(std, _LOGISTIC_STD / math.sqrt(2))
        return Verdict(score=score, score_std=std, components=named)

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        import torch

        longest = max(map(len, rows))
        padding = self._padding(rows)
        ids_B_T = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
        mask_B_T = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                inputs = {"input_ids": ids_B_T.to(self._device), "attention_mask": mask_B_T.to(self._device)}
                logits_B_H = self._model(**inputs).logits
        except RuntimeError as error:  # out of memory, and every other fault of the device
            raise JudgeError(
                f"the reward model '{self._config.path}' failed on {len(rows)} sequences of {longest} tokens: "
                f"lower judge.batch_size {self._config.batch_size} if memory ran out; {error}"
            ) from error
        finally:
            torch.set_num_threads(threads)
        return [[float(value) for value in row] for row in logits_B_H.float().cpu()]

    def _padding(self, rows: Sequence[Sequence[int]]) -> int:
        """Returns the padding's id. The classifier reads its score at the last token that is not padding.

        If its configuration names none, it is a token that is in none of the rows. With one that ends an answer
        (the end of a sequence is often taken) the score would be read too early.
        """
        named = self._model.config.pad_token_id
        if named is not None and not self._pads_freely:
            return int(named)
        used = set().union(*rows)
        free = next((token for token in range(self._model.config.vocab_size) if token not in used), None)
        if free is None:
            raise JudgeError(
                f"the reward model '{self._config.path}' has no padding token, and {len(rows)} sequences leave "
                "none of its tokens free to stand in: lower judge.batch_size"
            )
        self._model.config.pad_token_id = free
        return free


def encode(
    tokenizer: Any, item: JudgeItem, candidate: JudgedCandidate, *, without_template: bool, of: str
) -> list[int]:
    """Encodes what a classifier reads of a prompt and an answer; special tokens spelled in them stay text.

    Raises:
        JudgeError: it is a conversation, and the tokenizer has no chat template, or one that refuses it; ``of`` says in
            words whose it is.
    """
    from pipeline.data.chat_template import encode_conversation, encode_joined

    if without_template or not (tokenizer.chat_template or item.messages):
        return encode_joined(
            tokenizer, item.prompt_text, item.messages, candidate.text, read_special_tokens=item.read_special_tokens
        )
    if not tokenizer.chat_template:
        raise JudgeError(
            f"{of} has no chat template, and prompt {item.prompt_id} is a conversation: add its template to the "
            "tokenizer's directory, or, if the model reads plain text in the policy's own template, set "
            "judge.without_template"
        )
    prompt = item.messages or [{"role": "user", "content": item.prompt_text}]
    messages = [*prompt, {"role": "assistant", "content": candidate.text}]
    try:
        return encode_conversation(tokenizer, messages, of=of, add_generation_prompt=False)[1]
    except DataError as error:
        raise JudgeError(f"prompt {item.prompt_id}: {error}") from error


def _load(config: RewardModelConfig, device: str) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from pipeline.model.classifier import misfit, too_many_tokens

    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            config.path, use_safetensors=True, dtype="auto", output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(config.path, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise JudgeError(f"the reward model '{config.path}' cannot be loaded: check its path or id; {error}") from error
    faults = misfit(type(model).__name__, loading, model.config.architectures), too_many_tokens(model, tokenizer)
    if fault := next(filter(None, faults), None):
        raise JudgeError(f"the reward model '{config.path}' {fault}")
    return model.to(device).eval(), tokenizer


def _context(model: Any, tokenizer: Any) -> float:
    """Returns the most tokens that the classifier reads. Some claim two more than they can use: see the tokenizer."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(float(positions or math.inf), float(tokenizer.model_max_length))


def _outputs(model: Any, config: RewardModelConfig) -> list[_Output]:
    """Returns the outputs that count.

    Raises:
        JudgeError: the classifier has several, and the recipe names none; or it has none of that name or number.
    """
    count = model.config.num_labels
    labels = {str(label): int(column) for column, label in model.config.id2label.items()}
    states_std = _labels(model) in _WITH_STD and not config.heads
    if config.gives_std and not states_std:
        raise JudgeError(
            f"judge.gives_std is set, and the outputs of the classifier '{config.path}' that count are not "
            f"{' and '.join(MEAN_AND_LOG_STD)}: leave it out, or train one with --objective thurstone, or "
            "expected_logistic"
        )
    if not config.heads:
        if count != 1 and not states_std:
            raise JudgeError(
                f"the classifier '{config.path}' has {count} outputs ({', '.join(labels)}): name those that count, and "
                "their weights, in judge.heads"
            )
        return [_Output("", 0, 1.0)]
    found = []
    for head in config.heads:
        column = labels.get(head.name) if head.output is None else head.output
        if column is None or column >= count:
            wanted = f"named '{head.name}'" if head.output is None else f"number {head.output}"
            raise JudgeError(
                f"the classifier '{config.path}' has no output {wanted}: it has {count} ({', '.join(labels)}), from 0"
            )
        found.append(_Output(head.name, column, head.weight))
    return found


def _labels(model: Any) -> tuple[str, ...]:
    return tuple(str(model.config.id2label[column]) for column in sorted(model.config.id2label))


def _weights_digest(model: Any) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
