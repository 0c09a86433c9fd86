"""Which completions a table shows, and in what order: as its address says, and as conditions in SQL.

A row of :data:`FIELDS` says all that is known of a field; nothing here asks which field it has before it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, Literal, Self

from flows.view.tables import KINDS
from pipeline.errors import ConfigError

PAGE_SIZE = 50
ABSENT = "-"
"""What stands in an address for a value that a completion does not have."""
_MOST_WORDS, _MOST_LETTERS = 16, 200
"""Of a search: each word is looked for in the text of each completion."""
_MOST_DIGITS = 9
_EXACT_DIGITS = 15
"""A decimal of so many digits is one number of 64 bits, in DuckDB too."""

Source = Literal["completions", "verdicts", "roles", "ratios", "ties"]
"""What of the store's tables has a field; see ``statements.py``."""


@dataclass(frozen=True)
class Field:
    """Something that completions are filtered or sorted by.

    Attributes:
        name: in an address.
        title: what people call it.
        column: of the table ``answers``.
        source: what of the store's tables has it, under the name of the column.
        shown: how ``rondo show`` has it, of one round and kind; None if it does not.
        read: makes a value of the text in an address; ValueError says what it should be.
        absent: what people call a completion that does not have it; empty if each has, or it is not worth a filter.
    """

    name: str
    title: str
    column: str
    source: Source = "completions"
    shown: str | None = None
    read: Callable[[str], Any] = str
    absent: str = ""


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ValueError("give a whole number from 0")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise ValueError("give a number, such as 0.5")
    return value


def _one_of(**values: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in values:
            raise ValueError(f"it is {', '.join(values)}")
        return values[text]

    return read


TEXT = Field("text", "completion", "text", shown="text")
PROMPT = Field("prompt", "prompt", "prompt_id", shown="prompt_id")
FACETS = (
    Field("round", "round", "round", read=_whole),
    Field("kind", "kind", "kind", read=_one_of(**{kind: kind for kind in KINDS})),
    Field("role", "role", "role", "roles", absent="none",
          read=_one_of(chosen="chosen", rejected="rejected", dropped="dropped")),
    Field("drop", "dropped for", "drop_reason", "roles"),
    Field("tie", "tie", "tied", "ties", read=_one_of(yes=True, no=False)),
    Field("finish", "finish", "finish_reason", shown="finish_reason"),
    Field("status", "verdict", "status", "verdicts", "status", absent="not judged"),
    Field("judge", "judge", "judge", "verdicts", absent="not judged"),
)  # fmt: skip
RANGES = (
    Field("score", "score", "score", "verdicts", "score", _finite),
    Field("length", "tokens", "tokens", shown="len(token_ids)", read=_finite),
    Field("margin", "margin", "margin", "roles", read=_finite),
    Field("ratio", "log-ratio", "log_ratio", "ratios", read=_finite),
)
FIELDS = {field.name: field for field in (PROMPT, TEXT, *FACETS, *RANGES)}
_BOUNDS = {f"{field.name}_{end}": (field, form) for field in RANGES for end, form in (("min", ">="), ("max", "<="))}
_NAMES = ("q", *(field.name for field in FACETS), *_BOUNDS, "sort", "page")
_KEY = ("round", "kind", "prompt_id", "candidate")


@dataclass(frozen=True)
class Condition:
    """One condition on a completion.

    Attributes:
        form: in SQL, with ``{column}`` and, unless the value is absent, ``{value}``.
    """

    field: Field
    form: str
    value: Any

    def sql(self, column: str, value: str) -> str:
        return self.form.format(column=column, value=value)


@dataclass(frozen=True)
class Filter:
    """Which completions are shown, and in what order.

    Attributes:
        words: all of them occur in the completion, in capital or small letters.
        chosen: the value of a field of :data:`FACETS`; None if a completion must not have any.
        bounds: the least and largest value of a field of :data:`RANGES`, by its name with ``_min`` and ``_max``.
        sort: the name of a field; completions without it come last.
        down: the largest come first.
        page: from 1, of ``PAGE_SIZE`` rows.
    """

    words: tuple[str, ...] = ()
    chosen: Mapping[str, Any] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)
    sort: str = "round"
    down: bool = True
    page: int = 1

    @classmethod
    def parse(cls, query: Iterable[tuple[str, str]]) -> Self:
        """Reads the query of an address; what is empty counts as left out.

        Raises:
            ConfigError: a name is unknown or comes twice, or a value is mistyped.
        """
        given: dict[str, str] = {}
        for name, text in query:
            if name not in _NAMES or name in given:
                twice = "comes twice" if name in given else f"is no filter: they are {', '.join(_NAMES)}"
                raise ConfigError(f"{name!r} in the address {twice}")
            if text.strip():
                given[name] = text.strip()
        if nul := next((name for name, text in given.items() if "\0" in text), None):
            raise ConfigError(f"{nul} {given[nul]!r} in the address: leave the null character out")
        sort = given.get("sort", "-round")
        return cls(
            words=_words(given.get("q", "")),
            chosen={f.name: _read(f.name, given[f.name], _or_absent(f)) for f in FACETS if f.name in given},
            bounds={name: _read(name, given[name], f.read) for name, (f, _) in _BOUNDS.items() if name in given},
            sort=_read("sort", sort.removeprefix("-"), _one_of(**{name: name for name in FIELDS})),
            down=sort.startswith("-"),
            page=max(1, _read("page", given.get("page", "1"), _whole)),
        )

    @property
    def query(self) -> dict[str, str]:
        """Returns what stands in the address; what is as usual is left out."""
        order = f"{'-' if self.down else ''}{self.sort}"
        return {
            **({"q": " ".join(self.words)} if self.words else {}),
            **{name: text_of(value) for name, value in self.chosen.items()},
            **{name: text_of(value) for name, value in self.bounds.items()},
            **({} if order == "-round" else {"sort": order}),
            **({} if self.page == 1 else {"page": str(self.page)}),
        }

    def with_(self, name: str, value: Any) -> Self:
        """Returns the first page of the filter that chooses this value of a facet, too."""
        return replace(self, chosen={**self.chosen, name: value}, page=1)

    def without(self, *names: str) -> Self:
        """Returns the first page of the filter without these facets, bounds or, as ``q``, words."""
        chosen, bounds = (
            {name: value for name, value in part.items() if name not in names} for part in (self.chosen, self.bounds)
        )
        return replace(self, words=() if "q" in names else self.words, chosen=chosen, bounds=bounds, page=1)

    def sorted_by(self, name: str) -> Self:
        """Returns the filter sorted by a field: the largest first, and if it is so already, the smallest first."""
        return replace(self, sort=name, down=not (self.sort == name and self.down), page=1)

    @property
    def scanned(self) -> list[Condition]:
        """Returns the conditions on words and ranges."""
        contains = "contains(lower({column}), lower({value}))"
        ranges = ((*_BOUNDS[name], value) for name, value in self.bounds.items())
        return [
            *(Condition(TEXT, contains, word) for word in self.words),
            *(Condition(bounded, f"{{column}} {form} {{value}}", value) for bounded, form, value in ranges),
        ]

    @property
    def conditions(self) -> list[Condition]:
        """Returns all conditions, those on facets first."""
        facets = (
            Condition(FIELDS[name], "{column} IS NULL" if value is None else "{column} = {value}", value)
            for name, value in self.chosen.items()
        )
        return [*facets, *self.scanned]

    def order(self, column: str) -> str:
        """Returns the order in SQL, of the column that the field to sort by has there; it leaves nothing open."""
        return ", ".join([f"{column} {'DESC' if self.down else 'ASC'} NULLS LAST", *_KEY])

    @property
    def offset(self) -> int:
        return (self.page - 1) * PAGE_SIZE


def where(conditions: Sequence[Condition]) -> tuple[str, dict[str, Any]]:
    """Returns the condition on ``answers`` in SQL, and its parameters."""
    parameters = {f"v{place}": condition.value for place, condition in enumerate(conditions)}
    said = [
        condition.sql(condition.field.column, f"${name}")
        for name, condition in zip(parameters, conditions, strict=True)
    ]
    used = {name: value for name, value in parameters.items() if value is not None}
    return " AND ".join(said) or "true", used


def literal(value: Any) -> str:
    """Writes a value in SQL so that DuckDB reads the very same one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    text = text_of(value)
    # Else it would be a decimal, whose comparison with a number of 64 bits rounds.
    short = sum(map(str.isdigit, text)) <= _EXACT_DIGITS
    return text if short or "e" in text else f"{text}e0"


def text_of(value: Any) -> str:
    """Writes a value as it stands in an address."""
    if value is None or isinstance(value, bool):
        return {None: ABSENT, True: "yes", False: "no"}[value]
    return repr(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def _words(text: str) -> tuple[str, ...]:
    """Splits what is searched for into its words, each of them once."""
    by_small_letters: dict[str, str] = {}
    for word in text.split():
        by_small_letters.setdefault(word.lower(), word)
    words = tuple(by_small_letters.values())
    letters = sum(map(len, words))
    if len(words) > _MOST_WORDS or letters > _MOST_LETTERS:
        raise ConfigError(
            f"q in the address has {len(words)} different words and {letters} letters: search for up to {_MOST_WORDS} "
            f"words and {_MOST_LETTERS} letters, or ask with 'rondo sql'"
        )
    return words


def _or_absent(facet: Field) -> Callable[[str], Any]:
    return lambda text: None if text == ABSENT else facet.read(text)


def _read(name: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text)
    except ValueError as error:
        raise ConfigError(f"{name} {text!r} in the address: {error}") from error
