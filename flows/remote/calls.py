"""What the flow asks of a worker, wherever it is, and when the work was done."""

from collections.abc import Mapping
from typing import Any, Protocol

from flows.remote.worker_process import Progress


class Calls(Protocol):
    """A worker, wherever it is."""

    async def call(self, method: str, *, on_progress: Progress | None = None, **arguments: Any) -> Any:
        """The answer of one of its methods."""
        ...


async def timed(
    worker: Calls, method: str, *, on_progress: Progress | None = None, **arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """The answer of a worker's method, and what its entry keeps of the work: ``span`` and ``device``."""
    work: dict[str, Any] = {}

    def hear(metrics: Mapping[str, Any]) -> None:
        if "span" in metrics:
            work.update(metrics)
        elif on_progress is not None:
            on_progress(metrics)

    return await worker.call(method, on_progress=hear, **arguments), work
