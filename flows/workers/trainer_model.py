"""The trainer's one model: it holds whichever policy's weights are needed, and there is never a second one in memory.

Of several ranks each holds a part of it, and reads all that the others read. The first one writes, and tells the others
what.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from flows.workers.base import Worker, whole_directory
from flows.workers.references import PolicyRef
from pipeline.errors import ConfigError, LostUpdateError
from pipeline.model import compilation
from pipeline.model import policy as policies
from pipeline.model.checkpoint_files import stored_dtype
from pipeline.model.devices import check_device
from pipeline.model.distributed import ALONE, World, shard
from pipeline.model.logprobs import sequence_logps, token_logps
from pipeline.model.sent_weights import SavedLayout, SentWeights
from pipeline.model.shared_memory import SharedPiece
from pipeline.model.weight_pieces import WantedWeights, WeightPiece
from pipeline.packing.packing import TokenGroup
from pipeline.records import PROBE, to_table
from storage.log.manifest import FileRef
from storage.tables import checkpoints


class TrainerModel:
    """The model, and the files that it is read from and written to.

    Args:
        worker: whose store, recipe and scratch directory these are.

    Raises:
        ConfigError: a device that the recipe names is not there.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker, self.recipe, devices = worker, worker.recipe, worker.recipe.devices
        torch.set_num_threads(devices.threads)
        check_device("devices.trainer", devices.trainer)
        if devices.trainer != "cpu" and (found := torch.cuda.device_count()) < devices.trainer_ranks:
            raise ConfigError(f"devices.trainer_ranks is {devices.trainer_ranks}, and torch finds {found} GPUs here")
        if self.recipe.update.compile:
            compilation.check_compiler(devices.trainer)
        self._world = World.join(devices.trainer) if devices.trainer_world > 1 else ALONE
        self._model: Any = None
        self._tokenizer: Any = None
        self._adapter: Any = None
        self._layout: SavedLayout | None = None
        self._sent: SentWeights | None = None
        self._pieces: list[SharedPiece] = []
        self._policy: str | None = None
        self._base: str | None = None

    @property
    def is_main(self) -> bool:
        """Says whether this is the rank that writes."""
        return self._world.is_main

    def table(self, files: Sequence[FileRef]) -> pa.Table:
        """Reads committed shards as one table, in the order given."""
        return self.worker.table(files)

    def directory(self, files: Sequence[FileRef]) -> Path:
        """Returns a committed checkpoint as a local directory, which a machine's first rank fetches for the others."""
        if not self._world.is_local_main:
            self._world.wait()
        local = self.worker.directory(files)
        if self._world.is_local_main:
            self._world.wait()
        return local

    def whole(self, policy: PolicyRef) -> Path:
        """Returns a policy as a local directory with all its weights."""
        rank = "" if self._world.is_main else f" by rank {self._world.rank}"
        merged = self.worker.merged
        return whole_directory(policy, self.directory, merged.with_name(f"{merged.name}{rank}") / "policy")

    def use(self, policy: PolicyRef) -> Any:
        """Puts a policy's weights into the one model, which it returns."""
        if self._policy != policy.digest:
            if self.recipe.update.lora is None:
                self.load(self.whole(policy))
            else:
                self._load_adapted(policy)
            self._policy = policy.digest
        return self._model

    @property
    def current_policy(self) -> str | None:
        """Names the policy whose weights the model holds; None if they are no policy's."""
        return self._policy

    def set_current_policy(self, name: str) -> None:
        """Records whose weights the model holds from now on, by the policy's hash, or its name until it is saved."""
        self._policy = name

    def forget_policy(self) -> None:
        """Records that the weights change from now on: none of them are sent, and no policy is taken for loaded."""
        self.end_sending()
        self._policy = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Has the weights on their device meanwhile; with ``devices.offload: all`` they are elsewhere otherwise."""
        if self.recipe.devices.offload != "all":
            yield
            return
        if self._model is not None:
            self._model.to(self.recipe.devices.trainer)
        try:
            yield
        finally:
            if self._model is not None:
                self._model.to("cpu")
            self.worker.empty_cache()

    def load(self, directory: Path) -> None:
        """Puts the weights of a whole checkpoint into the model, which the first one creates."""
        self.forget_policy()
        self._base = None
        if self._model is not None:
            policies.load_weights(self._model, directory)
        else:
            self._create(directory)
        self._layout = SavedLayout.of(self._model, directory)

    def _create(self, directory: Path) -> None:
        device = self.recipe.devices.trainer if self._world.size == 1 else "cpu"
        self._model, self._tokenizer = policies.load_policy(directory, device=device)
        if self.recipe.update.router_loss_weight:
            from pipeline.model.router_loss import check_router

            check_router(self._model)
        if (config := self.recipe.update.lora) is not None:
            from pipeline.model.lora import Adapter

            self._adapter = Adapter(self._model, config, seed=self.recipe.seed)
        shard(self._model, self._world, precision=self.recipe.update.precision)
        if self.recipe.update.compile:
            compilation.compile_layers(self._model)

    def _load_adapted(self, policy: PolicyRef) -> None:
        """Loads the base's weights, if others are in place, and the adapter; a whole policy has an empty one."""
        base = policy.base or policy.files
        digest = checkpoints.weights_digest(base)
        if self._base != digest:
            self.load(self.directory(base))
            self._base = digest
        self.forget_policy()
        if policy.base:
            self._adapter.load(self.directory(policy.files))
        else:
            self._adapter.reset()

    def saved_as(self, start: PolicyRef) -> torch.dtype:
        """Says in which precision `save_policy` is to write a policy that is trained from this one."""
        asked = self.recipe.checkpoint_dtype
        if self.recipe.update.lora is not None:  # of the base it is said, and an adapter is what is written
            return torch.float32
        return stored_dtype(self.directory(start.files)) if asked == "source" else getattr(torch, asked)

    def save_policy(self, directory: Path, dtype: torch.dtype) -> None:
        """Writes the model, or its adapter if one is trained, as a checkpoint."""
        if self._adapter is None:
            policies.save_policy(self._model, self._tokenizer, directory, dtype=dtype)
        else:
            self._adapter.save(self._tokenizer, directory)

    def begin_sending(self, policy: PolicyRef, wanted: WantedWeights) -> int:
        """Prepares to give the sampler the weights in place; returns the number of pieces.

        There are none if the model holds other weights, or if the sampler wants anything else than they are.
        """
        self.end_sending()
        if self._policy != policy.digest or self._layout is None:
            return 0
        sent = SentWeights(self._layout, wanted, self._adapter)
        self._sent = sent if sent.fit else None
        return len(sent) if sent.fit else 0

    def send(self, number: int) -> WeightPiece | None:
        """Puts a piece of the weights into shared memory, on the first rank; the one before the last is given up.

        None if the system has none for it: that is said, and all are given up.

        Raises:
            LostUpdateError: this worker has begun to send nothing.
        """
        if self._sent is None:
            raise LostUpdateError("the trainer is asked for weights that it has not begun to send: begin again")
        while len(self._pieces) > 1:
            self._pieces.pop(0).close()
        tensors = self._sent.piece(number)
        if not self._world.is_main:
            for _ in tensors:  # gathered for the first one
                pass
            return WeightPiece(0, 0, 0, ())
        try:
            self._pieces.append(SharedPiece(tensors))
        except OSError as error:
            for _ in tensors:  # which other ranks have a part of
                pass
            self.end_sending()
            self.worker.progress(
                says=f"the weights cannot be put into shared memory ({error.strerror}): free some memory, or allow "
                "more open files (ulimit -n)"
            )
            return None
        return self._pieces[-1].piece

    def end_sending(self) -> None:
        """Gives the pieces up that are left."""
        self._sent = None
        while self._pieces:
            self._pieces.pop().close()

    def logps(self, groups: Sequence[TokenGroup]) -> list[list[float]]:
        """Returns the log-probability of each completion under the weights in place, in nats."""
        config = self.recipe.update
        return sequence_logps(self._model, groups, config.token_budget, precision=config.precision)

    def token_logps(self, groups: Sequence[TokenGroup]) -> tuple[list[list[float]], list[list[list[float]]]]:
        """Returns the same, and the log-probability of each token."""
        config = self.recipe.update
        return token_logps(self._model, groups, config.token_budget, precision=config.precision)

    def write(self, table: pa.Table, round: int, stage: str, shard: int | None = None) -> FileRef:
        """Writes a table, from the first rank, that the flow will commit."""
        (file,) = self._of_first([self.worker.write(table, round, stage, shard)] if self._world.is_main else ())
        return file

    def write_probe(
        self, round: int, groups: Sequence[TokenGroup], now: Sequence[float], before: Sequence[float] | None = None
    ) -> FileRef:
        """Writes sequences of one answer with their log-probabilities now, and ``before`` the update."""
        rows = [
            {
                "prompt_token_ids": group.prompt_token_ids,
                "token_ids": group.candidate_token_ids[0],
                "logp": logp,
                "previous_logp": before[index] if before else None,
            }
            for index, (group, logp) in enumerate(zip(groups, now, strict=True))
        ]
        return self.write(to_table(rows, PROBE), round, "probe")

    def stage(self, round: int, stage: str, save: Callable[[Path], None]) -> tuple[FileRef, ...]:
        """Writes a directory that the flow will commit, on the first rank."""
        if not self._world.is_main:
            save(Path())  # gives the first rank its part, and writes nothing
            return self._of_first(())
        with checkpoints.stage_directory(self.worker.store, self.worker.run, round, stage) as staged:
            save(staged.path)
        return self._of_first(staged.files)

    def _of_first(self, files: Sequence[FileRef]) -> tuple[FileRef, ...]:
        """Returns the files that the first rank wrote, on all ranks."""
        text = self._world.share(json.dumps([file.to_json() for file in files]))
        return tuple(map(FileRef.from_json, json.loads(text)))
