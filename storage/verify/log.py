"""The log of a run, read again from end to end: every entry, the chain that links them, and every snapshot."""

from collections.abc import Mapping
from contextlib import suppress

from storage.errors import CorruptEntryError, StoreError
from storage.log.log import replay
from storage.log.manifest import FORMAT, Entry, decode_entry, digest_of, unseal
from storage.log.snapshots import Snapshot, decode_snapshot, encode_snapshot
from storage.objects import layout
from storage.objects.objects import Objects
from storage.verify.damage import Damage

_HEADER_LOST = "the recipe is lost: the run cannot be opened, and only its files can still be read one by one"
_DERIVED = "nothing is lost: a snapshot is made from the log, and the next writer makes it again"


def check_log(objects: Objects, run: str) -> list[Damage]:
    """Finds what is damaged in the log of a run and in its snapshots."""
    # A run that is being written grows between the listings: this first one bounds which snapshots must be there.
    before = len(objects.keys(layout.log_prefix(run)))
    snapshots, damaged_snapshots = _read_snapshots(objects, run)
    found, problems = _read_entries(objects, run)
    last = max([*found, *(entry for _, entry in snapshots)], default=0)
    problems |= {number: "it is missing" for number in range(last + 1) if number not in found}
    problems |= _broken_links({number: pair for number, pair in found.items() if number not in problems})
    newest = max((item for item in snapshots.values() if item is not None), key=lambda item: item.rank, default=None)
    damages = []
    for number, problem in sorted(problems.items()):
        key, text = layout.entry_key(run, number), f"log entry {number}: {problem}"
        meaning, spoils = _meaning(run, number, newest)
        damages.append(Damage(key, _round_at(number, snapshots), text, meaning, spoils))
    if not problems:
        damaged_snapshots |= _against_log(run, [found[number] for number in range(last + 1)], snapshots, before)
    for key, (number, problem) in sorted(damaged_snapshots.items()):
        damages.append(Damage(key, number, problem, _DERIVED, spoils=False))
    return damages


def _read_entries(objects: Objects, run: str) -> tuple[dict[int, tuple[Entry, str] | None], dict[int, str]]:
    """Reads every entry with the digest of its bytes, None if it cannot be read, and what is wrong with those."""
    found: dict[int, tuple[Entry, str] | None] = {}
    problems = {}
    numbers = [
        number for key in objects.keys(layout.log_prefix(run)) if (number := layout.entry_number(key)) is not None
    ]
    for number in numbers:
        found[number] = None
        try:
            data = objects.read(layout.entry_key(run, number))
            entry = decode_entry(data)
            if entry.number != number or (entry.kind == "run") != (number == 0):
                raise CorruptEntryError(f"in its place is entry {entry.number} of kind '{entry.kind}'")
            found[number] = entry, digest_of(data)
        except StoreError as error:
            problems[number] = str(error)
    return found, problems


def _broken_links(intact: Mapping[int, tuple[Entry, str] | None]) -> dict[int, str]:
    """Finds intact entries that do not belong to this log, or do not follow from the entry before.

    An entry does not belong to the log if its links to both neighbours are broken, as far as these are intact.
    """
    links = {}
    for number, pair in intact.items():
        before = intact.get(number - 1)
        if pair is not None and before is not None:
            links[number] = pair[0].parent == before[1]
    problems = {}
    for number in intact:
        beside = [links[at] for at in (number, number + 1) if at in links]
        if beside and not any(beside):
            problems[number] = "it is intact, and does not belong to this log"
    for number, holds in links.items():
        if not holds and not {number - 1, number} & problems.keys():
            problems[number] = f"it does not follow from entry {number - 1}"
    return problems


def _read_snapshots(
    objects: Objects, run: str
) -> tuple[dict[tuple[int, int], Snapshot | None], dict[str, tuple[int, str]]]:
    """Reads every snapshot by its round and entry, None if it cannot be read, and what is wrong with those."""
    found: dict[tuple[int, int], Snapshot | None] = {}
    problems = {}
    for key in objects.keys(layout.snapshots_prefix(run)):
        numbers = layout.snapshot_numbers(key)
        if numbers is None:
            continue
        found[numbers] = None
        try:
            data = objects.read(key)
            if _is_older(data):
                continue
            snapshot = decode_snapshot(data)
            if (snapshot.entry.round, snapshot.entry.number) != numbers:
                raise CorruptEntryError(f"in its place is the snapshot of round {snapshot.entry.round}")
            found[numbers] = snapshot
        except StoreError as error:
            problems[key] = numbers[0], f"the snapshot of round {numbers[0]}: {error}"
    return found, problems


def _is_older(data: bytes) -> bool:
    """Says whether it is an intact snapshot of the first format, which is passed over and made again."""
    with suppress(CorruptEntryError):
        return unseal(data).get("format") == FORMAT
    return False


def _against_log(
    run: str, log: list[tuple[Entry, str] | None], snapshots: Mapping[tuple[int, int], Snapshot | None], before: int
) -> dict[str, tuple[int, str]]:
    """Finds snapshots that are not what the log adds up to, and those that are missing though the run went on."""
    problems = {}
    pairs = [pair for pair in log if pair is not None]
    for expected in replay(pairs):
        number, at = expected.entry.round, expected.entry.number
        key = layout.snapshot_key(run, number, at)
        snapshot = snapshots.get((number, at))
        if (number, at) not in snapshots and at < before - 1:
            problems[key] = number, f"the snapshot of round {number} is missing"
        elif snapshot is not None and encode_snapshot(snapshot) != encode_snapshot(expected):
            problems[key] = number, f"the snapshot of round {number} is not what the log adds up to"
    return problems


def _round_at(number: int, snapshots: Mapping[tuple[int, int], Snapshot | None]) -> int | None:
    """Returns the round that was being made when the entry was written; None after the last finished one."""
    later = [(entry, round) for round, entry in snapshots if entry >= number]
    return min(later)[1] if later else None


def _meaning(run: str, number: int, newest: Snapshot | None) -> tuple[str, bool]:
    """Says what the loss of an entry means, and whether it spoils its round."""
    if number == 0:
        return _HEADER_LOST, True
    if newest is None or number > newest.entry.number:
        return f"run '{run}' cannot be opened for writing: what lies before this entry can be forked", True
    if number in newest.tombstones:
        return "what it dropped is not known any more: files that were removed on purpose show as missing", False
    return (
        "a later snapshot holds what it said of the rounds: the run still opens, but its log cannot be replayed",
        False,
    )
