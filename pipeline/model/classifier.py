"""Whether a sequence classifier is all in its files: `transformers` fills in what is missing at random, and goes on."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NAMED = 3
"""Weights that a message names at most."""


def names_classifier(architectures: Sequence[str] | None) -> bool:
    """Says whether a configuration names a classifier as the checkpoint's class, and not a language model."""
    return any(name.endswith("ForSequenceClassification") for name in architectures or ())


def misfit(kind: str, loading: Mapping[str, Iterable[Any]], architectures: Sequence[str] | None) -> str | None:
    """Says what is wrong with the weights, in words and with the remedy; None if each was found, and each was used.

    Args:
        kind: the class that was to be loaded.
        loading: what ``from_pretrained`` says of it with ``output_loading_info``.
        architectures: as the checkpoint's configuration names them.
    """
    missing, unexpected = sorted(loading["missing_keys"]), sorted(loading["unexpected_keys"])
    if not (missing or unexpected):
        return None
    found = [f"lacks {_some(missing)} of a {kind}, which would be random at every start"] if missing else []
    found += [f"has {_some(unexpected)}, which a {kind} does not use"] if unexpected else []
    if names_classifier(architectures):
        remedy = "give a checkpoint whose weights have the names that save_pretrained gives them"
    else:
        named = ", ".join(architectures or ()) or "no class"
        remedy = f"its configuration names {named}: give a classifier, such as one that 'rondo train-judge' makes of it"
    return f"{' and '.join(found)}: {remedy}"


def too_many_tokens(model: Any, tokenizer: Any) -> str | None:
    """Says what is wrong if the tokenizer has ids that the model has no embedding for; None if it has all."""
    known = model.get_input_embeddings().num_embeddings
    largest = max([*tokenizer.get_vocab().values(), getattr(model.config, "pad_token_id", None) or 0])
    if largest < known:
        return None
    return (
        f"has token ids up to {largest} and embeddings up to {known - 1}: give the tokenizer that the model was "
        "trained with, or resize its embeddings (resize_token_embeddings) and save it again"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(f"'{name}'" for name in names[:NAMED]) + more
