"""The records of the log: file references, commit keys, entries; and their bytes.

Every object is canonical JSON that carries the SHA-256 of the rest of itself. So a flipped bit is found even in the
newest entry, which no later entry vouches for.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

from storage.errors import CorruptEntryError, InvalidEntryError, InvalidNameError
from storage.objects import layout

FORMAT = 1
MAX_NUMBER = 10**10 - 1
MAX_ROUND = 999_999

Kind = Literal["run", "session", "close", "commit", "round", "release"]

_KINDS = frozenset(get_args(Kind))
_Record = TypeVar("_Record")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_INPUTS = re.compile(r"[0-9A-Za-z._:-]{0,128}")
_FIRST_TIME = ("renewal", 0)  # not written: a key that was never renewed is the one of version 0.1.0
# Version 0.1.0 wrote a renewal into the inputs, once more each time: "HASH+12+15".
_RENEWED_INPUTS = re.compile(r"([^+]*)(?:\+[0-9]{1,10})*\+([0-9]{1,10})")


@dataclass(frozen=True)
class FileRef:
    """A file that was written, and what must be found when it is read.

    Attributes:
        path: where it lies, relative to the root.
        bytes: its size.
        sha256: hexadecimal digest of its bytes.
        rows: rows of a table, None for other files.
        name: relative name inside its directory, None for single files.
    """

    path: str
    bytes: int
    sha256: str
    rows: int | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        layout.check_data_path(_text(self.path, "path"))
        _count(self.bytes, "bytes")
        if not _SHA256.fullmatch(_text(self.sha256, "sha256")):
            raise InvalidNameError(f"{self.sha256!r} is no SHA-256: 64 lower-case hexadecimal digits are expected")
        if self.rows is not None:
            _count(self.rows, "rows")
        if self.name is not None:
            layout.check_relative(_text(self.name, "name"))

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None}

    @staticmethod
    def from_json(value: object) -> "FileRef":
        """Reads the reference that :meth:`to_json` wrote; CorruptEntryError if it is none."""
        return _build(FileRef, value, required={"path", "bytes", "sha256"}, optional={"rows", "name"})


@dataclass(frozen=True)
class Key:
    """What a commit is of: to commit the same key again returns what is there.

    Attributes:
        round: number of the round, 0 for what the whole run shares.
        stage: name of the stage.
        shard: index of the shard, None if the stage is one piece.
        inputs: hash of everything that the stage depends on.
        renewal: the number of the log entry after which this work was committed again, to be the newest of its piece
            once more; 0 for work that is committed for the first time.
    """

    round: int
    stage: str
    shard: int | None = None
    inputs: str = ""
    renewal: int = 0

    def __post_init__(self) -> None:
        if _count(self.round, "round") > MAX_ROUND:
            raise InvalidNameError(f"round {self.round} is too large: the largest is {MAX_ROUND}")
        layout.check_stage(_text(self.stage, "stage"))
        if self.shard is not None:
            _count(self.shard, "shard")
        if not _INPUTS.fullmatch(_text(self.inputs, "inputs")):
            raise InvalidNameError(f"{self.inputs!r} is no hash of inputs: use up to 128 letters, digits and . _ : -")
        _count(self.renewal, "renewal")

    @property
    def piece(self) -> "Key":
        """Returns the piece of work, whatever its inputs; the newest commit of it counts."""
        return replace(self, inputs="", renewal=0)

    def renewed(self, after: int) -> "Key":
        """Makes the key under which this very work is committed again, after log entry number ``after``."""
        return replace(self, renewal=after)

    def __str__(self) -> str:
        shard = "" if self.shard is None else f" shard {self.shard}"
        return f"{self.stage}{shard} of round {self.round}"

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if value is not None and (name, value) != _FIRST_TIME}

    @staticmethod
    def from_json(value: object) -> "Key":
        """Reads the key that :meth:`to_json` wrote, now or in version 0.1.0; CorruptEntryError if it is none."""
        inputs = value.get("inputs") if isinstance(value, dict) and "renewal" not in value else None
        if isinstance(inputs, str) and "+" in inputs and (old := _RENEWED_INPUTS.fullmatch(inputs)):
            value = {**value, "inputs": old[1], "renewal": int(old[2])}  # type: ignore[dict-item]
        return _build(Key, value, required={"round", "stage", "inputs"}, optional={"shard", "renewal"})


@dataclass(frozen=True)
class Entry:
    """One numbered entry of a run's log.

    Attributes:
        number: position in the log, from 0.
        kind: "run" (entry 0), "session" and "close" (a writer comes and goes), "commit", "round" (a round is done),
            "release" (a tombstone: the run drops files).
        session: id of the writer.
        key: what was committed; for "round" only its round; else None.
        files: the files that the commit makes visible, or that the tombstone drops.
        meta: what the caller gave; for "run" the header of the run.
        parent: SHA-256 of the bytes of the entry before; None for entry 0.
        time: when it was written, UTC, ISO 8601.
    """

    number: int
    kind: Kind
    session: str
    key: Key | None
    files: tuple[FileRef, ...]
    meta: dict[str, Any] = field(hash=False)
    parent: str | None
    time: str

    @property
    def round(self) -> int:
        """Returns the round that a commit or "round" entry belongs to; InvalidEntryError for the other kinds."""
        if self.key is None:
            raise InvalidEntryError(f"log entry {self.number} of kind '{self.kind}' belongs to no round")
        return self.key.round


def encode_entry(entry: Entry) -> bytes:
    """Writes an entry as bytes; InvalidEntryError if its meta is not JSON."""
    what = f"the meta of the {entry.kind} entry" + (f" {entry.key}" if entry.key else "")
    return seal({"format": FORMAT, **entry_to_json(entry)}, what)


def decode_entry(data: bytes) -> Entry:
    """Reads the entry that :func:`encode_entry` wrote; CorruptEntryError if it is none."""
    value = unseal(data)
    if value.pop("format", None) != FORMAT:
        raise CorruptEntryError(f"the entry has another format than {FORMAT}, the one that this version reads")
    return entry_from_json(value)


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """Writes an entry as JSON, for objects that hold several."""
    return {
        "number": entry.number,
        "kind": entry.kind,
        "session": entry.session,
        "key": None if entry.key is None else entry.key.to_json(),
        "files": [file.to_json() for file in entry.files],
        "meta": entry.meta,
        "parent": entry.parent,
        "time": entry.time,
    }


def entry_from_json(value: object) -> Entry:
    """Reads the entry that :func:`entry_to_json` made; CorruptEntryError if it is none."""
    fields = {"number", "kind", "session", "key", "files", "meta", "parent", "time"}
    if not isinstance(value, dict) or set(value) != fields:
        raise CorruptEntryError(f"a log entry has the fields {sorted(fields)}, and no other")
    number, kind, parent = value["number"], value["kind"], value["parent"]
    key = None if value["key"] is None else Key.from_json(value["key"])
    ok = (
        is_count(number)
        and number <= MAX_NUMBER
        and isinstance(kind, str)
        and kind in _KINDS
        and isinstance(value["session"], str)
        and isinstance(value["time"], str)
        and isinstance(value["files"], list)
        and isinstance(value["meta"], dict)
        and (kind in ("commit", "round")) == (key is not None)
        and (parent is None if number == 0 else isinstance(parent, str) and _SHA256.fullmatch(parent))
    )
    if not ok:
        raise CorruptEntryError(f"log entry {number!r} of kind {kind!r} has a field of another type than it must have")
    files = tuple(FileRef.from_json(item) for item in value["files"])
    return Entry(number, kind, value["session"], key, files, value["meta"], parent, value["time"])


def digest_of(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def seal(value: Mapping[str, Any], what: str) -> bytes:
    """Writes canonical JSON of the mapping with a ``digest`` of itself; InvalidEntryError if it is not JSON."""
    try:
        body = canonical(dict(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidEntryError(
            f"{what} cannot be written as JSON: {error} (give None for a number that is not finite)"
        ) from error
    return canonical({**value, "digest": digest_of(body)})


def unseal(data: bytes) -> dict[str, Any]:
    """Reads the mapping that :func:`seal` wrote, without its digest; CorruptEntryError if a bit has changed."""
    try:
        value = json.loads(data)
        if not isinstance(value, dict):
            raise ValueError("it is no JSON object")
        digest = value.pop("digest", None)
        body = canonical(value)
        intact = digest == digest_of(body) and canonical({**value, "digest": digest}) == data
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptEntryError(f"the object is no intact JSON: {error}") from error
    if not intact:
        raise CorruptEntryError("the object does not match its own digest")
    return value


def canonical(value: Any) -> bytes:
    """Writes JSON in one spelling: sorted keys, no spaces, no NaN; ValueError or TypeError if it is not JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _build(cls: type[_Record], value: object, required: set[str], optional: set[str]) -> _Record:
    if not isinstance(value, dict) or not required <= set(value) <= required | optional:
        raise CorruptEntryError(
            f"a {cls.__name__} has the fields {sorted(required)}, and at most also {sorted(optional)}"
        )
    try:
        return cls(**value)
    except InvalidNameError as error:
        raise CorruptEntryError(f"a {cls.__name__} is damaged: {error}") from error


def is_count(value: object) -> bool:
    """Says whether the value is an integer from 0; a truth value is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _count(value: int, what: str) -> int:
    if not is_count(value):
        raise InvalidNameError(f"{what} {value!r} is no integer from 0")
    return value


def _text(value: str, what: str) -> str:
    if not isinstance(value, str):
        raise InvalidNameError(f"{what} {value!r} is no text")
    return value


def key_of(entry: Entry) -> Key:
    """Returns the key of a commit; CorruptEntryError if it has none."""
    if entry.key is None:
        raise CorruptEntryError(f"log entry {entry.number} is a commit without a key")
    return entry.key
