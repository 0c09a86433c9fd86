"""The supervised warm start: a small Llama-shaped policy, trained from scratch on a generated corpus.

The tokenizer is a byte-level BPE without a beginning-of-sequence token: it is exact for any text, no token
crosses from a prompt into its answer, and digits stand alone. Embeddings are not tied to the output head,
since a sampler on CPU would keep the old head after a reload of tied weights. Left out: validation,
checkpoints, schedules to choose from; a warm start takes seconds, and is made again if it is lost.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline.config import WarmStartPolicy
from pipeline.data.corpora import TEXT_CORPORA
from pipeline.errors import ConfigError, NonFiniteError
from pipeline.model.policy import save_policy
from pipeline.records import content_id

END, PAD = "<|end|>", "<|pad|>"
SMALLEST_VOCABULARY = 256 + 2
"""All bytes, the end of a sequence and the padding."""

_RECIPE_VERSION = 1  # raise it when a change below changes the weights that come out
_WARMUP_SHARE = 0.05
_BUCKET_BATCHES = 16
_MAX_GRAD_NORM = 1.0
_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class WarmStartReport:
    """What a warm start did. Losses are in nats per token, over prompt and answer."""

    steps: int
    first_loss: float
    last_loss: float
    parameters: int
    vocabulary: int
    tokens: int


def warm_start_digest(config: WarmStartPolicy, *, threads: int = 1, device: str = "cpu") -> str:
    """Names a warm start's result: what has the same digest has the same weights.

    It covers the recipe, the corpus (a sample of its texts), the libraries that compute, threads and device.
    """
    libraries = {name: version(name) for name in ("tokenizers", "torch", "transformers")}
    sample = TEXT_CORPORA[config.corpus].texts(256, config.seed)
    return content_id([_RECIPE_VERSION, config.model_dump(), sample, libraries, threads, device])


def train_warm_start(
    config: WarmStartPolicy,
    directory: Path,
    *,
    threads: int = 1,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> WarmStartReport:
    """Trains the policy of this recipe, and saves model and tokenizer to a directory in the hub's format.

    The same recipe and number of threads give the same weights to the bit on CPU. ``on_step`` is called after
    each optimizer step with its number, from 1, and its loss in nats per token.

    Raises:
        ConfigError: the vocabulary cannot hold all bytes, or a text is longer than the context.
        NonFiniteError: the loss is no longer finite.
    """
    texts = TEXT_CORPORA[config.corpus].texts(config.examples, config.seed)
    tokenizer = _train_tokenizer(texts, config)
    sequences = _tokenize(texts, tokenizer, config)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = _build_model(config, tokenizer).to(device)
        losses, tokens = _fit(model, sequences, config, tokenizer.pad_token_id, on_step)
    finally:
        torch.set_num_threads(before)
    save_policy(model.to("cpu"), tokenizer, directory)
    return WarmStartReport(
        steps=config.steps,
        first_loss=losses[0],
        last_loss=losses[-1],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        vocabulary=len(tokenizer),
        tokens=tokens,
    )


def _train_tokenizer(texts: Sequence[tuple[str, str]], config: WarmStartPolicy) -> PreTrainedTokenizerFast:
    if config.vocabulary < SMALLEST_VOCABULARY:
        raise ConfigError(
            f"policy.vocabulary {config.vocabulary} cannot hold the 256 bytes and 2 special tokens: "
            f"raise it to {SMALLEST_VOCABULARY} or more"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((prompt + answer for prompt, answer in texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=config.context,
        padding_side="left",
    )


def _tokenize(
    texts: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerFast, config: WarmStartPolicy
) -> list[list[int]]:
    """Encodes prompt, answer and end, tokenised apart as the sampler will see them."""
    prompts = tokenizer([prompt for prompt, _ in texts]).input_ids
    answers = tokenizer([answer for _, answer in texts]).input_ids
    end = tokenizer.eos_token_id
    sequences = [[*left, *right, end] for left, right in zip(prompts, answers, strict=True)]
    longest = max(map(len, sequences))
    if longest > config.context:
        raise ConfigError(
            f"a text of '{config.corpus}' has {longest} tokens, and policy.context is {config.context}: "
            f"raise it, or raise policy.vocabulary {config.vocabulary}, which makes texts shorter"
        )
    return sequences


def _build_model(config: WarmStartPolicy, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    # Texts are short: the plain product is faster here than the fused kernels, forward and backward.
    return LlamaForCausalLM._from_config(llama, attn_implementation="eager")


def _fit(
    model: LlamaForCausalLM,
    sequences: Sequence[Sequence[int]],
    config: WarmStartPolicy,
    padding: int,
    on_step: Callable[[int, float], None] | None,
) -> tuple[list[float], int]:
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01, betas=(0.9, 0.95), fused=True)
    batches = _batches(sequences, config)
    losses: list[float] = []
    tokens = 0
    model.train()
    for step in range(1, config.steps + 1):
        rows = next(batches)
        loss = _loss(model, rows, padding)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise NonFiniteError(f"the warm start's loss is {losses[-1]} at step {step}: lower policy.learning_rate")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _learning_rate_factor(step, config.steps)
        optimizer.step()
        tokens += sum(map(len, rows))
        if on_step is not None:
            on_step(step, losses[-1])
    return losses, tokens


def _batches(sequences: Sequence[Sequence[int]], config: WarmStartPolicy) -> Iterator[list[Sequence[int]]]:
    """Yields batches without end: shuffled passes; batches of like lengths, so that little is padded."""
    generator = torch.Generator().manual_seed(config.seed)
    pending: list[int] = []
    size = min(config.batch_size, len(sequences))
    while True:
        while len(pending) < size * _BUCKET_BATCHES:
            pending += torch.randperm(len(sequences), generator=generator).tolist()
        window, pending = pending[: size * _BUCKET_BATCHES], pending[size * _BUCKET_BATCHES :]
        window.sort(key=lambda row: (len(sequences[row]), row))
        for batch in torch.randperm(_BUCKET_BATCHES, generator=generator).tolist():
            yield [sequences[row] for row in window[batch * size : (batch + 1) * size]]


def _loss(model: LlamaForCausalLM, rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Computes the mean negative log-likelihood in nats per token.

    Padding stands at the right: under causal attention no earlier token sees it, so that no mask is needed.
    """
    longest = max(map(len, rows))
    ids_B_T = torch.tensor([[*row, *[padding] * (longest - len(row))] for row in rows], device=model.device)
    logits_B_T_V = model(input_ids=ids_B_T[:, :-1], use_cache=False).logits
    targets_B_T = ids_B_T[:, 1:].masked_fill(ids_B_T[:, 1:] == padding, _IGNORED)
    return cross_entropy(logits_B_T_V.flatten(0, 1), targets_B_T.flatten(), ignore_index=_IGNORED)


def _learning_rate_factor(step: int, steps: int) -> float:
    """Rises linearly over the first twentieth of the steps, then falls linearly, to zero just after the last one."""
    warmup = max(1, round(_WARMUP_SHARE * steps))
    return min(step / warmup, (steps - step + 1) / max(1, steps - warmup))
