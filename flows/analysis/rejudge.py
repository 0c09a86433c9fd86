"""`rondo rejudge`: completions that a run has sampled are judged again, beside the run, shard by shard.

What is judged lies in an annex of the run, under the judge's name. An annex has a log and a lease of its own: so a run
that is at work goes on meanwhile, and nothing that the run reads changes. A shard is committed when it is judged, under
a key that holds the judge's version and the shard's completions. To judge again what is there does nothing.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from flows.analysis.judge_process import with_judge_process
from flows.host.progress import Display, Stage
from flows.host.text import counted
from flows.host.versions import software
from flows.registry.catalog import REJUDGMENTS
from flows.registry.judge_source import NamedJudge
from flows.registry.judge_usage import usage_meta
from flows.remote.calls import Client
from flows.workers.judge import JudgeWorker
from flows.workers.references import hashes
from flows.workers.rejudge import RejudgeWorker
from pipeline.errors import ConfigError
from pipeline.judges import JudgeConfig
from pipeline.judges.support.llm_requests import Requests
from pipeline.recipe import Recipe
from pipeline.records import content_id
from storage.errors import RunBusyError
from storage.log.lease import describe_holder
from storage.log.manifest import Entry, FileRef, Key
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from storage.objects import layout


@dataclass(frozen=True)
class ToJudge:
    """A shard of a round, and what judging it again would be committed under."""

    round: int
    candidates: FileRef
    version: str
    key: Key

    @property
    def rows(self) -> int:
        """Counts its completions."""
        return self.candidates.rows or 0


@dataclass(frozen=True)
class RoundCost:
    """What judging a round's completions again takes.

    Attributes:
        completions: all of the round.
        judged: those whose judgment is there.
        requests: what the others ask of language models, that no round before asks; None if none is asked.
    """

    round: int
    completions: int
    judged: int
    requests: Requests | None

    @property
    def left(self) -> int:
        """Counts the completions that are still to be judged."""
        return self.completions - self.judged


@dataclass(frozen=True)
class Rejudged:
    """Rounds of a run as another judge sees them.

    Attributes:
        name: of the judge, under which its judgments lie beside the run; None if they are the run's own, because the
            run was judged by this very version of the judge.
        costs: what it took, or would take, by round.
        files: the judgments of each round; empty if they were not made.
    """

    run: Run
    recipe: Recipe
    name: str | None
    version: str
    costs: list[RoundCost]
    files: dict[int, list[FileRef]]


def rejudge(
    store: Store,
    run: Run,
    rounds: Sequence[int],
    judge: NamedJudge,
    name: str | None,
    display: Display,
    *,
    dry_run: bool,
    take_over: bool = False,
) -> Rejudged:
    """Judges completions of finished rounds again, as far as that was not done before, and says before what it takes.

    Args:
        name: what the judgments are kept under; the judge's own name by default.
        dry_run: only say what it would take.

    Raises:
        ConfigError: another judge has this name beside the run.
        RunBusyError: another process judges under this name.
        JudgeError: the judge cannot be loaded, or failed as a whole. What was judged is kept.
    """
    job = _Job(store, run, rounds, judge, name, display, take_over)
    asked = replace(judge, recipe=judge.recipe.model_copy(update={"judge": job.named}))
    writes_to = layout.annex_of(run.name, job.name)
    return with_judge_process(store, writes_to, asked, lambda client: job.do(client, dry_run=dry_run), say=display.say)


class _Job:
    """One command's work."""

    def __init__(
        self, store: Store, run: Run, rounds: Sequence[int], judge: NamedJudge, name: str | None, display: Display,
        take_over: bool,
    ) -> None:  # fmt: skip
        self._store, self._run, self._rounds, self._recipe = store, run, rounds, judge.recipe
        self._display, self._take_over, self._is_named = display, take_over, name is not None
        self.name = name or judge.recipe.judge.label
        self.named = judge.recipe.judge.model_copy(update={"name": self.name})  # as its rows say
        self._annex = run.annex(self.name) if self.name in run.annexes else None
        self._check_name()

    async def do(self, client: Client[RejudgeWorker], *, dry_run: bool) -> Rejudged:
        """Judges what is left, or only says what that takes."""
        version = (await client.call(JudgeWorker.versions)).result[0]
        shards = [shard for number in self._rounds for shard in self._shards(number, version)]
        if own := self._judged_by_run(shards, version):
            return self._take_own(shards, own, version, dry_run=dry_run)
        left = [shard for shard in shards if self._find(shard) is None]
        costs = self._costs(shards, set(shards) - set(left), await self._requests(client, left))
        self._display.say(cost_sentence(self.name, costs))
        if not dry_run and (left or self._is_hidden(shards)):
            with self._writing(self.named) as (annex, writer):
                await self._judge(client, annex, writer, shards)
        files = {number: self._files(shards, number) for number in self._rounds} if not (dry_run and left) else {}
        return Rejudged(self._run, self._recipe, self.name, version, costs, files)

    def _take_own(
        self, shards: Sequence[ToJudge], own: Mapping[ToJudge, Entry], version: str, *, dry_run: bool
    ) -> Rejudged:
        """Takes the run's own judgments; if a name was asked for, the annex names their files."""
        costs = self._costs(shards, own.keys(), {})
        if self._is_named and not dry_run and any(self._find(shard) is None for shard in shards):
            with self._writing(self._recipe.judge) as (_, writer):
                for shard, entry in own.items():
                    writer.commit(shard.key, entry.files, {"version": version})
        files = {
            number: [file for shard, entry in own.items() if shard.round == number for file in entry.files]
            for number in self._rounds
        }
        return Rejudged(self._run, self._recipe, self.name if self._is_named else None, version, costs, files)

    async def _judge(
        self, client: Client[RejudgeWorker], annex: Run, writer: Writer, shards: Sequence[ToJudge]
    ) -> None:
        """Judges the shards that are left, one after the other; each is committed at once."""
        for number in self._rounds:
            here = [shard for shard in shards if shard.round == number]
            total = sum(shard.rows for shard in here)
            with self._display.stage(number, "judge again", total, len(here), "completions") as stage:
                for place, shard in enumerate(here):
                    if (done := annex.find(shard.key)) is None:
                        stage.begin()
                        done = await self._judge_shard(client, writer, shard, stage)
                    writer.renew(done)
                    if stage.worked:
                        stage.report({"done": shard.rows}, place)

    async def _judge_shard(self, client: Client[RejudgeWorker], writer: Writer, shard: ToJudge, stage: Stage) -> Entry:
        answer = await client.call(
            JudgeWorker.judge,
            prompts=tuple(self._run.files(0, "prompts")), candidates=shard.candidates,
            round=shard.round, stage=REJUDGMENTS, shard=shard.key.shard, judges=[0],
        )  # fmt: skip
        stage.worked_on(answer.work)
        meta = {"version": shard.version, **usage_meta(answer.result.usage), **answer.work}
        return writer.commit(shard.key, [answer.result.file], meta)

    def _shards(self, number: int, version: str) -> list[ToJudge]:
        """Lists the shards of a round that have completions: the newest of each."""
        places = {
            file.path: entry.key.shard
            for entry in self._run.entries(number, "candidates")
            for file in entry.files
            if entry.key is not None
        }
        scoring = self._recipe.judge.scoring()
        return [
            ToJudge(
                number,
                file,
                version,
                Key(number, REJUDGMENTS, places[file.path], content_id([file.sha256, scoring, version])),
            )
            for file in self._run.files(number, "candidates")
        ]

    def _judged_by_run(self, shards: Sequence[ToJudge], version: str) -> dict[ToJudge, Entry]:
        """Returns the run's own judgments, if this very judge has made all of them; else nothing."""
        found: dict[ToJudge, Entry] = {}
        for shard in shards:
            inputs = content_id([hashes([shard.candidates]), [self._recipe.judge.hashed()], [version]])
            entry = self._run.find(Key(shard.round, "judgments", shard.key.shard, inputs))
            if entry is None:
                return {}
            found[shard] = entry
        return found

    def _find(self, shard: ToJudge) -> Entry | None:
        return None if self._annex is None else self._annex.find(shard.key)

    def _is_hidden(self, shards: Sequence[ToJudge]) -> bool:
        """Says whether judgments of another version were made since: readers take the newest."""
        assert self._annex is not None
        return any(self._annex.files(number, REJUDGMENTS) != self._files(shards, number) for number in self._rounds)

    def _files(self, shards: Sequence[ToJudge], number: int) -> list[FileRef]:
        found = [self._find(shard) for shard in shards if shard.round == number]
        return [file for entry in found if entry is not None for file in entry.files]

    async def _requests(self, client: Client[RejudgeWorker], left: Sequence[ToJudge]) -> dict[int, Requests | None]:
        by_round = {
            number: tuple(shard.candidates for shard in left if shard.round == number) for number in self._rounds
        }
        asked = {number: files for number, files in by_round.items() if files}
        counted = await client.call(
            RejudgeWorker.count_requests, prompts=tuple(self._run.files(0, "prompts")), rounds=list(asked.values())
        )
        return dict(zip(asked, counted.result, strict=True))

    def _costs(
        self, shards: Sequence[ToJudge], done: Collection[ToJudge], requests: Mapping[int, Requests | None]
    ) -> list[RoundCost]:
        return [
            RoundCost(
                number,
                sum(shard.rows for shard in shards if shard.round == number),
                sum(shard.rows for shard in done if shard.round == number),
                requests.get(number),
            )
            for number in self._rounds
        ]

    @contextmanager
    def _writing(self, judge: JudgeConfig) -> Iterator[tuple[Run, Writer]]:
        """Gives the right to write to the annex, which is made if there is none yet."""
        if self._annex is None:
            header = {
                "format": 1, "judge": judge.model_dump(mode="json"), "scoring": content_id(judge.scoring()),
            }  # fmt: skip
            self._annex = self._store.create_annex(self._run, self.name, header)
        annex = self._annex
        try:
            writing = annex.writer(self._take_over, software())
            with writing as writer:
                yield annex, writer
        except RunBusyError as error:
            raise RunBusyError(self._busy(annex, error)) from None

    def _busy(self, annex: Run, error: RunBusyError) -> str:
        holder = annex.session
        if holder is None:
            return str(error)
        return (
            f"'{self.name}' beside run '{self._run.name}' is being written by {describe_holder(holder)}: wait for it, "
            "or stop it; if it is dead, add --take-over"
        )

    def _check_name(self) -> None:
        known = self._annex and self._annex.header.get("scoring")
        if known and known != content_id(self._recipe.judge.scoring()):
            raise ConfigError(
                f"another judge has judged run '{self._run.name}' under the name '{self.name}': give this one "
                "another --name"
            )


def cost_sentence(name: str, costs: Sequence[RoundCost]) -> str:
    """Says what judging takes, before it begins."""
    total, left = sum(cost.completions for cost in costs), sum(cost.left for cost in costs)
    known = [cost.requests for cost in costs if cost.requests is not None]
    said = f"'{name}': {left} of {counted(total, 'completion')} to judge, in {counted(len(costs), 'round')}"
    if known:
        said += f"; {counted(sum(one.new for one in known), 'request')} to send"
        said += f", {sum(one.cached for one in known)} have a reply already"
    return said
