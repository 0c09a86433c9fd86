"""Which preferences make up each optimizer step of an update, as far as that is known.

In the order ``shuffled`` an epoch is a permutation of all preferences, which is known once the last of them is there.
In the order ``shards`` the first epoch takes shard after shard, each permuted by itself. So its steps are known while
later shards are still being sampled: what comes first does not depend on what comes later.

The last step of an epoch has what is left. It moves the weights by its share of a whole step: if it had one preference
and the others sixteen, Adam would make a step as long as theirs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from pipeline.config import UpdateConfig


@dataclass(frozen=True)
class PlannedStep:
    """A step: its pass over the preferences, from 0, which of them it takes, and the share of the update before it.

    ``weight`` is the share of a whole step that it is, by which its learning rate is multiplied.
    """

    epoch: int
    members: list[int]
    done: float
    weight: float = 1.0


class StepPlan:
    """The steps of an update; preferences are counted in the order in which they are added.

    Args:
        warmup_steps: those of this update, which the schedule's shares leave out.
        most: how many preferences the round could have given; a whole step has a batch of them, or as many as that. As
            many as there are if None.
    """

    def __init__(self, config: UpdateConfig, *, seed: int, warmup_steps: int = 0, most: int | None = None) -> None:
        self._config, self._seed, self._warmup_steps, self._most = config, seed, warmup_steps, most
        self._count = self._shards = 0
        self._share = 0.0
        self._order: list[int] = []
        self._shares: list[float] = []
        self._steps: list[PlannedStep] | None = None

    @property
    def expected_steps(self) -> int:
        """Says how many steps there are; while preferences are missing, estimates it by the share that is there."""
        if self._steps is not None:
            return len(self._steps)
        size, epochs = self._config.batch_size, self._config.epochs
        return epochs * max(1, round(self._count / max(self._share, 1e-9) / size))

    @property
    def closed(self) -> bool:
        """Says whether all steps are known."""
        return self._steps is not None

    def add(self, preferences: int, share: float) -> None:
        """Adds so many preferences, with which this share of the round's prompts is done.

        Those that come when all prompts are done already, as replayed ones, make the update longer: the shares of
        those before shrink in proportion. They have to be there before the first step is asked for.
        """
        generator = torch.Generator().manual_seed(self._seed + 1 + self._shards)
        permuted = torch.randperm(preferences, generator=generator).tolist()
        self._order += [self._count + place for place in permuted]
        start = self._share
        if start >= share and preferences and self._count:
            start = share * self._count / (self._count + preferences)
            self._shares = [before * start / share for before in self._shares]
        self._shares += [start + (share - start) * place / preferences for place in range(preferences)]
        self._count, self._shards, self._share = self._count + preferences, self._shards + 1, share

    def close(self) -> None:
        """Plans all steps, as no more preferences will come."""
        if self._steps is None:
            by_shard = self._config.batch_order == "shards"
            self._steps = list(self._by_shard() if by_shard else self._shuffled())

    def step(self, number: int) -> PlannedStep | None:
        """Returns the step of this number, from 0; None if it is not known yet, or there is none."""
        size = self._config.batch_size
        if self._steps is not None:
            found = self._steps[number] if number < len(self._steps) else None
        elif self._config.batch_order == "shuffled" or (number + 1) * size > self._count:
            found = None
        else:
            found = self._first_epoch(number)
        if found is None:
            return None
        whole = min(size, self._most or self._count)
        return replace(found, done=self._scheduled(number, found.done), weight=min(1.0, len(found.members) / whole))

    def _scheduled(self, number: int, done: float) -> float:
        """Returns the share of the schedule before a step: it begins with the first step after the warm-up."""
        first = self._warmup_steps
        if self._config.batch_order == "shuffled" or number < first:
            return done
        before = (self._steps[first] if self._steps is not None else self._first_epoch(first)).done
        return (done - before) / (1 - before)

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
    """Plans the epoch and members of each step. Each epoch is a fresh permutation; its last step may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    steps: list[tuple[int, list[int]]] = []
    for epoch in range(epochs):
        order = torch.randperm(preferences, generator=generator).tolist()
        steps += [(epoch, order[start : start + batch_size]) for start in range(0, preferences, batch_size)]
    return steps
