"""The same preferences through this update, through trl's DPOTrainer, and through a bare forward and backward pass.

Nothing here is a test; `bench_update.py` runs it. Times are processor seconds of this process, which has one thread:
what the clock on the wall would say on an idle machine, and what neighbours on a shared one disturb least.
"""

import contextlib
import copy
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1")

import datasets
import psutil
import torch
import transformers
import trl
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from pipeline.config import UpdateConfig
from pipeline.dpo.checks import check_inputs
from pipeline.dpo.gradients import accumulate_gradient
from pipeline.dpo.types import PreferenceGroup
from pipeline.dpo.update import RoundFacts, run_update
from pipeline.model.logprobs import sequence_logps
from pipeline.packing.attention import shared_prefix_attention
from pipeline.packing.packing import Pack, TokenGroup, pack_groups
from support.tiny import SPECIAL_TOKENS, tiny_tokenizer

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
datasets.disable_progress_bars()

EOS = SPECIAL_TOKENS.index("</s>")
SEED = 11
SETTINGS = UpdateConfig(learning_rate=1e-5)
"""Constant learning rate, AdamW without decay, gradients clipped at 1, packs of 4096 tokens, as in recipes."""


@dataclass(frozen=True)
class Shape:
    """A Llama with tied embeddings and heads of width 64."""

    hidden: int
    layers: int
    vocabulary: int

    def build(self) -> Any:
        torch.manual_seed(SEED)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocabulary,
                hidden_size=self.hidden,
                intermediate_size=self.hidden * 11 // 4,
                num_hidden_layers=self.layers,
                num_attention_heads=self.hidden // 64,
                num_key_value_heads=self.hidden // 64,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=EOS,
            )
        ).eval()


@dataclass(frozen=True)
class Lengths:
    """Tokens of every prompt, and of the shortest and the longest answer."""

    prompt: int
    shortest: int
    longest: int

    def __str__(self) -> str:
        answers = f"{self.shortest}-{self.longest}" if self.shortest < self.longest else f"{self.longest}"
        return f"{self.prompt} + {answers}"

    def preferences(self, count: int, candidates: int, vocabulary: int) -> list[PreferenceGroup]:
        """Random tokens; the reference is still to be filled in."""
        draw = random.Random(SEED)

        def ids(length: int) -> list[int]:
            return [draw.randrange(len(SPECIAL_TOKENS), vocabulary) for _ in range(length)]

        def answer() -> list[int]:
            return [*ids(draw.randint(self.shortest, self.longest) - 1), EOS]

        return [
            PreferenceGroup(
                prompt_id=f"prompt-{row}",
                prompt_token_ids=ids(self.prompt),
                candidate_token_ids=[answer() for _ in range(candidates)],
                reference_logps=[0.0] * candidates,
            )
            for row in range(count)
        ]


@dataclass(frozen=True)
class Seconds:
    """``step``: of an optimizer step, the mean from the end of the first to the end of the last.

    ``whole``: of an update from its first to its last line, with what surrounds the steps: for ours the checks before
    them and the log-probabilities after them, for trl the pass that computes the reference. ``model``: as it was left.
    """

    step: float
    whole: float
    model: Any


def with_reference(model: Any, groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """The groups as the sampler hands them over: with the log-probabilities of the policy that sampled them."""
    logps = sequence_logps(model, groups, SETTINGS.token_budget)
    return [replace(group, reference_logps=row) for group, row in zip(groups, logps, strict=True)]


class Clock(TrainerCallback):
    """Processor time at the end of each optimizer step."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.process_time())

    @property
    def mean_step(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def ours(model: Any, groups: Sequence[PreferenceGroup], settings: UpdateConfig) -> Seconds:
    model, clock = copy.deepcopy(model), Clock()
    started = time.process_time()
    run_update(model, groups, settings, seed=SEED, on_step=clock.on_step_end)
    return Seconds(clock.mean_step, time.process_time() - started, model)


def theirs(
    model: Any,
    groups: Sequence[PreferenceGroup],
    settings: UpdateConfig,
    *,
    micro_batch: int,
    answers_only: bool = False,
) -> Seconds:
    """trl's trainer on the pairs of the groups; ``micro_batch`` of them in one pass.

    ``answers_only`` lets it project the vocabulary where answers are predicted alone, as it does on a GPU.
    """
    with tempfile.TemporaryDirectory() as scratch, _answers_only(answers_only):
        clock = Clock()
        trainer = _trainer(copy.deepcopy(model), groups, settings, micro_batch, scratch, clock)
        started = time.process_time()
        trainer.train()
        return Seconds(clock.mean_step, time.process_time() - started + trainer.reference_seconds, trainer.model)


class TimedTrainer(trl.DPOTrainer):
    """Counts the time that its reference takes, which is computed when the trainer is made."""

    reference_seconds = 0.0

    def compute_ref_log_probs(self, *arguments: Any) -> Any:
        started = time.process_time()
        result = super().compute_ref_log_probs(*arguments)
        self.reference_seconds += time.process_time() - started
        return result


@contextlib.contextmanager
def _answers_only(wanted: bool) -> Iterator[None]:
    # The one question that this function answers where it is replaced is whether to leave out other positions.
    patch = mock.patch("trl.trainer.utils._use_triton", return_value=True)
    with patch if wanted else contextlib.nullcontext():
        yield


def _trainer(
    model: Any,
    groups: Sequence[PreferenceGroup],
    settings: UpdateConfig,
    micro_batch: int,
    scratch: str,
    clock: Clock,
) -> Any:
    pairs = [pair for group in groups for pair in pairs_of(group)]
    assert len(pairs) % micro_batch == 0, "another number of pairs would make a second, smaller step"
    arguments = trl.DPOConfig(
        output_dir=scratch,
        use_cpu=True,
        bf16=settings.precision == "bfloat16",
        beta=settings.beta,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=len(pairs) // micro_batch,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        max_length=None,
        dataloader_pin_memory=False,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
    )
    tokenizer = _tokenizer(model.config.vocab_size)
    texts = [{name: " ".join(tokenizer.convert_ids_to_tokens(ids)) + " " for name, ids in pair} for pair in pairs]
    for text in texts:  # it adds the end of an answer where the text does not close with it
        text.update(chosen=text["chosen"].rstrip(), rejected=text["rejected"].rstrip())
    trainer = TimedTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(texts),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    for row, pair in zip(trainer.train_dataset, pairs, strict=True):
        assert all(row[f"{name}_ids"] == list(ids) for name, ids in pair), "trl tokenised a text to other tokens"
    return trainer


@lru_cache
def _tokenizer(vocabulary: int) -> Any:
    return tiny_tokenizer(vocabulary)


def pairs_of(group: PreferenceGroup) -> list[tuple[tuple[str, Sequence[int]], ...]]:
    """Every pair of a ranking, best first."""
    return [
        (("prompt", group.prompt_token_ids), ("chosen", chosen), ("rejected", rejected))
        for chosen, rejected in combinations(group.candidate_token_ids, 2)
    ]


def gradient(model: Any, groups: Sequence[PreferenceGroup], settings: UpdateConfig) -> float:
    """Seconds of the forward and backward passes of one of our steps, packing included and the optimizer not."""
    model = copy.deepcopy(model)
    terms = check_inputs(groups, settings)
    with shared_prefix_attention(model):
        return _timed(lambda: accumulate_gradient(model, groups, terms, settings, step=0))


def floor(model: Any, groups: Sequence[TokenGroup], settings: UpdateConfig) -> float:
    """Seconds of bare passes over as many tokens: one plain causal row for each preference.

    The rows of a pass are equally long, so that nothing is padded, and the vocabulary is projected at as many
    positions as there are answer tokens.
    """
    model = copy.deepcopy(model)
    inputs = [_plain_rows(pack, model.config.vocab_size) for pack in pack_groups(groups, settings.token_budget)]
    device, bfloat16 = model.device.type, settings.precision == "bfloat16"

    def passes() -> None:
        for input_ids, target in inputs:
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
                logits = model.get_output_embeddings()(hidden[:, -target.shape[1] :])
            F.cross_entropy(logits.flatten(0, 1).float(), target.flatten()).backward()

    return _timed(passes)


def _plain_rows(pack: Pack, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = len(pack.groups)
    shapes = [(rows, -(-len(whole) // rows)) for whole in (pack.input_ids_T, pack.target_N)]
    generator = torch.Generator().manual_seed(SEED)
    inputs, targets = (torch.randint(vocabulary, shape, generator=generator) for shape in shapes)
    return inputs, targets


def _timed(work: Callable[[], object]) -> float:
    """Of the second time that the work is done: gradients then are in place, as in any step but the first."""
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


def peak_memory(side: str, shape: Shape, lengths: Lengths, pairs: int, settings: UpdateConfig) -> int:
    """Bytes by which the resident set of this process grows at most, from model and pairs in place to the end of
    an update. For a process of its own.
    """
    torch.set_num_threads(1)
    model = shape.build()
    groups = lengths.preferences(pairs, 2, shape.vocabulary)
    _tokenizer(shape.vocabulary)
    before = psutil.Process().memory_info().rss
    settings = settings.model_copy(update={"batch_size": pairs})
    if side == "ours":
        run_update(model, groups, settings, seed=SEED, facts=RoundFacts(reference_is_start=False))
    else:
        with tempfile.TemporaryDirectory() as scratch, _answers_only(side == "theirs, answers only"):
            _trainer(model, groups, settings, pairs, scratch, Clock()).train()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    return peak - before


def available_memory() -> int:
    """Bytes that this machine can give without swapping."""
    available: int = psutil.virtual_memory().available
    return available
