"""The trainer: makes the initial policy, updates it each round, and scores sequences under any of the policies."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from flows.workers import preference_groups
from flows.workers.base import ProgressCall, Worker
from flows.workers.references import PolicyRef, PreferenceShard, UpdateInputs
from flows.workers.round_update import RoundUpdate, Trained
from pipeline.config import PretrainedPolicy, WarmStartPolicy
from pipeline.data import prompts as prompt_tables
from pipeline.errors import ConfigError, LostUpdateError
from pipeline.model import compilation
from pipeline.model import policy as policies
from pipeline.model.devices import check_device
from pipeline.model.distributed import ALONE, World, shard
from pipeline.model.logprobs import sequence_logps
from pipeline.model.warm_start import train_warm_start, warm_start_digest
from pipeline.packing.packing import TokenGroup
from pipeline.records import EVALUATION_LOGPS, PROBE, to_table
from storage.log.manifest import FileRef
from storage.tables import checkpoints

PROBE_SEQUENCES = 8
PROBE_TOKENS = 8  # of a prompt; twice as many fit into every context


class TrainerWorker(Worker):
    """Holds one model, whichever policy's weights it needs; there is never a second one in memory.

    Of several ranks each holds a part of it, and reads all that the others read. The first one writes, and tells the
    others what.
    """

    COLLECTIVE = frozenset({"probe", "begin_update", "add_preferences", "finish_update", "score"})
    """What all ranks are asked; the rest the first one does alone."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.device = self.recipe.devices.trainer
        import torch

        devices = self.recipe.devices
        torch.set_num_threads(devices.cpu_threads)
        check_device("devices.trainer", devices.trainer)
        if devices.trainer != "cpu" and (found := torch.cuda.device_count()) < devices.trainer_ranks:
            raise ConfigError(f"devices.trainer_ranks is {devices.trainer_ranks}, and torch finds {found} GPUs here")
        if self.recipe.update.compile:
            compilation.check_compiler(devices.trainer)
        self._world = World.join(devices.trainer) if devices.trainer_world > 1 else ALONE
        if not self._world.leads:
            self.merged = self.scratch / f"merged by rank {self._world.rank}"
        self._model: Any = None
        self._tokenizer: Any = None
        self._policy: str | None = None
        self._base: str | None = None
        self._adapter: Any = None
        self._update: RoundUpdate | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes."""
        return self._world.leads

    def directory(self, files: Sequence[FileRef]) -> Path:
        """A committed checkpoint as a local directory; a machine's first rank fetches it, the others find it there."""
        if not self._world.fetches:
            self._world.wait()
        found = super().directory(files)
        if self._world.fetches:
            self._world.wait()
        return found

    def write(self, table: pa.Table, round: int, stage: str, shard: int | None = None) -> FileRef:
        """Writes a table, from the first rank, that the flow will commit."""
        (file,) = self._of_first([super().write(table, round, stage, shard)] if self._world.leads else ())
        return file

    def prepare_policy(self, *, progress: ProgressCall) -> tuple[list[FileRef], dict[str, Any]]:
        """The checkpoint of round 0: a warm start, trained once for its configuration, or a pretrained policy."""
        config = self.recipe.policy
        if isinstance(config, PretrainedPolicy):
            model, tokenizer = policies.load_policy(config.path, device="cpu", revision=config.revision)
            with checkpoints.stage_directory(self.store, self.run, 0, "checkpoint") as staged:
                policies.save_policy(model, tokenizer, staged.path)
            return list(staged.files), {"source": config.path}
        return self._warm_start(config, progress)

    def _warm_start(self, config: WarmStartPolicy, progress: ProgressCall) -> tuple[list[FileRef], dict[str, Any]]:
        devices = self.recipe.devices
        digest = warm_start_digest(config, threads=devices.cpu_threads, device=devices.trainer)
        found = checkpoints.find_shared(self.store, "warm_starts", digest)
        if found is not None:
            return list(found), {"source": f"warm start {digest}", "cached": True}
        started = time.perf_counter()

        def on_step(step: int, loss: float) -> None:
            progress(done=step, total=config.steps, loss=loss, seconds=time.perf_counter() - started)

        with checkpoints.stage_shared(self.store, "warm_starts", digest) as staged:
            report = train_warm_start(
                config, staged.path, threads=devices.cpu_threads, device=devices.trainer, on_step=on_step
            )
        return list(staged.files), {"source": f"warm start {digest}", "cached": False, **asdict(report)}

    def prepare_prompts(self, checkpoint: tuple[FileRef, ...], *, progress: ProgressCall) -> FileRef:
        """The prompts of the whole run, tokenised once and checked against the policy's context."""
        recipe = self.recipe
        directory = super().directory(checkpoint)  # the first rank's alone, as is what it writes
        tokenizer = policies.load_tokenizer(directory)
        table = prompt_tables.load_prompts(
            recipe.prompts, recipe.evaluation.prompts, recipe.seed, tokenizer, lambda notice: progress(notice=notice)
        )
        context = min(policies.max_context(directory), recipe.sampling.context or 2**62)
        prompt_tables.check_lengths(table, recipe.sampling.max_tokens, context)
        prompt_tables.round_slice(table, 1, recipe.sampling.prompts_per_round, recipe.seed)
        return super().write(table, 0, "prompts")

    def probe(
        self, checkpoint: tuple[FileRef, ...], prompts: tuple[FileRef, ...], *, progress: ProgressCall
    ) -> FileRef:
        """A probe for the initial policy. Any tokens serve: here the beginnings of prompts, each followed by itself."""
        del progress
        self._load(self.directory(checkpoint))
        ids = [row[:PROBE_TOKENS] for row in self.table(prompts).slice(0, PROBE_SEQUENCES)["token_ids"].to_pylist()]
        file = self.write_probe(0, [TokenGroup(f"probe {row}", tokens, [tokens]) for row, tokens in enumerate(ids)])
        self.empty_cache()
        return file

    def begin_update(self, inputs: UpdateInputs, round: int, seed: int, *, progress: ProgressCall) -> None:
        """Begins a round's update with the preferences that are there, and what an interrupted one had done."""
        self._update = None
        self._update = RoundUpdate(self, inputs, round, seed, progress)

    def add_preferences(self, shard: PreferenceShard, *, progress: ProgressCall) -> None:
        """Preferences of the round's next shard; takes the steps that are known with them.

        Raises:
            LostUpdateError: this worker has begun no update.
        """
        self._in_progress().add(shard, progress)

    def finish_update(self, *, progress: ProgressCall) -> Trained:
        """Takes the steps that are left, and writes the round's checkpoint.

        Raises:
            LostUpdateError: this worker has begun no update.
        """
        trained = self._in_progress().finish(progress)
        self._update = None  # with the optimizer's moments
        self.empty_cache()
        return trained

    def _in_progress(self) -> RoundUpdate:
        if self._update is None:
            raise LostUpdateError("the trainer is asked to go on with an update that it has not begun: begin it again")
        return self._update

    def score(
        self,
        policy: PolicyRef,
        previous: PolicyRef,
        initial: PolicyRef,
        prompts: tuple[FileRef, ...],
        candidates: tuple[FileRef, ...],
        round: int,
        *,
        progress: ProgressCall,
    ) -> FileRef:
        """Log-probabilities of a round's held-out answers under its policy, the previous one and the initial one."""
        del progress
        answers = self.table(candidates).select(["prompt_id", "candidate", "token_ids"]).to_pylist()
        ids = preference_groups.prompt_token_ids(self.table(prompts), (row["prompt_id"] for row in answers))
        groups = [TokenGroup(row["prompt_id"], ids[row["prompt_id"]], [row["token_ids"]]) for row in answers]
        logps: dict[str, list[float]] = {}
        for name, reference in (("policy", policy), ("previous", previous), ("initial", initial)):
            self.use(reference)
            scored = self.logps(groups)
            logps[name] = [candidate for (candidate,) in scored]
        self.empty_cache()
        rows = [
            {
                "prompt_id": row["prompt_id"],
                "candidate": row["candidate"],
                "tokens": len(row["token_ids"]),
                **{name: values[index] for name, values in logps.items()},
            }
            for index, row in enumerate(answers)
        ]
        return self.write(to_table(rows, EVALUATION_LOGPS), round, "eval_logps")

    def use(self, policy: PolicyRef) -> Any:
        """Puts a policy's weights into the one model, which it returns."""
        if self._policy != policy.digest:
            self._policy = None
            if self.recipe.update.lora is None:
                self._load(self.whole(policy))
            else:
                self._load_adapted(policy)
            self._policy = policy.digest
        return self._model

    def set_current_policy(self, policy: str | None) -> None:
        """The model holds these weights from now on; None while an update changes them."""
        self._policy = policy

    def _load(self, directory: Path) -> None:
        if self._model is None:
            device = self.recipe.devices.trainer if self._world.size == 1 else "cpu"
            self._model, self._tokenizer = policies.load_policy(directory, device=device)
            if (config := self.recipe.update.lora) is not None:
                from pipeline.model.lora import Adapter

                self._adapter = Adapter(self._model, config, seed=self.recipe.seed)
            shard(self._model, self._world, precision=self.recipe.update.precision)
            if self.recipe.update.compile:
                compilation.compile_layers(self._model)
        else:
            policies.load_weights(self._model, directory)

    def _load_adapted(self, policy: PolicyRef) -> None:
        """The base's weights, where they are not those in place, and the adapter; a whole policy has an empty one."""
        base = policy.base or policy.files
        digest = checkpoints.weights_digest(base)
        if self._base != digest:
            self._base = None
            self._load(self.directory(base))
            self._base = digest
        if policy.base:
            self._adapter.load(self.directory(policy.files))
        else:
            self._adapter.reset()

    def save_policy(self, directory: Path) -> None:
        """Writes the model, or where one is trained its adapter, as a checkpoint."""
        if self._adapter is None:
            policies.save_policy(self._model, self._tokenizer, directory)
        else:
            self._adapter.save(self._tokenizer, directory)

    def stage(self, round: int, stage: str, save: Callable[[Path], None]) -> tuple[FileRef, ...]:
        """A directory that the flow will commit, written by the first rank."""
        if not self._world.leads:
            save(Path())  # gives the first rank its part, and writes nothing
            return self._of_first(())
        with checkpoints.stage_directory(self.store, self.run, round, stage) as staged:
            save(staged.path)
        return self._of_first(staged.files)

    def _of_first(self, files: Sequence[FileRef]) -> tuple[FileRef, ...]:
        """The files that the first rank wrote, on all ranks."""
        text = self._world.share(json.dumps([file.to_json() for file in files]))
        return tuple(map(FileRef.from_json, json.loads(text)))

    def logps(self, groups: Sequence[TokenGroup]) -> list[list[float]]:
        """Log-probability of each candidate under the weights in place, in nats."""
        config = self.recipe.update
        return sequence_logps(self._model, groups, config.token_budget, precision=config.precision)

    def write_probe(self, round: int, groups: Sequence[TokenGroup], before: Sequence[float] | None = None) -> FileRef:
        """Sequences with their log-probabilities now, and ``before`` the update."""
        rows = [
            {
                "prompt_token_ids": group.prompt_token_ids,
                "token_ids": group.candidate_token_ids[0],
                "logp": logp,
                "previous_logp": before[index] if before else None,
            }
            for index, (group, (logp,)) in enumerate(zip(groups, self.logps(groups), strict=True))
        ]
        return self.write(to_table(rows, PROBE), round, "probe")
