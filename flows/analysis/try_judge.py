"""`rondo judge`: a judge tried on completions of a round; nothing of the run changes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from flows.analysis.judge_process import with_judge_process
from flows.host.progress import Display
from flows.registry.catalog import existing_store, run_at_round
from flows.registry.judge_source import with_judge
from flows.remote.calls import Client
from flows.workers.rejudge import RejudgeWorker, TriedAnswer
from pipeline.errors import JudgeError


@dataclass(frozen=True)
class TriedJudge:
    """What a judge said of some completions of a round.

    Attributes:
        judge: its name.
        version: equal versions give equal scores.
        held_out: whether they are completions of held-out prompts, which round 0 alone has.
    """

    judge: str
    version: str
    run: str
    round: int
    held_out: bool
    answers: list[TriedAnswer]

    def check(self) -> None:
        """Raises JudgeError if no completion has a score: what the commonest reason is."""
        if any(answer.status == "ok" for answer in self.answers):
            return
        reasons = Counter(f"{answer.status}: {answer.rationale or 'it says no reason'}" for answer in self.answers)
        ((reason, count),) = reasons.most_common(1)
        many = len(self.answers)
        raise JudgeError(
            f"the judge '{self.judge}' gave none of {many} completions a score; of {count} it says {reason}"
        )


def try_judge(judge: str, source: str, root: str, changes: Sequence[str], limit: int, display: Display) -> TriedJudge:
    """Has a judge score the first completions of a round.

    Args:
        judge: as `flows.registry.judge_source.with_judge` takes it.
        source: RUN@ROUND.
        limit: the most completions.

    Raises:
        ConfigError: there is no such judge or round.
        JudgeError: the judge cannot be loaded, or failed as a whole.
    """
    store = existing_store(root)
    run, number = run_at_round(store, source)
    named = with_judge(run, judge, changes)
    candidates = run.files(number, "candidates")
    held_out = not candidates
    files = tuple(candidates or run.files(number, "eval_candidates"))

    async def work(client: Client[RejudgeWorker]) -> TriedJudge:
        (version, *_) = (await client.call(RejudgeWorker.versions)).result
        answer = await client.call(
            RejudgeWorker.try_answers, prompts=tuple(run.files(0, "prompts")), candidates=files, limit=limit
        )
        return TriedJudge(named.recipe.judge.label, version, run.name, number, held_out, answer.result)

    with display.doing(f"judging completions of {run.name}@{number}"):
        return with_judge_process(store, run.name, named, work, say=display.say)
