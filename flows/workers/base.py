"""What every worker has: the store, the recipe, and a reader of committed files."""

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from flows.workers.references import PolicyRef
from pipeline.model.heap import trim_heap
from pipeline.recipe import Recipe
from storage.errors import StorageAccessError
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables import checkpoints, shards

ProgressCall = Callable[..., None]
"""Called with what is to be told, such as ``done=3, total=9, tokens=512``."""

Method = TypeVar("Method", bound=Callable[..., Any])


def everywhere(method: Method) -> Method:
    """Marks what each replica of a worker has to do, as to take a policy; any other request is for one of them."""
    method.everywhere = True  # type: ignore[attr-defined]
    return method


def collective(method: Method) -> Method:
    """Marks what all ranks of a worker do together; anything else the first one does alone."""
    method.collective = True  # type: ignore[attr-defined]
    return method


def _silent(**_told: Any) -> None:
    """Tells nobody."""


class Worker:
    """Reads its inputs from the store, writes its outputs there, and returns references to them.

    Args:
        root: directory or URI of the store.
        run: name of the run.
        recipe: the recipe, as JSON.
        scratch: a local directory for copies that the run's end removes.
    """

    device = "cpu"
    """Where it works, for those who look at a round afterwards."""

    progress: ProgressCall = staticmethod(_silent)
    """Tells whoever asked for what is being done; the dispatcher sets it for each request."""

    def __init__(self, root: str, run: str, recipe: Mapping[str, Any], scratch: str) -> None:
        self.store = Store.open(root, create=False)
        self.run = run
        self.recipe = Recipe.model_validate(recipe)
        patience = self.store.objects.patience
        patience.reached = True  # by the flow, which has started this worker
        patience.seconds = self.recipe.store.patience_seconds
        patience.say = lambda text: self.progress(says=text)
        self._scratch = Path(scratch)
        # A round's shards all read the run's prompts: the last few tables stay in memory.
        self._read = lru_cache(maxsize=4)(self._read_table)

    @property
    def scratch(self) -> Path:
        """Returns the local directory for copies.

        Raises:
            StorageAccessError: it was removed meanwhile: what is written there would come to nothing.
        """
        if not self._scratch.is_dir():
            raise StorageAccessError(f"{self._scratch}, where this run keeps its temporary files, was removed")
        return self._scratch

    @property
    def merged(self) -> Path:
        """Returns the directory where adapters are merged with their bases; each process has its own."""
        return self.scratch / f"merged by {type(self).__name__}"

    def table(self, files: Sequence[FileRef]) -> pa.Table:
        """Reads committed shards as one table, in the order given."""
        return self._read(tuple(files))

    def directory(self, files: Sequence[FileRef]) -> Path:
        """Returns a committed checkpoint as a local directory."""
        return checkpoints.local_directory(self.store, files, self.scratch / "checkpoints")

    def whole(self, policy: PolicyRef, name: str = "policy") -> Path:
        """Returns a policy as a local directory with all its weights.

        Args:
            name: of the copy in which an adapter is merged with its base; it replaces the one before of this name.
        """
        return whole_directory(policy, self.directory, self.merged / name)

    def empty_cache(self) -> None:
        """Returns the memory that is kept for later, by torch of a GPU or by the C library: others work beside."""
        if (torch := sys.modules.get("torch")) is None:
            return
        if self.device == "cpu":
            trim_heap()
        else:
            gc.collect()
            torch.cuda.empty_cache()

    def write(self, table: pa.Table, round: int, stage: str, shard: int | None = None) -> FileRef:
        """Writes a table that the flow will commit."""
        return shards.write_table(self.store, self.run, round, stage, table, shard)

    def _read_table(self, files: tuple[FileRef, ...]) -> pa.Table:
        return shards.read_table(self.store, files)


def whole_directory(policy: PolicyRef, directory: Callable[[Sequence[FileRef]], Path], merged: Path) -> Path:
    """Returns a policy as a local directory with all its weights; an adapter is merged with its base.

    Args:
        directory: makes a committed checkpoint local.
        merged: where an adapter is merged with its base.
    """
    if not policy.base:
        return directory(policy.files)
    from pipeline.model.lora import merge

    return merge(directory(policy.base), directory(policy.files), merged)
