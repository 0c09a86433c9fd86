"""Policies that no round of a run has made, measured on a run's held-out prompts: best-of-N, and peers' trainers.

What they answer lies in an annex of the run whose initial policy and prompts they share, shard by shard, under the name
that a run of theirs would have. So a kill loses one shard, and the run itself does not change.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.analysis.judge_process import with_judge_process
from flows.host.allotment import Allotment
from flows.host.progress import Display
from flows.host.versions import software
from flows.registry.judge_source import NamedJudge
from flows.remote.calls import Client
from flows.workers.judge import JudgeWorker
from flows.workers.rejudge import RejudgeWorker
from flows.workers.sampler import EVALUATION_SEED_ROUND
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.records import EVALUATION_LOGPS, content_id, prompt_seed, to_table
from storage.log.manifest import FileRef, Key
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from storage.tables.shards import read_table, write_table

COMPLETIONS, JUDGMENTS, LOGPS = "beside_completions", "beside_judgments", "beside_logps"
"""Stages of an annex; those of the run have other names, so that queries do not mix them."""
_SHARD = 32
"""Prompts that are answered together, and committed."""


@dataclass(frozen=True)
class Made:
    """A policy to measure.

    Attributes:
        number: which of the annex's policies it is; 0 is the initial one.
        directory: its checkpoint.
        inputs: names all that it was made from.
        samples: completions of each prompt.
    """

    number: int
    directory: Path
    inputs: str
    samples: int = 1


def annex_of(store: Store, anchor: Run, name: str, header: Mapping[str, Any]) -> Run:
    """Returns the annex of this name, which is made if there is none; see `check_annex`."""
    if name not in anchor.annexes:
        return store.create_annex(anchor, name, dict(header))
    annex = anchor.annex(name)
    check_annex(annex, header)
    return annex


def check_annex(annex: Run, header: Mapping[str, Any]) -> None:
    """Refuses an annex of other settings.

    Raises:
        ConfigError: it records another origin.
    """
    if annex.header != dict(header):
        run, _, name = annex.name.partition("/")
        raise ConfigError(
            f"'{name}' beside run '{run}' was made with other settings: give the arm another name, or delete that run"
        )


def writing(annex: Run) -> AbstractContextManager[Writer]:
    """Gives the right to write to an annex."""
    return annex.writer(False, software())


def is_measured(annex: Run, number: int, recipe: Recipe) -> bool:
    """Says whether all held-out prompts were answered by a policy, and the answers were judged."""
    return len(annex.files(number, JUDGMENTS)) == len(_shards(recipe.evaluation.prompts))


def measure(
    store: Store, anchor: Run, annex: Run, writer: Writer, recipe: Recipe, policies: Sequence[Made], initial: Path,
    display: Display,
) -> None:  # fmt: skip
    """Answers, judges and scores the held-out prompts with policies, as far as that was not done before.

    The transformers engine samples, in this process. A prompt's seeds are those of every evaluation of the run, so that
    policies differ by their weights alone.

    Args:
        initial: checkpoint of the initial policy, to which the divergence is measured.
    """

    async def work(client: Client[RejudgeWorker]) -> None:
        for policy in policies:
            with display.stage(policy.number, "measure", len(_shards(recipe.evaluation.prompts)), 1, "shards") as stage:
                job = _Measuring(store, anchor, writer, recipe, policy, initial, annex)
                for shard in range(len(_shards(recipe.evaluation.prompts))):
                    stage.begin()
                    await job.do(client, shard)
                    stage.report({"done": shard + 1})

    alone = recipe.model_copy(update={"gate": None})
    with_judge_process(store, annex.name, NamedJudge(alone, None), work, say=display.say)


class _Measuring:
    """One policy at work."""

    def __init__(
        self, store: Store, anchor: Run, writer: Writer, recipe: Recipe, policy: Made, initial: Path, annex: Run
    ) -> None:
        self._store, self._recipe, self._policy, self._annex = store, recipe, policy, annex
        self._writer, self._initial = writer, initial
        self._prompts = tuple(anchor.files(0, "prompts"))
        table = read_table(store, self._prompts).select(["prompt_id", "token_ids", "split"])
        self._rows = [row for row in table.to_pylist() if row["split"] == "evaluation"]
        self._engines: dict[Path, Any] = {}

    async def do(self, client: Client[RejudgeWorker], shard: int) -> None:
        """Answers, scores and judges a shard of the prompts."""
        policy, rows = self._policy, [self._rows[place] for place in _shards(len(self._rows))[shard]]
        inputs = content_id([policy.inputs, policy.samples, [row["prompt_id"] for row in rows]])
        key = Key(policy.number, COMPLETIONS, shard, inputs)
        if (done := self._annex.find(key)) is None:
            done = self._writer.commit(key, [self._sample(rows, shard)])
        (candidates,) = done.files
        if policy.number:
            scored = Key(policy.number, LOGPS, shard, inputs)
            if self._annex.find(scored) is None:
                self._writer.commit(scored, [self._score(candidates, shard)])
        judges = self._recipe.held_out_judges
        judged = Key(policy.number, JUDGMENTS, shard, content_id([inputs, self._recipe.judge_names]))
        if self._annex.find(judged) is None:
            answer = await client.call(
                JudgeWorker.judge, prompts=self._prompts, candidates=candidates, round=policy.number,
                stage=JUDGMENTS, shard=shard, judges=judges,
            )  # fmt: skip
            self._writer.commit(judged, [answer.result.file])

    def _sample(self, rows: Sequence[Mapping[str, Any]], shard: int) -> FileRef:
        from pipeline.sampling import SamplingRequest, candidates_table, finish

        recipe, policy = self._recipe, self._policy
        requests = [
            SamplingRequest(
                row["prompt_id"], row["token_ids"], prompt_seed(recipe.seed, EVALUATION_SEED_ROUND, row["prompt_id"])
            )
            for row in rows
        ]
        config = recipe.sampling.held_out.model_copy(update={"candidates": policy.samples})
        candidates = finish(self._engine(policy.directory).sample(requests, config))
        ids = {request.prompt_id: request.token_ids for request in requests}
        table = candidates_table(candidates, ids, self._tokenizer, policy.inputs, recipe.sampling.thought)
        return self._write(table, COMPLETIONS, shard)

    def _score(self, candidates: FileRef, shard: int) -> FileRef:
        ids = {row["prompt_id"]: row["token_ids"] for row in self._rows}
        answers = read_table(self._store, (candidates,)).to_pylist()
        pairs = [(ids[row["prompt_id"]], row["token_ids"]) for row in answers]
        initial = [sum(logps) for logps in self._engine(self._initial).score(pairs)]
        rows = [
            {
                "prompt_id": row["prompt_id"], "candidate": row["candidate"], "tokens": len(row["token_ids"]),
                "policy": sum(row["logprobs"]), "previous": logp, "initial": logp,
            }
            for row, logp in zip(answers, initial, strict=True)
        ]  # fmt: skip
        return self._write(to_table(rows, EVALUATION_LOGPS), LOGPS, shard)

    def _write(self, table: Any, stage: str, shard: int) -> FileRef:
        return write_table(self._store, self._annex.name, self._policy.number, stage, table, shard)

    @cached_property
    def _tokenizer(self) -> Any:
        from pipeline.model.policy import load_tokenizer

        return load_tokenizer(self._policy.directory)

    def _engine(self, directory: Path) -> Any:
        if directory not in self._engines:
            from pipeline.sampling.transformers_engine import TransformersSampler

            devices = Allotment.of(self._recipe).recipe(self._recipe, "sampler").devices
            self._engines[directory] = TransformersSampler(
                directory, self._recipe.sampling, device=devices.sampler, threads=devices.threads
            )
        return self._engines[directory]


def _shards(prompts: int) -> list[range]:
    return [range(start, min(start + _SHARD, prompts)) for start in range(0, prompts, _SHARD)]
