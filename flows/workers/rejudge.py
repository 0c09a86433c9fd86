"""A judge of completions that are in the store already: what it would ask for, and some of them tried."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from flows.workers.judge import JudgeWorker
from pipeline.data.conversations import question
from pipeline.judges.base import seen_by
from pipeline.judges.support.llm_requests import RequestCounter, Requests
from storage.log.manifest import FileRef


@dataclass(frozen=True)
class TriedAnswer:
    """A completion with what its prompt asks at its end, and what the judge said of it."""

    prompt_id: str
    candidate: int
    score: float | None
    score_std: float | None
    status: str
    rationale: str | None
    seconds: float
    prompt: str
    text: str


class RejudgeWorker(JudgeWorker):
    """Holds one judge, and writes what it says beside the run whose completions it judges."""

    def count_requests(self, prompts: tuple[FileRef, ...], rounds: list[tuple[FileRef, ...]]) -> list[Requests | None]:
        """Counts what judging the completions of some rounds would ask of language models, each request once.

        Args:
            rounds: the files of the completions of each.

        Returns:
            The requests of each round that none before it makes; None for each if no language model is asked.
        """
        config, counter = self.recipe.judge, RequestCounter(self._replies)
        counted: list[Requests | None] = []
        for files in rounds:
            found = [counter.count(config, self._items(prompts, self.table((file,)))) for file in files]
            known = [one for one in found if one is not None]
            total = Requests(sum(one.new for one in known), sum(one.cached for one in known))
            counted.append(total if known or not found else None)
        return counted

    def try_answers(
        self, prompts: tuple[FileRef, ...], candidates: tuple[FileRef, ...], limit: int
    ) -> list[TriedAnswer]:
        """Judges the first completions, and writes nothing; a language model's replies are kept as always.

        Args:
            limit: the most completions: as many whole prompts as they hold, or a part of the first one.
        """
        items = self._items(prompts, _first(self.table(candidates), limit))
        judged = self._judges[0].judge(seen_by(self.recipe.judge, items))
        answers = [(item, candidate) for item in items for candidate in item.candidates]
        return [
            TriedAnswer(
                said.prompt_id, said.candidate, said.score, said.score_std, said.status, said.rationale, said.latency,
                item.prompt_text if item.messages is None else question(item.messages), candidate.text,
            )
            for said, (item, candidate) in zip(judged, answers, strict=True)
        ]  # fmt: skip


def _first(candidates: pa.Table, limit: int) -> pa.Table:
    """Returns the candidates of the first prompts, as many as the limit holds, or the first ones of one prompt."""
    counted = pc.value_counts(candidates["prompt_id"]).to_pylist()  # in the order in which they first come
    taken: list[str] = []
    room = limit
    for row in counted:
        if row["counts"] > room:
            break
        taken.append(row["values"])
        room -= row["counts"]
    if not taken:
        return candidates.slice(0, limit)  # a prompt's candidates stand together
    return candidates.filter(pc.field("prompt_id").isin(taken))
