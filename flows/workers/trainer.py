"""The trainer: makes the initial policy, updates it each round, and scores sequences under any of the policies."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from flows.references import PolicyRef
from flows.workers import updates
from flows.workers.base import ProgressCall, Worker
from pipeline import policy as policies
from pipeline import prompts as prompt_tables
from pipeline.config import PretrainedPolicy, WarmStartPolicy
from pipeline.errors import ConfigError
from pipeline.packing import TokenGroup
from pipeline.records import EVALUATION_LOGPS, PROBE, STEPS, to_table
from pipeline.update import PreferenceGroup, run_update, sequence_logps
from pipeline.update_types import StepMetrics, UpdateResult
from pipeline.warm_start import train_warm_start, warm_start_digest
from storage import checkpoints
from storage.manifest import FileRef

PROBE_SEQUENCES = 8
PROBE_TOKENS = 8  # of a prompt; twice as many fit into every context


@dataclass(frozen=True)
class Trained:
    """An update: the new checkpoint with its probe, the table of its steps, and its figures."""

    policy: PolicyRef
    metrics: FileRef
    figures: dict[str, Any]


class TrainerWorker(Worker):
    """Holds one model, whichever policy's weights it needs; there is never a second one in memory."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        import torch

        devices = self.recipe.devices
        torch.set_num_threads(devices.cpu_threads)
        if devices.trainer != "cpu" and not torch.cuda.is_available():
            raise ConfigError(f"devices.trainer is '{devices.trainer}', and torch finds no GPU here: set it to cpu")
        self._model: Any = None
        self._tokenizer: Any = None
        self._policy: str | None = None

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
        del progress
        recipe = self.recipe
        directory = self.directory(checkpoint)
        tokenizer = policies.load_tokenizer(directory)
        table = prompt_tables.load_prompts(recipe.prompts, recipe.evaluation.prompts, recipe.seed, tokenizer)
        context = min(policies.max_context(directory), recipe.sampling.context or 2**62)
        prompt_tables.check_lengths(table, recipe.sampling.max_tokens, context)
        prompt_tables.round_slice(table, 1, recipe.sampling.prompts_per_round, recipe.seed)
        return self.write(table, 0, "prompts")

    def probe(
        self, checkpoint: tuple[FileRef, ...], prompts: tuple[FileRef, ...], *, progress: ProgressCall
    ) -> FileRef:
        """A probe for the initial policy. Any tokens serve: here the beginnings of prompts, each followed by itself."""
        del progress
        self._use(checkpoint)
        ids = [row[:PROBE_TOKENS] for row in self.table(prompts).slice(0, PROBE_SEQUENCES)["token_ids"].to_pylist()]
        return self._write_probe(0, [TokenGroup(f"probe {row}", tokens, [tokens]) for row, tokens in enumerate(ids)])

    def update(
        self,
        policy: PolicyRef,
        prompts: tuple[FileRef, ...],
        candidates: tuple[FileRef, ...],
        preferences: tuple[FileRef, ...],
        round: int,
        seed: int,
        drift: float,
        *,
        progress: ProgressCall,
    ) -> Trained:
        """One round's DPO update, from the policy that sampled, which is also the reference.

        Args:
            drift: difference of sampler and trainer after the hand-over, in nats per sequence.
        """
        self._use(policy.files, policy.policy)
        rows = [row for row in self.table(preferences).to_pylist() if row["kind"] != "dropped"]
        groups = updates.preference_groups(self.table(prompts), self.table(candidates), rows)
        groups, reference = updates.with_reference(self._model, groups, self.recipe.update, drift)
        settings = updates.update_settings(self.recipe.update)
        total = updates.steps_of_round(len(groups), settings)
        started, tokens = time.perf_counter(), 0

        def on_step(step: StepMetrics) -> None:
            nonlocal tokens
            tokens += step.tokens
            progress(
                done=step.step + 1, total=total, tokens=tokens, loss=step.loss, seconds=time.perf_counter() - started
            )

        self._policy = None  # from here on the model is no committed policy, whatever happens
        result = run_update(self._model, groups, settings, seed=seed, on_step=on_step)
        return self._save(round, groups, result, {**reference, "seconds": time.perf_counter() - started})

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
        ids = updates.prompt_token_ids(self.table(prompts))
        groups = [TokenGroup(row["prompt_id"], ids[row["prompt_id"]], [row["token_ids"]]) for row in answers]
        logps: dict[str, list[float]] = {}
        for name, reference in (("policy", policy), ("previous", previous), ("initial", initial)):
            self._use(reference.files, reference.policy)
            scored = self._logps(groups)
            logps[name] = [candidate for (candidate,) in scored]
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

    def _use(self, checkpoint: Sequence[FileRef], policy: str | None = None) -> None:
        """Puts a policy's weights into the one model."""
        wanted = policy or checkpoints.weights_digest(checkpoint)
        if self._policy == wanted:
            return
        directory = self.directory(tuple(checkpoint))
        self._policy = None
        if self._model is None:
            self._model, self._tokenizer = policies.load_policy(directory, device=self.recipe.devices.trainer)
        else:
            policies.load_weights(self._model, directory)
        self._policy = wanted

    def _save(
        self, round: int, groups: Sequence[PreferenceGroup], result: UpdateResult, figures: Mapping[str, Any]
    ) -> Trained:
        with checkpoints.stage_directory(self.store, self.run, round, "checkpoint") as staged:
            policies.save_policy(self._model, self._tokenizer, staged.path)
        digest = checkpoints.weights_digest(staged.files)
        self._policy = digest
        probe = self._write_probe(round, [_best_answer(group) for group in groups[:PROBE_SEQUENCES]])
        steps = to_table([asdict(step) for step in result.steps], STEPS)
        metrics = self.write(steps, round, "metrics")
        return Trained(PolicyRef(digest, staged.files, probe), metrics, {**figures, **updates.summary(result)})

    def _logps(self, groups: Sequence[TokenGroup]) -> list[list[float]]:
        config = self.recipe.update
        return sequence_logps(self._model, groups, config.token_budget, precision=config.precision)

    def _write_probe(self, round: int, groups: Sequence[TokenGroup]) -> FileRef:
        scored = self._logps(groups)
        rows = [
            {"prompt_token_ids": group.prompt_token_ids, "token_ids": group.candidate_token_ids[0], "logp": logp}
            for group, (logp,) in zip(groups, scored, strict=True)
        ]
        return self.write(to_table(rows, PROBE), round, "probe")


def _best_answer(group: PreferenceGroup) -> TokenGroup:
    return TokenGroup(group.prompt_id, group.prompt_token_ids, group.candidate_token_ids[:1])
