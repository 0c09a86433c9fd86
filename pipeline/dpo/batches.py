"""Which preferences make up each optimizer step of an update, as far as that is known.

In the order ``shuffled`` an epoch is a permutation of all preferences, which is known once the last of them is there.
In the order ``shards`` the first epoch takes shard after shard, each permuted by itself, so that its steps are known
while later shards are still being sampled; what comes first does not depend on what comes later.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.config import UpdateConfig


@dataclass(frozen=True)
class PlannedStep:
    """A step: its pass over the preferences, from 0, which of them it takes, and the share of the update before it."""

    epoch: int
    members: list[int]
    done: float


class StepPlan:
    """The steps of an update; preferences are counted in the order in which they are added.

    Args:
        warmup_steps: those of this update, which the schedule's shares leave out.
    """

    def __init__(self, config: UpdateConfig, *, seed: int, warmup_steps: int = 0) -> None:
        self._config, self._seed, self._warmup_steps = config, seed, warmup_steps
        self._count = self._shards = 0
        self._share = 0.0
        self._order: list[int] = []
        self._shares: list[float] = []
        self._steps: list[PlannedStep] | None = None

    @property
    def expected_steps(self) -> int:
        """How many steps there are; while preferences are missing, as many as the share that is there lets expect."""
        if self._steps is not None:
            return len(self._steps)
        size, epochs = self._config.batch_size, self._config.epochs
        return epochs * max(1, round(self._count / max(self._share, 1e-9) / size))

    @property
    def closed(self) -> bool:
        """Whether all steps are known."""
        return self._steps is not None

    def add(self, preferences: int, share: float) -> None:
        """So many more preferences, with which this share of the round's prompts is through."""
        generator = torch.Generator().manual_seed(self._seed + 1 + self._shards)
        permuted = torch.randperm(preferences, generator=generator).tolist()
        self._order += [self._count + place for place in permuted]
        self._shares += [self._share + (share - self._share) * place / preferences for place in range(preferences)]
        self._count, self._shards, self._share = self._count + preferences, self._shards + 1, share

    def close(self) -> None:
        """No more will come."""
        if self._steps is None:
            by_shard = self._config.batch_order == "shards"
            self._steps = list(self._by_shard() if by_shard else self._shuffled())

    def step(self, number: int) -> PlannedStep | None:
        """The step of this number, from 0; None if it is not known yet, or there is none."""
        if self._steps is not None:
            return self._steps[number] if number < len(self._steps) else None
        size = self._config.batch_size
        if self._config.batch_order == "shuffled" or (number + 1) * size > self._count:
            return None
        return self._first_epoch(number)

    def _first_epoch(self, number: int) -> PlannedStep:
        start, size = number * self._config.batch_size, self._config.batch_size
        return PlannedStep(0, self._order[start : start + size], self._shares[start] / self._config.epochs)

    def _by_shard(self) -> Iterator[PlannedStep]:
        size, epochs = self._config.batch_size, self._config.epochs
        yield from map(self._first_epoch, range(-(-self._count // size)))
        generator = torch.Generator().manual_seed(self._seed)
        for epoch in range(1, epochs):
            order = torch.randperm(self._count, generator=generator).tolist()
            for start in range(0, self._count, size):
                yield PlannedStep(epoch, order[start : start + size], (epoch + start / self._count) / epochs)

    def _shuffled(self) -> Iterator[PlannedStep]:
        plan = plan_steps(self._count, batch_size=self._config.batch_size, epochs=self._config.epochs, seed=self._seed)
        warmup = self._warmup_steps
        for number, (epoch, members) in enumerate(plan):
            yield PlannedStep(epoch, members, max(0, number - warmup) / max(1, len(plan) - warmup))


def plan_steps(preferences: int, *, batch_size: int, epochs: int, seed: int) -> list[tuple[int, list[int]]]:
    """Epoch and members of each optimizer step. Each epoch is a fresh permutation; its last step may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    steps: list[tuple[int, list[int]]] = []
    for epoch in range(epochs):
        order = torch.randperm(preferences, generator=generator).tolist()
        steps += [(epoch, order[start : start + batch_size]) for start in range(0, preferences, batch_size)]
    return steps
