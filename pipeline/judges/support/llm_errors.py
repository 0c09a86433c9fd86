"""What an endpoint means by an error: this request alone, the recipe as a whole, or that it should be asked later.

Providers agree on a status and on little else. So codes and types are read first, and the words of their messages
if they say nothing. What neither tells apart stays unknown, and whoever asks finds out.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal

Meaning = Literal["too_long", "refused", "recipe", "later", "unknown"]
"""What an error means, in this order: the request is longer than the model reads. Its content is not answered. No
request of this recipe will be. The same request may be answered later. It cannot be told whether the error is of this
request or of the recipe."""

_TOO_LONG_CODES = re.compile(r"context_(length|window)|exceed_context|too_long|too_large|max_length|token_limit")
_TOO_LONG = re.compile(
    r"context[ _-]?(length|size|window|limit)|(maximum|max) (prompt|input|sequence|model|content) len"
    r"|too long|too large|too many (input |prompt )?tokens|token (limit|count)|number of tokens|length of the messages"
    r"|range of input length|longer than|max(imum)? length|less than \d+ tokens|tokens? .{0,40}(must be <|exceed)"
    r"|exceed.{0,60}(tokens?|length)\b",
    re.IGNORECASE | re.DOTALL,
)
_LIMIT_OF_REPLY = re.compile(r"max_(completion_|new_)?tokens", re.IGNORECASE)
_OF_THE_PROMPT = re.compile(r"context|prompt|input|message", re.IGNORECASE)
_REFUSED_CODES = re.compile(
    r"content_?(filter|policy|moderation)|responsibleai|moderation|invalid_prompt|data_?inspection|safety|prohibited"
    r"|policy_violation|guardrail|sensitive|blocklist|refusal"
)
_REFUSED = re.compile(
    r"content[ _-]?(management|policy|polic|filter|moderation)|(usage|safety|acceptable use) polic|moderation|flagged"
    r"|inappropriate|prohibited|harmful|guardrail|responsible ai|sensitive (content|info)|safety (system|filter)",
    re.IGNORECASE,
)
_RECIPE_CODES = re.compile(
    r"model_not|invalid_model|unknown_model|api_key|authentication|permission|unauthori|insufficient|billing"
    r"|unsupported_(parameter|value)|unknown_parameter|not_found"
)
_RECIPE = re.compile(
    r"model\b.{0,80}(not found|not exist|not supported|not available|unknown|does not)|(unknown|invalid|no such) model"
    r"|api[ _-]?key|(not|un)[ -]?(authori[sz]ed|authenticated)",
    re.IGNORECASE | re.DOTALL,
)
_FORM = re.compile(r"response_format|json_schema|structured|requested parameters", re.IGNORECASE)
_RECIPE_STATUSES = (401, 402, 403, 404, 405, 407, 410)
_CODES = ("code", "type", "status", "error_type", "error_code", "reason")
_WORDS = ("message", "error_msg", "status_msg", "msg", "detail", "error_description")
_WITHIN = ("error", "errors", "detail", "innererror", "metadata", "base_resp")


@dataclass(frozen=True, kw_only=True)
class EndpointError:
    """An error as an endpoint states it: its status, its codes and types in small letters, and its message."""

    status: int
    codes: tuple[str, ...]
    message: str

    @property
    def meaning(self) -> Meaning:
        """Says what follows from it."""
        codes = " ".join(self.codes)
        if self.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or self._too_long(codes):
            return "too_long"
        if self.status in (400, 403, 422, 451) and (_REFUSED_CODES.search(codes) or _REFUSED.search(self.message)):
            return "refused"
        if self.status in (408, 409, 429) or self.status >= 500:
            return "later"
        if self.status in _RECIPE_STATUSES or _RECIPE_CODES.search(codes) or _RECIPE.search(self.message):
            return "recipe"
        return "unknown"

    @property
    def may_be_the_form(self) -> bool:
        """Says whether the endpoint may mean a ``response_format`` that was asked for, which it does not take."""
        if self.meaning in ("too_long", "refused"):
            return False
        return self.status in (400, 415, 422, 500, 501) or bool(_FORM.search(self.message))

    def _too_long(self, codes: str) -> bool:
        if self.status == HTTPStatus.TOO_MANY_REQUESTS:  # a request that is above what may be asked in a whole minute
            return "request too large" in self.message.lower()
        if self.status not in (400, 422):
            return False
        if _LIMIT_OF_REPLY.search(self.message) and not _OF_THE_PROMPT.search(self.message):
            return False
        return bool(_TOO_LONG_CODES.search(codes) or _TOO_LONG.search(self.message))


def stated_error(status: int, body: bytes | str) -> EndpointError:
    """Reads the error that a response with this status and body states."""
    try:
        stated = json.loads(body)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
        return EndpointError(status=status, codes=(), message=text.strip())
    codes = [str(part[name]).lower() for part in _parts(stated) for name in _CODES if _is_code(part.get(name))]
    words = [part[name] for part in _parts(stated) for name in _WORDS if isinstance(part.get(name), str)]
    if isinstance(stated, Mapping) and isinstance(stated.get("error"), str):
        words.append(stated["error"])
    message = "; ".join(dict.fromkeys(filter(None, words))) or json.dumps(stated)
    return EndpointError(status=status, codes=tuple(dict.fromkeys(codes)), message=message)


def error_within(body: bytes) -> EndpointError | None:
    """Reads the error in the body of a response whose status is 200; None if there is none.

    Its status is the one that the body names, else 400 for what is not worth another try, else 429.
    """
    try:
        stated = json.loads(body)
    except (ValueError, RecursionError):
        return None
    choices = stated.get("choices") if isinstance(stated, Mapping) else None
    if isinstance(choices, Sequence) and choices:
        choice = choices[0]
        if not (isinstance(choice, Mapping) and choice.get("error")):
            return None
        stated = choice
    said = [part.get(name) for part in _parts(stated) for name in _WORDS]
    if not (isinstance(stated, Mapping) and stated.get("error")) and not any(isinstance(word, str) for word in said):
        return None
    text = json.dumps(stated)
    named = [int(code) for code in stated_error(429, text).codes if re.fullmatch(r"[45]\d\d", code)]
    if named:
        return stated_error(named[0], text)
    for_good = stated_error(400, text)
    return for_good if for_good.meaning != "unknown" else stated_error(429, text)


def _parts(stated: Any) -> Iterator[Mapping[str, Any]]:
    """Yields the mappings in a body that may say something of an error, outer ones first."""
    if isinstance(stated, Sequence) and not isinstance(stated, str):
        for part in stated:
            yield from _parts(part)
    elif isinstance(stated, Mapping):
        yield stated
        for name in _WITHIN:
            yield from _parts(stated.get(name))


def _is_code(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or (isinstance(value, int) and not isinstance(value, bool))
