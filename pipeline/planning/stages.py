"""What each stage of a round costs on so many devices, and how stages that overlap add up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config import Recipe
from pipeline.planning.constants import Assumptions, Device
from pipeline.planning.memory import update_memory
from pipeline.planning.shapes import ModelShape
from pipeline.planning.timing import (
    UpdateTime,
    hand_over_seconds,
    judge_seconds,
    sample_seconds,
    score_seconds,
    update_seconds,
)
from pipeline.planning.workload import Workload

Mode = Literal["phased", "streaming"]


@dataclass(frozen=True)
class Split:
    """Devices of each part. Phased, all parts have all of them, one after the other."""

    sampler: int
    judge: int
    trainer: int


@dataclass(frozen=True)
class Factors:
    """By how much measured stages were slower than the arithmetic; 1 where nobody measured."""

    sample: float = 1.0
    judge: float = 1.0
    update: float = 1.0
    sync_weights: float = 1.0


AS_RECKONED = Factors()


@dataclass(frozen=True)
class Planner:
    """What stages cost, whatever the split."""

    recipe: Recipe
    shape: ModelShape
    judge: ModelShape | None
    work: Workload
    device: Device
    group: int
    mode: Mode
    assumed: Assumptions
    factors: Factors

    def sample(self, gpus: int, *, held_out: bool = False) -> float:
        engines = max(1, gpus // self.group)
        seconds = sample_seconds(
            self.shape, self.recipe, self.work, self.device, engines=engines, group=self.group, held_out=held_out,
            assumed=self.assumed,
        )  # fmt: skip
        return seconds * self.factors.sample

    def judging(self, gpus: int, *, held_out: bool = False) -> float:
        work = self.work
        judging, answers = (work.held_out_judging, work.held_out) if held_out else (work.judging, work.answers)
        seconds = judge_seconds(judging, answers, work, self.judge, self.shape, self.device, gpus, self.assumed)
        return seconds * self.factors.judge

    def cost(self, split: Split) -> float:
        return self.overlapped(split) + self.evaluate(split)

    def fits(self, ranks: int) -> bool:
        memory = update_memory(self.shape, self.recipe, self.work, self.device, ranks, self.assumed)
        return memory.fits(self.device)

    def update(self, gpus: int) -> UpdateTime:
        return update_seconds(self.shape, self.recipe, self.work, self.device, gpus, self.assumed)

    def evaluate(self, split: Split) -> float:
        """Held-out answers are sampled and judged, and scored under three policies."""
        sampled, judged = self.sample(split.sampler, held_out=True), self.judging(split.judge, held_out=True)
        phased = self.mode == "phased"
        answered = sampled + judged if phased else pipelined([sampled, judged], self.work.held_out_shards)
        scored = score_seconds(self.shape, self.recipe, self.work, self.device, split.trainer, self.assumed)
        return answered + scored

    def evaluation_bound(self, split: Split) -> str:
        scored = score_seconds(self.shape, self.recipe, self.work, self.device, split.trainer, self.assumed)
        parts = {
            "sampling": self.sample(split.sampler, held_out=True),
            "judging": self.judging(split.judge, held_out=True),
            "scoring": scored,
        }
        return max(parts, key=lambda name: parts[name])

    @property
    def update_streams(self) -> bool:
        """Whether the first steps are known before the last shard is there, and nothing is put beside the shards."""
        recipe = self.recipe
        return recipe.update.batch_order == "shards" and not (recipe.people or recipe.preferences.replay.share)

    def sync_weights(self) -> float:
        return hand_over_seconds(self.shape, self.recipe, self.assumed) * self.factors.sync_weights

    def overlapped(self, split: Split) -> float:
        """Seconds from the first sampled token to the new checkpoint.

        With staleness, in a round after the first: of the next round's sampling beside this one's update, the longer.
        """
        sampled, judged = self.sample(split.sampler), self.judging(split.judge)
        update = self.update(split.trainer)
        trained, shards, epochs = update.total * self.factors.update, self.work.shards, self.recipe.update.epochs
        if self.mode == "phased":
            return sampled + judged + trained
        if self.recipe.staleness:
            return max(pipelined([sampled, judged], shards), trained)
        # The first epoch follows the shards; further ones, and the checkpoint, come after it.
        streamed = (trained - update.write) / epochs if self.update_streams else 0.0
        return pipelined([sampled, judged, streamed], shards) + trained - streamed


def pipelined(seconds: Sequence[float], pieces: int) -> float:
    """Stages that pass equal pieces on: the first piece goes through all, then the slowest stage sets the pace."""
    return (sum(seconds) + (pieces - 1) * max(seconds)) / pieces
