"""A reward model: a sequence classifier with one output, on prompt and answer."""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from pipeline.config import RewardModelJudge
from pipeline.errors import JudgeError
from pipeline.judges.base import JudgedCandidate, JudgeItem, Judgment


class RewardModel:
    """Scores are the classifier's raw output, of no fixed range.

    Where the classifier has a chat template, the conversation goes through it with the answer as the assistant's
    message (a text prompt is the user's message); else prompt and answer are joined as they are. What is longer
    than the classifier can read is not cut: its status says ``too_long``.
    """

    name = "reward_model"

    def __init__(self, config: RewardModelJudge, *, device: str = "cpu", threads: int = 1) -> None:
        self._config = config
        self._device = device
        self._threads = threads
        self._model, self._tokenizer = _load(config, device)
        self._pads_freely = self._model.config.pad_token_id is None
        self._context = _context(self._model, self._tokenizer)
        self.version = _version(self._model, config)

    def judge(self, items: Sequence[JudgeItem]) -> list[Judgment]:
        """Batches by length, so that little is padded; the latency of a judgment is its share of the batch's."""
        keys = [(item, candidate) for item in items for candidate in item.candidates]
        ids = [self._encode(item, candidate) for item, candidate in keys]
        fitting = [row for row in range(len(keys)) if len(ids[row]) <= self._context]
        fitting.sort(key=lambda row: (len(ids[row]), row))
        scores: dict[int, tuple[float, float]] = {}
        size = self._config.batch_size
        for start in range(0, len(fitting), size):
            rows = fitting[start : start + size]
            begin = time.perf_counter()
            outputs = self._forward([ids[row] for row in rows])
            seconds = (time.perf_counter() - begin) / len(rows)
            scores |= {row: (score, seconds) for row, score in zip(rows, outputs, strict=True)}
        return [
            self._judgment(item, candidate, len(ids[row]), scores.get(row))
            for row, (item, candidate) in enumerate(keys)
        ]

    def _judgment(
        self, item: JudgeItem, candidate: JudgedCandidate, length: int, scored: tuple[float, float] | None
    ) -> Judgment:
        score, seconds = scored or (None, 0.0)
        finite = score is not None and math.isfinite(score)
        too_long = f"{length} tokens, and the judge reads {self._context:.0f}" if score is None else None
        return Judgment(
            prompt_id=item.prompt_id,
            candidate=candidate.index,
            score=score if finite else None,
            rationale=too_long,
            judge=self.name,
            judge_version=self.version,
            status="too_long" if score is None else "ok" if finite else "non_finite",
            latency=seconds,
        )

    def _encode(self, item: JudgeItem, candidate: JudgedCandidate) -> list[int]:
        tokenizer = self._tokenizer
        if not tokenizer.chat_template:
            return list(tokenizer(item.prompt_text + candidate.text).input_ids)
        prompt = item.messages or [{"role": "user", "content": item.prompt_text}]
        messages = [*prompt, {"role": "assistant", "content": candidate.text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        # The template writes the special tokens itself: adding them again would double the first.
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    def _forward(self, rows: Sequence[Sequence[int]]) -> list[float]:
        longest = max(map(len, rows))
        padding = self._padding(rows)
        ids_B_T = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows])
        mask_B_T = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        threads = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            with torch.inference_mode():
                inputs = {"input_ids": ids_B_T.to(self._device), "attention_mask": mask_B_T.to(self._device)}
                scores_B = self._model(**inputs).logits.squeeze(-1)
        except RuntimeError as error:  # out of memory, and every other fault of the device
            raise JudgeError(
                f"the reward model '{self._config.path}' failed on {len(rows)} sequences of {longest} tokens: "
                f"lower judge.batch_size {self._config.batch_size} if memory ran out; {error}"
            ) from error
        finally:
            torch.set_num_threads(threads)
        return [float(score) for score in scores_B.float().cpu()]

    def _padding(self, rows: Sequence[Sequence[int]]) -> int:
        """The padding's id. The classifier reads its score at the last token that is not padding.

        Where its configuration names none, a token that is in none of the rows: with one that ends an answer
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


def _load(config: RewardModelJudge, device: str) -> tuple[Any, Any]:
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": False}
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            config.path, use_safetensors=True, dtype="auto", **options
        )
        tokenizer = AutoTokenizer.from_pretrained(config.path, **options)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise JudgeError(f"the reward model '{config.path}' cannot be loaded: check its path or id; {error}") from error
    if model.config.num_labels != 1:
        raise JudgeError(f"the classifier '{config.path}' has {model.config.num_labels} outputs: a reward model has 1")
    return model.to(device).eval(), tokenizer


def _context(model: Any, tokenizer: Any) -> float:
    """Most tokens that the classifier reads. Some count two positions more than they can use; the tokenizer knows."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return min(float(positions or math.inf), float(tokenizer.model_max_length))


def _version(model: Any, config: RewardModelJudge) -> str:
    """Hash of configuration and weights: the first 16 hexadecimal digits of a SHA-256."""
    digest = hashlib.sha256(json.dumps([config.path, version("transformers")]).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
