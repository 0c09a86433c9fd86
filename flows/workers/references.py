"""What travels between processes in place of data."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from storage.log.manifest import FileRef

WeightSource = Literal["memory", "checkpoint"]


def hashes(files: Iterable[FileRef]) -> list[str]:
    """Returns what the key of a step names its files by."""
    return [file.sha256 for file in files]


@dataclass(frozen=True)
class PolicyRef:
    """A policy: committed, or not saved yet, when the trainer alone has its weights.

    Args:
        digest: hash of its weights, as every candidate that it samples records it. Of one that is not saved yet, a name
            that no other has.
        files: the checkpoint's directory; nothing if it is not saved yet.
        probe: a few sequences with the trainer's log-probabilities under these very weights.
        base: the checkpoint that it changes, if it is an adapter.
        trained_as: its name before it was saved, by which a sampler may know it.
    """

    digest: str
    files: tuple[FileRef, ...]
    probe: FileRef
    base: tuple[FileRef, ...] = ()
    trained_as: str | None = None

    @property
    def saved(self) -> bool:
        """Says whether it can be read: its files are there, and its digest is that of its weights."""
        return bool(self.files)


@dataclass(frozen=True)
class TrialPrompt:
    """A prompt of the run, on which its judges are tried before there is a policy to answer it."""

    prompt_id: str
    text: str
    messages: list[dict[str, Any]] | None
    reference_answer: str | None


@dataclass(frozen=True)
class JudgePolicies:
    """The two policies whose log-ratio is an implicit reward."""

    policy: PolicyRef
    reference: PolicyRef

    @property
    def hashes(self) -> list[str]:
        """Returns the digests of their weights."""
        return [self.policy.digest, self.reference.digest]


@dataclass(frozen=True)
class PreferenceShard:
    """Preferences of some of a round's prompts.

    Args:
        candidates: tables that hold the candidates which they name.
        share: of the round's prompts, or of its shards, that is done with it.
    """

    candidates: tuple[FileRef, ...]
    preferences: tuple[FileRef, ...]
    share: float


@dataclass(frozen=True)
class UpdateInputs:
    """What a round's update begins with.

    Args:
        policy: the policy that the update starts from.
        reference: the policy that holds it back, if that is another one.
        reference_sampled: whether the reference, or the start if these are one, is the policy that sampled, whose
            log-probabilities are there.
        shards: the preferences that are there already, in order; others may follow.
        replayed: preferences of earlier rounds that are trained on again; nothing if there is no replay.
        optimizer: the optimizer's state of the round before, if it is carried on.
        average: the moving average of the policies before this round, if one is kept.
        state: what an update that was interrupted had done with these very shards.
        referenced: how it knew the reference's log-probabilities, as the round's metrics say it.
        drift: difference of sampler and trainer after the sync of the policy that sampled, in nats per sequence.
        noise: standard deviation of a token's difference, as that sync found it, in nats.
        failures: rounds in a row before this one that failed the gate, which may ask for smaller steps.
        given: whether the completions were given to the run, and sampled by a policy that is none of its own.
    """

    policy: PolicyRef
    reference: PolicyRef | None
    reference_sampled: bool
    prompts: tuple[FileRef, ...]
    shards: tuple[PreferenceShard, ...]
    replayed: tuple[FileRef, ...]
    optimizer: tuple[FileRef, ...]
    average: PolicyRef | None
    state: tuple[FileRef, ...]
    referenced: dict[str, Any] | None
    drift: float
    noise: float = 0.0
    failures: int = 0
    given: bool = False


@dataclass(frozen=True)
class Trained:
    """An update whose steps are taken: the new policy's probe, and the metrics. The trainer alone has the weights."""

    probe: FileRef
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """What an update has written: the checkpoint, the hash of its weights, and what else there is by stage."""

    digest: str
    files: tuple[FileRef, ...]
    others: dict[str, list[FileRef]]


@dataclass(frozen=True)
class Drift:
    """How far sampler and trainer are apart on the same weights, measured on the probe.

    Args:
        per_token: largest over the sequences of the difference of sums, divided by length, in nats per token.
        per_sequence: largest difference of sums, in nats per sequence.
        noise: standard deviation of a token's difference, in nats, if these are independent.
        decoding: as ``per_token``, between what the sampler says of tokens while it samples them and afterwards.
        seconds: time of the weight sync, from the call to the compared probe.
        source: where the sampler took the weights from: the trainer's memory, or the committed checkpoint.
    """

    per_token: float
    per_sequence: float
    seconds: float
    source: WeightSource = "checkpoint"
    noise: float = 0.0
    decoding: float = 0.0


@dataclass(frozen=True)
class ToMeasure:
    """Judgments that the gate compares: of a round, and of the best one before it; nothing if there is none.

    Args:
        judge: whose judgments count.
    """

    judge: str
    own: tuple[FileRef, ...]
    best: tuple[FileRef, ...]


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are sampled and judged together.

    Args:
        policy: the round whose policy samples.
        held_out: whether the prompts are the held-out ones.
        served: whether they are answered as one would serve, and not at temperature 1.
        places: where the tables may lie already, as round and prefix of the stage's name; the last is where they
            are committed.
        gate: the table with the gate's prompts, if they are those; they are answered greedily.
    """

    policy: int
    held_out: bool
    places: tuple[tuple[int, str], ...]
    served: bool = False
    gate: tuple[FileRef, ...] = ()

    @property
    def label(self) -> str:
        """Returns what people are told that the completions are of, before what is done with them."""
        return ("gate " if self.gate else "held-out ") if self.held_out else ""

    @property
    def name(self) -> str:
        """Returns the name of the batch among a round's tasks."""
        if not self.held_out:
            return "train"
        if self.gate:
            return f"gate of round {self.policy}"
        return f"held-out of round {self.policy}{', as served' if self.served else ''}"

    @classmethod
    def training(cls, number: int, sampled_by: int) -> "PromptBatch":
        """Returns a round's own prompts, answered by the policy of an earlier round."""
        return cls(sampled_by, False, ((number, ""),))

    @classmethod
    def evaluation(cls, number: int) -> "PromptBatch":
        """Returns the held-out prompts, answered by the round's new policy."""
        return cls(number, True, ((number, "eval_"),))

    @classmethod
    def as_served(cls, number: int) -> "PromptBatch":
        """Returns the held-out prompts, answered by the round's new policy as one would serve it."""
        return cls(number, True, ((number, "served_"),), served=True)

    @classmethod
    def baseline(cls, number: int, earlier: int) -> "PromptBatch":
        """Returns the held-out prompts, answered by an earlier policy: found in its round, unless a fork changed that.

        If a fork samples or judges otherwise, the round itself has them: those of the round before, and those of round
        0 if that is another one.
        """
        own = "initial_" if earlier == 0 and number > 1 else "baseline_"
        return cls(earlier, True, ((earlier, "eval_"), (number, own)))

    @classmethod
    def regression(cls, number: int, earlier: int, since: int, prompts: tuple[FileRef, ...]) -> "PromptBatch":
        """Returns the prompts of the gate, answered by a round's policy, or by an earlier one to compare it with.

        Args:
            since: the round from which on the gate measures as it does now, which may have asked an earlier policy.
        """
        asked = ((earlier, "gate_"), (since, "gate_baseline_"), (number, "gate_baseline_"))
        return cls(earlier, True, ((number, "gate_"),) if earlier == number else asked, gate=prompts)

    @classmethod
    def best(cls, number: int, earlier: int, since: int) -> "PromptBatch":
        """Returns the held-out prompts, answered by the policy that the gate compares the reward with.

        Args:
            since: as for `regression`; that round had it as the one before, or as round 0.
        """
        found = ((earlier, "eval_"), (since, "baseline_"), (since, "initial_"))
        return cls(earlier, True, (*found, (number, "gate_eval_")))
