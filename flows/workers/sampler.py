"""The sampler: one engine for the whole run, which takes each round's weights in place.

It may have a policy's weights before they are saved, and so before their hash is known. What it samples then waits in
the scratch directory, which outlives it, and is written to the store as soon as the policy can be named.
"""

import time
import uuid
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather

from flows.workers.base import Worker, everywhere
from flows.workers.drift import compare_with_probe, nearer_to_previous
from flows.workers.precision import Agreement
from flows.workers.references import Drift, PolicyRef, WeightSource
from flows.workers.sampler_engine import SamplerEngine
from pipeline.config import SamplingConfig, ThoughtMarks
from pipeline.errors import EngineError, WeightSyncError
from pipeline.evaluation.gate_tasks import GateTask, load_tasks
from pipeline.gate import least_pairs
from pipeline.judges.support.tables import judgments_table
from pipeline.model.weight_pieces import WantedWeights, WeightPiece
from pipeline.records import prompt_seed
from pipeline.sampling import (
    SamplingRequest,
    Sleepable,
    WeightReceiver,
    candidates_table,
    import_engine,
    reported,
)
from pipeline.sampling.environment import configure_environment
from storage.log.manifest import FileRef
from storage.objects import durable

EVALUATION_SEED_ROUND = 0
"""Held-out prompts keep their seeds over the rounds, so that two rounds differ by their policies alone."""


@dataclass(frozen=True)
class Sampled:
    """A sampled shard: its file, and how many completions and tokens were sampled.

    Of a policy that is not saved yet there is no file: it is ``unnamed``, a path in the scratch directory, instead.
    """

    file: FileRef | None
    completions: int
    tokens: int
    unnamed: str | None = None


class SamplerWorker(Worker):
    """Samples shards of candidates from any policy."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.device = self.recipe.devices.sampler
        devices = self.recipe.devices
        configure_environment(self.device, devices.threads)
        # The imports take 5 to 20 s: they are paid while the first policy is still being prepared.
        import_engine(self.recipe.sampling)
        self._engine = SamplerEngine(self)
        self._tasks: list[GateTask] | None = None
        self._drift: Drift | None = None
        self._policy: str | None = None
        self._started_with: str | None = None
        self._began = 0.0

    @everywhere
    def use(self, policy: PolicyRef) -> Drift:
        """Takes the weights of a policy, and shows on its probe that the engine now computes with them.

        Raises:
            WeightSyncError: the engine's log-probabilities are not the trainer's.
            EngineError: shards of another policy are in progress, or the policy is not saved yet, and is not here.
        """
        if self._holds(policy) and self._drift is not None:
            return self._drift
        if not policy.saved:
            raise EngineError("the sampler has been started anew, and its policy is not saved yet: ask once it is")
        started = time.perf_counter()
        self._policy = None
        self._started_with = policy.digest if self._engine.sampler is None else None
        self._engine.load(policy)
        self._drift = self._compare(policy, started, "checkpoint")
        self._policy = policy.digest
        return self._drift

    def check_adapters(self) -> None:
        """Refuses adapters that vLLM cannot serve, before there is a policy, as far as its configuration tells.

        Raises:
            UnsupportedModelError: vLLM cannot serve them.
        """
        self._engine.check_adapters()

    @everywhere
    def wanted_weights(self, policy: PolicyRef) -> WantedWeights | None:
        """Says what it wants of a policy's weights if it is to have them out of the trainer's memory.

        None if it cannot: it has the policy already, or no engine yet, or one that reads checkpoints alone, as one that
        serves adapters does: an adapter's is small.
        """
        if self._holds(policy) or not isinstance(self._engine.sampler, WeightReceiver):
            return None
        self._began = time.perf_counter()
        return self._engine.sampler.wanted_weights()

    @everywhere
    def take_weights(self, piece: WeightPiece) -> None:
        """Takes a piece of new weights; until `finish_weights` it can do nothing else.

        Raises:
            EngineError: shards of another policy are in progress, or the engine failed or is a new one.
        """
        self._policy = None
        self._receiver().take_weights(piece)

    @everywhere
    def finish_weights(self, policy: PolicyRef) -> Drift:
        """Ends the new weights, and shows on the policy's probe that the engine now computes with them.

        Raises:
            WeightSyncError: the engine's log-probabilities are not the trainer's.
            EngineError: not all weights have come.
        """
        self._receiver().finish_weights(policy.digest)
        self._started_with = None
        self._drift = self._compare(policy, self._began, "memory")
        self._policy = policy.digest
        return self._drift

    def _holds(self, policy: PolicyRef) -> bool:
        """Says whether the engine has these weights, which it may know by the name that they had until now."""
        if self._policy is not None and self._policy == policy.trained_as:
            self._receiver().name_weights(policy.digest)
            self._policy = policy.digest
        return self._policy == policy.digest

    def _receiver(self) -> WeightReceiver:
        if not isinstance(self._engine.sampler, WeightReceiver):
            raise EngineError("the sampler has been started anew while it was given weights: it reads the checkpoint")
        return self._engine.sampler

    def sample(
        self,
        policy: PolicyRef,
        prompts: tuple[FileRef, ...],
        rows: list[int],
        round: int,
        stage: str,
        shard: int,
        held_out: bool,
        served: bool = False,
        thought: ThoughtMarks | None = None,
        gate: bool = False,
    ) -> Generator[tuple[int, int], None, Sampled]:
        """Samples the candidates of these rows of the prompts table and writes them as one shard.

        A turn is a step of the engine, which several shards of one policy may share.

        Args:
            thought: the marks around what the policy thinks before it answers; None if it does not think.
            gate: whether the prompts are the gate's, which are answered greedily.
        """
        self.use(policy)
        assert self._engine.sampler is not None
        seed_round = EVALUATION_SEED_ROUND if held_out else round
        chosen = self.table(prompts).take(rows).select(["prompt_id", "token_ids"]).to_pylist()
        requests = [
            SamplingRequest(
                prompt_id=row["prompt_id"],
                token_ids=row["token_ids"],
                seed=prompt_seed(self.recipe.seed, seed_round, row["prompt_id"]),
            )
            for row in chosen
        ]
        config = self._settings(held_out, served, gate)
        total = len(requests) * config.candidates
        started = time.perf_counter()

        def report(done: int, tokens: int) -> None:
            self.progress(done=done, total=total, tokens=tokens, seconds=time.perf_counter() - started)

        candidates = yield from reported(self._engine.sampler.sample(requests, config), report)
        ids = {request.prompt_id: request.token_ids for request in requests}
        table = candidates_table(candidates, ids, self._engine.tokenizer, policy.digest, thought)
        tokens = sum(len(candidate.token_ids) for candidate in candidates)
        if not policy.saved:
            return Sampled(None, table.num_rows, tokens, self._keep_unnamed(table))
        return Sampled(self.write(table, round, stage, shard), table.num_rows, tokens)

    def name_shard(self, policy: PolicyRef, unnamed: str, round: int, stage: str, shard: int) -> FileRef:
        """Writes a shard that was sampled before its policy was saved, with the policy's hash.

        What waits stays there: if this worker dies before it has answered, it is asked again.
        """
        path = Path(unnamed)
        with durable.clear_errors(path):
            table = feather.read_table(path, memory_map=False)
        column = table.schema.get_field_index("policy")
        hashes = pa.array([policy.digest] * table.num_rows, table.schema.types[column])
        return self.write(table.set_column(column, table.schema.field(column), hashes), round, stage, shard)

    def _keep_unnamed(self, table: pa.Table) -> str:
        path = self.scratch / f"unnamed {uuid.uuid4().hex}.arrow"
        with durable.clear_write_errors(path):
            feather.write_feather(table, path, compression="uncompressed")
        return str(path)

    def score_tasks(self, policy: PolicyRef, round: int, stage: str) -> FileRef:
        """Writes a policy's scores of the examples of the gate's tasks, as judgments.

        Raises:
            ConfigError: a task cannot be loaded any more.
            PromptTooLongError: an example of one leaves no room for an answer.
        """
        gate = self.recipe.gate
        assert gate is not None, "the recipe has a gate"
        if self._tasks is None:
            self._tasks = load_tasks(gate.tasks, gate.count, least_pairs(gate.level(self.recipe.rounds)))
        self.use(policy)
        assert self._engine.sampler is not None
        settings = self._settings(held_out=True, served=False, gate=True)
        found = [task.score(self._engine.sampler, self._engine.tokenizer, settings) for task in self._tasks]
        return self.write(judgments_table([one for scores in found for one in scores]), round, stage)

    def _settings(self, held_out: bool, served: bool, gate: bool) -> SamplingConfig:
        if gate:
            greedy = self.recipe.sampling.served(temperature=0.0, top_p=1.0)
            return greedy.model_copy(update={"max_tokens": self.recipe.gate_tokens})
        serving = self.recipe.evaluation.serving
        if served and serving is not None:
            return self.recipe.sampling.served(serving.temperature, serving.top_p)
        return self.recipe.sampling.held_out if held_out else self.recipe.sampling

    @everywhere
    def sleep(self, keeps_weights: bool) -> None:
        """Lends the memory of the engine's device, until it is needed again, if the update works there.

        Args:
            keeps_weights: whether the policy is wanted again. If not, it is loaded before anything else is done, even
                if it should be the next one, too: a round without an update keeps its policy.
        """
        if isinstance(self._engine.sampler, Sleepable) and self.recipe.sampler_sleeps:
            if not keeps_weights:
                self._policy = None
            self._engine.sampler.sleep(keeps_weights=keeps_weights)

    def _compare(self, policy: PolicyRef, started: float, source: WeightSource) -> Drift:
        assert self._engine.sampler is not None
        probe = self.table((policy.probe,)).to_pylist()
        drift, sums = compare_with_probe(self._engine.sampler, probe, self.recipe.sampling)
        drift = replace(drift, seconds=time.perf_counter() - started, source=source)
        agreed = Agreement.of(self.recipe)
        if not drift.per_token <= agreed.tolerance:
            lower = "" if agreed.exact else ", or computes in a lower precision"
            why = f"the engine holds other weights{lower}"
            if self._started_with == policy.digest:
                why = (
                    "the engine has just started with these weights, so it computes this type of model in another way"
                    f"{lower}: set sampling.engine to transformers, or take another model"
                )
            raise WeightSyncError(
                f"after the sync of policy {policy.digest[:12]} the sampler's log-probabilities differ from the "
                f"trainer's by {drift.per_token:.3g} nats per token, more than sampling.handover_tolerance "
                f"{agreed.tolerance:g}: {why}{agreed.explain(drift.per_token)}"
            )
        if not drift.decoding <= agreed.tolerance:
            raise WeightSyncError(
                f"after the sync of policy {policy.digest[:12]} the sampler gives tokens that it samples other "
                f"log-probabilities than the same tokens when it scores them, by {drift.decoding:.3g} nats per token, "
                f"more than sampling.handover_tolerance {agreed.tolerance:g}: its cache, or its decoding, is not of "
                f"these weights{agreed.explain(drift.decoding)}"
            )
        if nearer_to_previous(sums, probe):
            raise WeightSyncError(
                f"after the sync of policy {policy.digest[:12]} the sampler is nearer to the log-probabilities "
                "of the policy before it than to the new ones: the engine has kept the old weights"
            )
        return drift
