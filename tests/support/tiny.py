"""Tiny models with random weights, in the hub's format, for tests of every part that reads a checkpoint."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<s> {{ message['role'] }} : {{ message['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}<s> assistant : {% endif %}"
)
MARKS = ("<think>", "</think>")
THINKING_TEMPLATE = (
    f"{CHAT_TEMPLATE}{{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}}"
    "<think> </think> {% endif %}"
)
"""Thinks if it is not told otherwise: then it closes an empty thought before the answer begins."""
OPENING_TEMPLATE = f"{CHAT_TEMPLATE}{{% if add_generation_prompt %}}<think> {{% endif %}}"
"""Opens the thought itself, so that a completion begins within it."""


def tiny_tokenizer(
    vocab: int = 64, *, chat_template: bool = False, thinking: str | None = None
) -> PreTrainedTokenizerFast:
    """Words ``w0``, ``w1``, ... separated by spaces, behind four special tokens; ``vocab`` tokens in all.

    Args:
        thinking: the template of one with the tokens ``<think>`` and ``</think>``, which are added and not special.
    """
    chat_words = ("user", "assistant", "system", ":") if chat_template or thinking else ()
    words = [*SPECIAL_TOKENS, *chat_words, *(MARKS if thinking else ())]
    words += [f"w{index}" for index in range(vocab - len(words))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if thinking:
        tokenizer.add_tokens(list(MARKS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=thinking or (CHAT_TEMPLATE if chat_template else None),
    )


def tiny_llama(
    directory: Path,
    *,
    tied: bool = False,
    vocab: int = 64,
    seed: int = 0,
    context: int = 64,
    scale: float = 0.1,
    chat_template: bool = False,
    thinking: str | None = None,
) -> Path:
    """A Llama of two layers with random weights, saved with its tokenizer; returns the directory.

    Heads are 32 wide, the narrowest that vLLM's CPU attention takes. A larger ``scale`` (standard deviation
    of the weights) makes the distribution over tokens less uniform.
    """
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        initializer_range=scale,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tiny_tokenizer(vocab, chat_template=chat_template, thinking=thinking).save_pretrained(directory)
    return directory
