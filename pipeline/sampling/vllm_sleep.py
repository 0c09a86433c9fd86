"""The GPU memory of a vLLM engine while it is lent: what of it sleeps, and whether there are weights to wake.

Read in vLLM 0.32; no GPU has run it:

- At level 1 the weights move to pinned main memory, and wake as they were. At level 2 they are dropped, and wake as
  memory of any content at the same addresses, which CUDA graphs know. Buffers, such as tables of rotary positions, are
  kept at both levels; what the cache holds is lost at both.
- A reload writes into that memory, layer by layer. What is neither in the checkpoint nor a buffer would stay noise: the
  comparison after each weight sync is there for that.
- The cache is not needed for a reload. It wakes last, so that its memory is free while a layer is there twice.
- Until all is awake the scheduler is paused: it queues requests, and no step ever answers them. The prefix cache is its
  own list of blocks, without GPU memory: it is emptied when the engine falls asleep, and can be while the cache sleeps.
- What sleeps stays as it fell asleep: to ask for another level then changes nothing.
"""

from typing import Any

from pipeline.errors import EngineError
from pipeline.sampling.vllm_start import failing

WEIGHTS, CACHE = "weights", "kv_cache"
"""vLLM's names of the parts that wake one by one."""


class LentMemory:
    """The memory of an engine that is awake at first."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._asleep: tuple[str, ...] = ()
        self._dropped = False

    def lend(self, *, keeps_weights: bool) -> None:
        """Has the engine sleep, with its weights in main memory or without any; nothing if it sleeps already."""
        if self._asleep:
            return
        with failing("lend its GPU's memory"):
            self._engine.sleep(level=1 if keeps_weights else 2)
        self._asleep, self._dropped = (WEIGHTS, CACHE), not keeps_weights

    def wake(self) -> None:
        """Takes all of it back, with the weights that were there.

        Raises:
            EngineError: they were dropped, and no others have come; or the engine is lost.
        """
        if self._dropped:
            raise EngineError("the sampler dropped its weights when it fell asleep: load a policy's weights first")
        self._take_back(WEIGHTS, CACHE)

    def begin_weights(self) -> None:
        """Takes back what new weights are written into."""
        self._take_back(WEIGHTS)

    def end_weights(self) -> None:
        """Takes back the rest: all of the new weights have come."""
        self._dropped = False
        self._take_back(CACHE)

    def _take_back(self, *parts: str) -> None:
        if parts := tuple(part for part in parts if part in self._asleep):
            with failing("take back its GPU's memory, which others may hold"):
                self._engine.wake_up(tags=list(parts))
            self._asleep = tuple(part for part in self._asleep if part not in parts)
