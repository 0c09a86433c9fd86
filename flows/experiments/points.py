"""What an experiment's runs have measured: a point for each round, with the held-out scores of its prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from flows.experiments.beside import COMPLETIONS, JUDGMENTS, LOGPS
from flows.experiments.experiment import Variant
from flows.experiments.planned import Planned
from pipeline.errors import DataError
from pipeline.evaluation.best_of import best_weights, kl_bound, measured_kl
from pipeline.evaluation.held_out import judged_by
from pipeline.evaluation.metrics import Scores
from storage.log.run import Run
from storage.log.store import Store
from storage.tables.shards import read_table

_LARGEST_SHARE = 2
"""Of N samples the best of at most N / 2 is estimated: beyond, the measured KL is too low."""


@dataclass(frozen=True)
class Point:
    """A policy on the held-out prompts of its seed.

    Attributes:
        number: the round; of best-of-n, the n.
        kl: to the initial policy, in nats per sequence, of each prompt's answer.
        scores: of each prompt by each judge; of best-of-n, expected ones.
        answered: scores of one answer to each prompt, for win rates.
        bound: the most that the KL can be, where that is known.
    """

    variant: Variant
    seed: int
    number: int
    kl: Mapping[str, float]
    scores: Mapping[str, Scores]
    answered: Mapping[str, Scores] = field(default_factory=dict)
    bound: float | None = None

    @property
    def mean_kl(self) -> float:
        """Returns the mean over prompts."""
        return fmean(self.kl.values())


def read_points(store: Store, runs: Sequence[Planned]) -> list[Point]:
    """Reads what is there of these runs, in their order."""
    found: list[Point] = []
    for run in runs:
        where = run.log(store)
        if where is None:
            continue
        judges = [run.recipe.judge_names[place] for place in run.recipe.held_out_judges]
        if run.variant.spec.method == "best_of":
            found += _best_of(store, run, where, judges)
        elif run.variant.spec.method == "rondo":
            found += [_round(store, run, where, number, judges) for number in where.finished]
        else:
            # A peer's trainer begins with the initial policy, which the run beside it has measured.
            found.append(_round(store, run, store.run(run.anchor), 0, judges))
            found += [_beside(store, run, where, number, judges) for number in run.measured_numbers]
    return found


def _round(store: Store, run: Planned, log: Run, number: int, judges: Sequence[str]) -> Point:
    stages = ("eval_candidates", "eval_judgments", "eval_logps")
    return _point(store, run, log, number, judges, stages)


def _beside(store: Store, run: Planned, log: Run, number: int, judges: Sequence[str]) -> Point:
    return _point(store, run, log, number, judges, (COMPLETIONS, JUDGMENTS, LOGPS))


def _point(
    store: Store, run: Planned, log: Run, number: int, judges: Sequence[str], stages: tuple[str, str, str]
) -> Point:
    candidates, judgments, logps = stages
    table = read_table(store, log.files(number, judgments))
    scores = {name: judged_by(table, name) for name in judges}
    files = log.files(number, logps)
    if files:
        rows = read_table(store, files).select(["prompt_id", "policy", "initial"]).to_pylist()
        kl = {row["prompt_id"]: row["policy"] - row["initial"] for row in rows}
    else:  # round 0 is the initial policy
        kl = dict.fromkeys(read_table(store, log.files(number, candidates))["prompt_id"].to_pylist(), 0.0)
    return Point(run.variant, run.seed, number, kl, scores, scores)


def _best_of(store: Store, run: Planned, log: Run, judges: Sequence[str]) -> list[Point]:
    """Estimates the best of 1, 2, 4 and so on, as the training judge sees it, from the samples of each prompt."""
    training = run.recipe.judge_names[0]
    by_judge: dict[str, dict[str, list[float]]] = {name: {} for name in judges}
    for row in read_table(store, log.files(0, JUDGMENTS)).select(["prompt_id", "judge", "score"]).to_pylist():
        by_judge[row["judge"]].setdefault(row["prompt_id"], []).append(row["score"])
    prompts = [
        prompt
        for prompt in by_judge[training]
        if all(None not in by_judge[name][prompt] for name in judges)  # a sample without a score cannot be ranked
    ]
    if not prompts:
        raise DataError(f"'{run.name}': no held-out prompt has scores of all its completions: mend the judge")
    count = min(len(by_judge[training][prompt]) for prompt in prompts)
    sizes = [2**power for power in range(count.bit_length()) if 2**power <= max(1, count // _LARGEST_SHARE)]
    return [_best_of_n(run, n, training, by_judge, prompts) for n in sizes]


def _best_of_n(
    run: Planned, n: int, training: str, by_judge: Mapping[str, Mapping[str, list[float]]], prompts: Sequence[str]
) -> Point:
    weights = {prompt: best_weights(by_judge[training][prompt], n) for prompt in prompts}
    expected = {
        name: {
            prompt: sum(weight * score for weight, score in zip(weights[prompt], scores[prompt], strict=True))
            for prompt in prompts
        }
        for name, scores in by_judge.items()
    }
    best = {prompt: max(range(n), key=lambda index: by_judge[training][prompt][index]) for prompt in prompts}
    answered = {name: {prompt: scores[prompt][best[prompt]] for prompt in prompts} for name, scores in by_judge.items()}
    kl = {prompt: measured_kl(by_judge[training][prompt], n) for prompt in prompts}
    return Point(run.variant, run.seed, n, kl, expected, answered, kl_bound(n))
