"""What travels between processes in place of data."""

from dataclasses import asdict, dataclass
from typing import Any

from storage.manifest import FileRef


@dataclass(frozen=True)
class PolicyRef:
    """A committed policy.

    Args:
        policy: hash of its weights, as every candidate that it samples records it.
        files: the checkpoint's directory.
        probe: a few sequences with the trainer's log-probabilities under these very weights.
    """

    policy: str
    files: tuple[FileRef, ...]
    probe: FileRef

    def to_json(self) -> dict[str, Any]:
        """Plain JSON, from which pydantic builds the same object again."""
        return asdict(self)


@dataclass(frozen=True)
class Drift:
    """How far sampler and trainer are apart on the same weights, measured on the probe.

    Args:
        per_token: largest over the sequences of the difference of sums, divided by length, in nats per token.
        per_sequence: largest difference of sums, in nats per sequence.
        seconds: time of the hand-over, from the call to the compared probe.
    """

    per_token: float
    per_sequence: float
    seconds: float
