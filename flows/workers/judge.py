"""The judge: scores shards, and turns a round's scores into preferences and into the figures of its evaluation."""

from dataclasses import replace
from typing import Any

from flows.workers.base import ProgressCall, Worker
from pipeline import figures
from pipeline.judges import JudgeProtocol, Judgment, judge_items, judgments_table, make_judge
from pipeline.preferences import build_preferences
from storage.cache import SharedCache
from storage.manifest import FileRef


class JudgeWorker(Worker):
    """Holds the recipe's judges; the first is the one that training hears."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        devices = self.recipe.devices
        replies = SharedCache(self.store, "judge_replies")
        self._judges: list[JudgeProtocol] = [
            make_judge(config, device=devices.judge, threads=devices.cpu_threads, cache=replies)
            for config in self.recipe.judges
        ]

    def versions(self, *, progress: ProgressCall) -> list[str]:
        """Version of each judge: equal versions give equal scores."""
        del progress
        return [judge.version for judge in self._judges]

    def judge(
        self,
        prompts: tuple[FileRef, ...],
        candidates: FileRef,
        round: int,
        stage: str,
        shard: int,
        judges: list[int],
        *,
        progress: ProgressCall,
    ) -> FileRef:
        """Judges one shard of candidates by some of the judges, by their places, under their names in the recipe."""
        del progress
        items = judge_items(self.table(prompts), self.table((candidates,)))
        judgments: list[Judgment] = []
        for place in judges:
            name = self.recipe.judge_names[place]
            judgments += [replace(judgment, judge=name) for judgment in self._judges[place].judge(items)]
        return self.write(judgments_table(judgments), round, stage, shard)

    def prefer(
        self,
        candidates: tuple[FileRef, ...],
        judgments: tuple[FileRef, ...],
        round: int,
        seed: int,
        *,
        progress: ProgressCall,
    ) -> tuple[FileRef, dict[str, Any]]:
        """Turns a round's judgments into preferences; returns their file and what the round's table says of them."""
        del progress
        candidates_table, judgments_table_ = self.table(candidates), self.table(judgments)
        preferences = build_preferences(candidates_table, judgments_table_, self.recipe.preferences, seed=seed)
        described = figures.describe_preferences(candidates_table, judgments_table_, preferences)
        return self.write(preferences, round, "preferences"), described

    def compare(
        self,
        candidates: tuple[FileRef, ...],
        judgments: tuple[FileRef, ...],
        previous: tuple[FileRef, ...],
        initial: tuple[FileRef, ...],
        logps: tuple[FileRef, ...],
        *,
        progress: ProgressCall,
    ) -> dict[str, Any]:
        """The figures of an evaluation: against earlier rounds' judgments where these are given."""
        del progress
        return figures.describe_evaluation(
            candidates=self.table(candidates),
            judgments=self.table(judgments),
            previous=self.table(previous) if previous else None,
            initial=self.table(initial) if initial else None,
            logps=self.table(logps) if logps else None,
            judges=[self.recipe.judge_names[place] for place in self.recipe.held_out_judges],
        )
