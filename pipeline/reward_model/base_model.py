"""What a reward model is fitted from: a checkpoint's tokenizer, and the checkpoint as a classifier."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

from pipeline.errors import ConfigError
from pipeline.judges.reward_model import MEAN_AND_LOG_STD, MEAN_AND_LOG_STD_LOGITS
from pipeline.model.checkpoint_files import check_source
from pipeline.model.classifier import misfit, names_classifier, too_many_tokens
from pipeline.reward_model.config import WITH_DEVIATION, RewardTrainingConfig


def load_tokenizer(base: str | Path) -> Any:
    """Loads the tokenizer of a base; ConfigError if there is none, or it has no padding token."""
    check_source(str(base), None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(base), trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"the base '{base}' has no tokenizer that can be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        raise ConfigError(
            f"the tokenizer of the base '{base}' has no padding token, which marks where an answer ends: set its "
            "pad_token, best to a token of its own, and save it again"
        )
    return tokenizer


def load_classifier(base: str | Path, tokenizer: Any, config: RewardTrainingConfig) -> Any:
    """Loads a base as a classifier with the outputs of the objective, in float32.

    Raises:
        ConfigError: it cannot be made one, its weights do not fit, or its tokenizer has more tokens than it.
    """
    labels: tuple[str, ...] = ("reward",)
    if config.objective in WITH_DEVIATION:
        labels = MEAN_AND_LOG_STD_LOGITS if in_logits(config) else MEAN_AND_LOG_STD
    loud = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that the head is new is no news; the rest is looked at below
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            str(base), num_labels=len(labels), dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            output_loading_info=True,
        )  # fmt: skip
    except Exception as error:
        raise ConfigError(
            f"the base '{base}' cannot be made a classifier with {len(labels)} outputs: give a checkpoint of a "
            f"language model, or a classifier with as many; {str(error).strip().splitlines()[0]}"
        ) from error
    finally:
        transformers_logging.set_verbosity(loud)
    architectures, body = model.config.architectures, f"{model.base_model_prefix}."
    if not names_classifier(architectures):  # of a language model the head is new, and its own has no use
        kept = ("missing_keys", "unexpected_keys")
        loading = {kind: [name for name in loading[kind] if name.startswith(body)] for kind in kept}
    faults = misfit(type(model).__name__, loading, architectures), too_many_tokens(model, tokenizer)
    if fault := next(filter(None, faults), None):
        raise ConfigError(f"the base '{base}' {fault}")
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: column for column, label in enumerate(labels)}
    return model


def in_logits(config: RewardTrainingConfig) -> bool:
    """Says whether the objective fixes the scale of rewards, so that their differences are in logits."""
    return config.objective == "expected_logistic"
