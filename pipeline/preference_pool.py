"""The preferences of an update, kept in a file: what is in memory does not grow with their number."""

import json
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from pipeline.errors import NoRoomError
from pipeline.update_types import PreferenceGroup


class PreferencePool(Sequence[PreferenceGroup]):
    """Preferences in the order in which they were added, each read from the file when it is asked for.

    The file is a temporary one that has no name, so that it goes with the process, however that ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  as long as this object
        self._starts = array("Q", [0])

    def extend(self, groups: Iterable[PreferenceGroup]) -> None:
        """Add preferences after those that are there.

        Raises:
            NoRoomError: the disk is full; the pool is of no use any more.
        """
        try:
            self._file.seek(self._starts[-1])
            for group in groups:
                self._starts.append(self._starts[-1] + self._file.write(_line(group)))
            self._file.flush()
        except OSError as error:
            raise NoRoomError(
                f"cannot keep a round's preferences in {tempfile.gettempdir()}: {error.strerror}; free some space, "
                "or name another directory as TMPDIR, and resume"
            ) from error

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> PreferenceGroup: ...

    @overload
    def __getitem__(self, index: slice) -> list[PreferenceGroup]: ...

    def __getitem__(self, index: int | slice) -> PreferenceGroup | list[PreferenceGroup]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"there is no preference {index}: there are {len(self)}")
        self._file.seek(self._starts[index])
        return PreferenceGroup(**json.loads(self._file.read(self._starts[index + 1] - self._starts[index])))

    def __iter__(self) -> Iterator[PreferenceGroup]:
        return (self[index] for index in range(len(self)))


def _line(group: PreferenceGroup) -> bytes:
    fields = {
        "prompt_id": group.prompt_id,
        "prompt_token_ids": list(group.prompt_token_ids),
        "candidate_token_ids": [list(answer) for answer in group.candidate_token_ids],
        "reference_logps": list(group.reference_logps),
        "ranks": None if group.ranks is None else list(group.ranks),
        "soft_label": group.soft_label,
    }
    return json.dumps(fields).encode() + b"\n"
