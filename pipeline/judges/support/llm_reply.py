"""What a chat completion says, in the form in which it is kept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FILTERED = {"content_filter", "safety", "refusal", "prohibited_content", "blocklist", "sensitive", "recitation"}

TokenLogprobs = tuple[str, Mapping[str, float]]
"""A token that was written, and log-probabilities of it and of the likeliest ones in its place, in nats."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the model wrote, and what it cost.

    Args:
        content: None if it wrote nothing, as after a refusal; without a reasoning that comes apart from it.
        finish_reason: ``stop``, ``length`` if it was cut, or the endpoint's own word.
        tokens: each token that holds a digit, with its likeliest rivals, for only scores are weighed; None if none
            were asked for, or none given.
        spent: tokens read and written.
        tokens_in, tokens_out: the two apart, as the endpoint states them; None if it does not, or if the reply was kept
            by a version that did not ask.
        latency: seconds until it came; a reply from the cache has that of the first time.
        refusal: why the model, or a filter of the endpoint, gave no answer; None if it gave one.
    """

    content: str | None
    finish_reason: str
    tokens: list[TokenLogprobs] | None
    spent: int | None
    latency: float
    refusal: str | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None


@dataclass(frozen=True)
class Heard:
    """A reply, and whether it was there already: from the cache, or given to the same request just before."""

    reply: Reply
    cached: bool


def reply_of(completion: Mapping[str, Any], latency: float) -> Reply:
    """Reads the reply in a completion.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: it is no chat completion.
    """
    choice, usage = completion["choices"][0], completion.get("usage") or {}
    logprobs = (choice.get("logprobs") or {}).get("content")
    tokens: list[TokenLogprobs] | None = None
    if logprobs:
        tokens = [
            (entry["token"], {one["token"]: float(one["logprob"]) for one in (entry, *entry["top_logprobs"])})
            for entry in logprobs
            if any(character.isdigit() for character in entry["token"])
        ]
    message, finish_reason = choice["message"], str(choice.get("finish_reason"))
    content, refusal = _text(message.get("content")), message.get("refusal")
    if not refusal and finish_reason.lower() in _FILTERED:
        refusal = f"the endpoint ended the reply with {finish_reason}"
    return Reply(
        content=content,
        finish_reason=finish_reason,
        tokens=tokens,
        spent=usage.get("total_tokens"),
        latency=latency,
        refusal=str(refusal) if refusal else None,
        tokens_in=_count(usage.get("prompt_tokens")),
        tokens_out=_count(usage.get("completion_tokens")),
    )


def _count(stated: Any) -> int | None:
    """Returns a number of tokens; None for what is none, as no verdict should fail of it."""
    return stated if type(stated) is int and stated >= 0 else None


def _text(content: Any) -> str | None:
    """Returns what a message says; of one in parts its texts, without those that are reasoning.

    Raises:
        TypeError: it is no content of a message.
    """
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] in ("text", "output_text"))
    if content is not None and not isinstance(content, str):
        raise TypeError(f"the message's content is {content!r}")
    return content


def kept_reply(kept: Mapping[str, Any]) -> Reply:
    """Reads a reply that was kept as JSON."""
    tokens = kept["tokens"]
    return Reply(**{**kept, "tokens": None if tokens is None else [(token, rivals) for token, rivals in tokens]})
