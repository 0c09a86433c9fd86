"""The judge: scores shards, and turns a round's scores into preferences and into the metrics of its evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from flows.workers.base import Worker
from flows.workers.judge_trial import trial_item, trial_notice
from flows.workers.references import JudgePolicies, PolicyRef, ToMeasure, TrialPrompt
from pipeline.config import GeneratedPrompts, Prompts
from pipeline.data.conversations import messages_of
from pipeline.evaluation.base_rate import BaseRate
from pipeline.evaluation.gate_measures import Measured, measure
from pipeline.evaluation.gate_tasks import load_tasks
from pipeline.evaluation.held_out import describe_evaluation, describe_served, judged_by, unscored_answers
from pipeline.evaluation.round_metrics import RoundMetrics
from pipeline.gate import least_pairs
from pipeline.judges import Judge, JudgeItem, Judgment, make_judge
from pipeline.judges.base import seen_by
from pipeline.judges.human import HumanJudge
from pipeline.judges.support.human_labels import override_pairs
from pipeline.judges.support.tables import judge_items, judgments_table
from pipeline.preferences import (
    build_preferences,
    choose_replayed,
    describe_replayed,
    preference_count,
    replayed_table,
)
from pipeline.usage import Usage, by_judge
from storage.log.manifest import FileRef
from storage.tables import shards
from storage.tables.shared_values import SharedCache


@dataclass(frozen=True)
class Judged:
    """A table of judgments.

    Attributes:
        file: where it lies.
        usage: what language models took for it, by judge; nothing of judges that ask none.
    """

    file: FileRef
    usage: dict[str, Usage]


@dataclass(frozen=True)
class BuiltPreferences:
    """A table of preferences.

    Attributes:
        file: where it lies.
        count: how many preferences it has.
        prompts: of how many prompts it tells, those that gave none included.
        preferring: how many of them gave one.
    """

    file: FileRef
    count: int
    prompts: int
    preferring: int


class JudgeWorker(Worker):
    """Holds the recipe's judges; the first is the training judge."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.device = self.recipe.devices.judge
        devices = self.recipe.devices
        self._replies = SharedCache(self.store, "judge_replies")
        self._judges: list[Judge] = [
            make_judge(config, device=devices.judge, threads=devices.threads, cache=self._replies)
            for config in (*self.recipe.judges, *self.recipe.gate_judges)
        ]

    def versions(self) -> list[str]:
        """Returns the version of each judge, then of the gate's judges and tasks: equal versions give equal scores.

        Raises:
            ConfigError: a task of the gate cannot be loaded, with its data.
        """
        gate = self.recipe.gate
        tasks = [] if gate is None else load_tasks(gate.tasks, gate.count, least_pairs(gate.level(self.recipe.rounds)))
        return [*(judge.version for judge in self._judges), *(task.version for task in tasks)]

    def try_judges(self, trial: TrialPrompt | None, prompts: tuple[FileRef, ...], judges: list[int]) -> list[str]:
        """Has some of the judges, by their places, judge two answers to a prompt of the run.

        So what fails is seen before engines are paid for.

        Judges that need a policy of the run, or people, are left out: there are none yet.

        Args:
            trial: the prompt; the first of ``prompts`` if there is none.

        Returns:
            Sentences on judges that scored neither, and may score others.

        Raises:
            JudgeError: a judge failed as a whole, or its code failed, or its replies could not be read, both times.
        """
        item = trial_item(trial or self._first_prompt(prompts))
        said = []
        for place in judges:
            if all(part.comes_early for part in self.recipe.judges[place].parts()):
                judgments = self._judges[place].judge([item])
                said.append(trial_notice(self.recipe.judge_names[place], item, judgments))
        return [notice for notice in said if notice]

    def _first_prompt(self, prompts: tuple[FileRef, ...]) -> TrialPrompt:
        row = self.table(prompts).slice(0, 1).to_pylist()[0]
        return TrialPrompt(row["prompt_id"], row["text"], messages_of(row["messages"]), row["reference_answer"])

    def judge(
        self,
        prompts: tuple[FileRef, ...],
        candidates: FileRef,
        round: int,
        stage: str,
        shard: int | None,
        judges: list[int],
        policies: list[JudgePolicies | None] | None = None,
        choices: list[dict[str, Any]] | None = None,
        gate: bool = False,
    ) -> Judged:
        """Judges one shard of candidates by some of the judges, by their places, under their names in the recipe.

        Args:
            policies: for each judge those that it compares, if it compares policies.
            choices: what people have said of these candidates, if they are the judge.
            gate: whether they are answers to the gate's prompts, which its own judges score.
        """
        source = self.recipe.gate.prompts if gate and self.recipe.gate is not None else self.recipe.prompts
        configs = (*self.recipe.judges, *self.recipe.gate_judges)
        items = self._items(prompts, self.table((candidates,)), source)
        judgments: list[Judgment] = []
        for place, compared in zip(judges, policies or [None] * len(judges), strict=True):
            name, judge = configs[place].label, self._judges[place]
            if compared is not None:
                self._name_policies(judge, compared)
            if isinstance(judge, HumanJudge):
                judge.use(choices or (), self.recipe.seed)
            seen = seen_by(configs[place], items)
            judgments += [replace(judgment, judge=name) for judgment in judge.judge(seen)]
        self.empty_cache()
        return self._judged(judgments, round, stage, shard)

    def _judged(self, judgments: Sequence[Judgment], round: int, stage: str, shard: int | None = None) -> Judged:
        usage = by_judge((judgment.judge, judgment.usage) for judgment in judgments)
        return Judged(self.write(judgments_table(judgments), round, stage, shard), usage)

    def _items(
        self, prompts: tuple[FileRef, ...], candidates: pa.Table, source: Prompts | None = None
    ) -> list[JudgeItem]:
        source = source or self.recipe.prompts
        read = not isinstance(source, GeneratedPrompts) and source.read_special_tokens
        return judge_items(self.table(prompts), candidates, read_special_tokens=read)

    def _name_policies(self, judge: Judge, policies: JudgePolicies) -> None:
        """Names the policies of an implicit reward; their files are looked for when their weights are needed."""
        from pipeline.judges.implicit import ImplicitJudge

        assert isinstance(judge, ImplicitJudge)

        def named(policy: PolicyRef) -> tuple[str, Callable[[], Path]]:
            return policy.digest, lambda: self.whole(policy, "judging")

        judge.use(named(policies.policy), named(policies.reference))

    def judge_again(
        self,
        prompts: tuple[FileRef, ...],
        candidates: tuple[FileRef, ...],
        round: int,
        count: int,
        judges: list[int],
    ) -> Judged:
        """Judges the first so many candidates once more, without the replies that were kept: has a judge changed?"""
        items = self._items(prompts, self.table(candidates).slice(0, count))
        devices = self.recipe.devices
        judgments: list[Judgment] = []
        for place in judges:
            config, name = self.recipe.judges[place], self.recipe.judge_names[place]
            judge = make_judge(config, device=devices.judge, threads=devices.threads)
            judgments += [replace(judgment, judge=name) for judgment in judge.judge(seen_by(config, items))]
        self.empty_cache()
        return self._judged(judgments, round, "judge_probe")

    def build_preferences(
        self,
        candidates: tuple[FileRef, ...],
        judgments: tuple[FileRef, ...],
        round: int,
        shard: int,
        seed: int,
    ) -> BuiltPreferences:
        """Turns the judgments of a shard into preferences."""
        config = self.recipe.preferences
        preferences = build_preferences(self.table(candidates), self.table(judgments), config, seed=seed)
        return _built(self.write(preferences, round, "preferences", shard), preferences)

    def describe(
        self,
        candidates: tuple[FileRef, ...],
        judgments: tuple[FileRef, ...],
        preferences: tuple[FileRef, ...],
    ) -> dict[str, Any]:
        """Describes for the round's table what was sampled, judged and preferred, read shard by shard.

        Args:
            candidates, judgments: one file of each shard, in the same order.
        """
        found = RoundMetrics(min_margin=self.recipe.preferences.min_margin)
        for sampled, judged in zip(candidates, judgments, strict=True):
            found.add_judged(
                self._columns(sampled, "prompt_id", "candidate", "token_ids", "finish_reason"),
                self._columns(judged, "prompt_id", "candidate", "score", "status", "rationale", "components"),
            )
        for file in preferences:
            found.add_preferences(self._columns(file, "prompt_id", "kind", "margin", "token_counts", "drop_reason"))
        outcome = found.outcome(verdicts=self.recipe.judge.GIVES_VERDICTS)
        unscored = found.unscored(self.recipe.judge_names[0])
        return {**found.metrics(), **outcome, "sampled_truncated": found.truncated, "sampled_unscored": unscored}

    def _columns(self, file: FileRef, *columns: str) -> pa.Table:
        return shards.read_table(self.store, (file,), columns=columns)

    def override(
        self,
        prompts: tuple[FileRef, ...],
        candidates: tuple[FileRef, ...],
        preferences: tuple[FileRef, ...],
        round: int,
        choices: list[dict[str, Any]],
    ) -> BuiltPreferences:
        """Puts people's choices in place of the judge's."""
        items = self._items(prompts, self.table(candidates))
        decided = override_pairs(self.table(preferences), items, choices)
        return _built(self.write(decided, round, "preferences"), decided)

    def replay(
        self,
        preferences: tuple[FileRef, ...],
        earlier: dict[int, tuple[FileRef, ...]],
        candidates: dict[int, tuple[FileRef, ...]],
        round: int,
        seed: int,
    ) -> tuple[FileRef, dict[str, Any]]:
        """Chooses preferences of earlier rounds to train on again; returns their file and its metrics."""
        own, config = pa.concat_tables([self._columns(file, "kind") for file in preferences]), self.recipe.preferences
        pool = {number: shards.read_table(self.store, files) for number, files in earlier.items()}
        chosen = choose_replayed(own, pool, config, seed=seed)
        answers = {number: self._answers(candidates[number], rows) for number, rows in chosen.items()}
        replayed = replayed_table(chosen, answers)
        return self.write(replayed, round, "replayed"), describe_replayed(replayed, own, round)

    def _answers(self, candidates: tuple[FileRef, ...], rows: list[dict[str, Any]]) -> pa.Table:
        """Returns the candidates to the prompts of these rows, found shard by shard."""
        wanted = pc.field("prompt_id").isin([row["prompt_id"] for row in rows])
        columns = ("prompt_id", "candidate", "token_ids")
        return pa.concat_tables([self._columns(file, *columns).filter(wanted) for file in candidates])

    def compare(
        self,
        candidates: tuple[FileRef, ...],
        judgments: tuple[FileRef, ...],
        served_candidates: tuple[FileRef, ...],
        served_judgments: tuple[FileRef, ...],
        previous: tuple[FileRef, ...],
        initial: tuple[FileRef, ...],
        logps: tuple[FileRef, ...],
        probe: tuple[FileRef, ...],
    ) -> dict[str, Any]:
        """Computes the metrics of an evaluation: against earlier rounds' judgments if these are given.

        Those as one would serve stand beside them, if the recipe says how.
        """
        judged, places = self.table(judgments), self.recipe.held_out_judges
        judges = [self.recipe.judge_names[place] for place in places]
        metrics = describe_evaluation(
            candidates=self.table(candidates),
            judgments=judged,
            previous=self.table(previous) if previous else None,
            initial=self.table(initial) if initial else None,
            logps=self.table(logps) if logps else None,
            judges=judges,
            probe=self.table(probe) if probe else None,
        )
        if served_candidates:
            metrics["served"] = describe_served(self.table(served_candidates), self.table(served_judgments), judges)
        if not initial:
            verdicts = self.recipe.judges[places[0]].GIVES_VERDICTS
            rate = BaseRate.of(judged_by(judged, judges[0]), judges[0], verdicts=verdicts)
            metrics |= {"base_rate": rate.sentence, "base_rate_alarm": rate.alarm}
        return {**metrics, "unscored": unscored_answers(judged, judges)}

    def measure(self, measures: list[ToMeasure]) -> list[Measured]:
        """Compares what a round scores by each measure of the gate with what the best round does."""
        return [
            measure(
                judged_by(self.table(one.own), one.judge),
                judged_by(self.table(one.best), one.judge) if one.best else None,
            )
            for one in measures
        ]


def _built(file: FileRef, preferences: pa.Table) -> BuiltPreferences:
    preferring = preferences.filter(pc.field("kind") != "dropped")["prompt_id"]
    prompts = len(pc.unique(preferences["prompt_id"]))
    return BuiltPreferences(file, preference_count(preferences), prompts, len(pc.unique(preferring)))
