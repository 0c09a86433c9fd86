"""The preferences of an update, kept in a file: what is in memory does not grow with their number."""

import hashlib
import json
import tempfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from pipeline.dpo.types import PreferenceGroup
from pipeline.errors import DataError, NoRoomError


class PreferencePool(Sequence[PreferenceGroup]):
    """Preferences in the order in which they were added, each read from the file when it is asked for.

    The file is a temporary one that has no name, so that it goes with the process, however that ends.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  as long as this object
        self._starts = array("Q", [0])
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Hashes the preferences: the prompts' ids, the candidates' token ids, their places and the soft labels."""
        return self._hash.hexdigest()

    def extend(self, groups: Iterable[PreferenceGroup]) -> None:
        """Adds preferences after those that are there.

        Raises:
            NoRoomError: the disk is full; the pool cannot be used after that.
        """
        try:
            self._file.seek(self._starts[-1])
            for group in groups:
                self._starts.append(self._starts[-1] + self._file.write(_line(group)))
                content = [group.prompt_id, group.candidate_token_ids, list(group.places), group.soft_label]
                self._hash.update(json.dumps(content).encode())
            self._file.flush()
        except OSError as error:
            raise NoRoomError(
                f"cannot keep a round's preferences in {tempfile.gettempdir()}: {error.strerror}; free some space, "
                "or name another directory as TMPDIR, and resume"
            ) from error

    def save_reference(self, path: Path) -> None:
        """Writes the reference's log-probabilities, a line for each preference."""
        with path.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(list(group.reference_logps)) + "\n" for group in self)

    def with_reference(self, path: Path) -> "PreferencePool":
        """Returns the same preferences with the reference's log-probabilities as another pool has saved them.

        Raises:
            DataError: there is not one line for each preference, or it cannot be read.
            NoRoomError: see `extend`.
        """
        pool = PreferencePool()
        try:
            with path.open(encoding="utf-8") as lines:
                pairs = zip(self, map(json.loads, lines), strict=True)
                pool.extend(replace(group, reference_logps=logps) for group, logps in pairs)
        except NoRoomError:
            raise
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}): begin the round's update anew") from error
        return pool

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


def _line(group: PreferenceGroup) -> bytes:
    fields = {
        "prompt_id": group.prompt_id,
        "prompt_token_ids": list(group.prompt_token_ids),
        "candidate_token_ids": [list(answer) for answer in group.candidate_token_ids],
        "reference_logps": list(group.reference_logps),
        "ranks": None if group.ranks is None else list(group.ranks),
        "soft_label": group.soft_label,
        "candidates": None if group.candidates is None else list(group.candidates),
        "origin_round": group.origin_round,
    }
    return json.dumps(fields).encode() + b"\n"
