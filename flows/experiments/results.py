"""What came out of an experiment: means over seeds with intervals, arms at equal KL, and who wins against whom."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isnan
from typing import Any

from flows.experiments.experiment import Experiment
from flows.experiments.points import Point
from pipeline.errors import ConfigError
from pipeline.evaluation.metrics import Scores
from pipeline.evaluation.over_seeds import Difference, Interval, difference, mixed, over_runs, wins

INITIAL = "initial"
"""The policy that all arms start from, as the table of win rates names it."""
_KL = "kl"


@dataclass(frozen=True)
class Mean:
    """A round of an arm, or an n of best-of-n, over the seeds that have it.

    Attributes:
        x: what the score is drawn against, and ``y`` the score.
        judges: mean score of each judge.
        bound: of best-of-n, the most that the KL can be.
    """

    name: str
    arm: str
    label: str
    number: int
    last: bool
    seeds: tuple[int, ...]
    kl: Interval
    x: Interval
    y: Interval
    judges: dict[str, float]
    bound: float | None


@dataclass(frozen=True)
class AtKl:
    """What an arm scores at a KL, if two of its policies are mixed: of all rounds and values of its sweep.

    Attributes:
        less: how much less than the first arm that reaches this KL, paired by seed and prompt; None of that one.
        p: of the sign-flip test of the difference.
    """

    kl: float
    arm: str
    y: Interval
    less: Interval | None
    p: float | None


@dataclass(frozen=True)
class AtOwnKl:
    """How much the last policy of an arm scores more than the best mixture of the first arm's at that very KL.

    Attributes:
        more: paired by seed and prompt; each seed has its own KL.
    """

    name: str
    first: str
    more: Interval
    p: float


@dataclass(frozen=True)
class Win:
    """How often one arm's last policy beats another's, on the same held-out prompts; ties count one half.

    Attributes:
        more: by how much its score is higher, by the judge that is drawn.
        p: of the sign-flip test of that difference.
    """

    name: str
    against: str
    rate: Interval
    more: Interval
    p: float


@dataclass(frozen=True)
class Results:
    """All of it."""

    means: list[Mean]
    at_kl: list[AtKl]
    at_own_kl: list[AtOwnKl]
    wins: list[Win]

    def document(self, experiment: Experiment) -> dict[str, Any]:
        """Returns it as JSON; what is not known is null."""
        about = experiment.model_dump(mode="json", include={"name", "question", "expected", "score", "table_judge"})
        return {**about, **_known(asdict(self))}


def results(experiment: Experiment, points: Sequence[Point]) -> Results:
    """Computes the results of an experiment from the points of its runs.

    Raises:
        ConfigError: a judge that the experiment names has not judged a run.
    """
    for point in points:
        named = (experiment.score, experiment.table_judge, *({experiment.against} - {_KL}))
        if missing := next((judge for judge in named if judge not in point.scores), None):
            raise ConfigError(
                f"experiment '{experiment.name}' draws the score of '{missing}', and run "
                f"'{point.variant.run(point.seed)}' was judged by {', '.join(point.scores)} alone: name it in "
                "evaluation.judges"
            )
    curves = _curves(points)
    return Results(
        [mean for curve in curves.values() for mean in _means(experiment, curve)],
        list(_at_kl(experiment, curves)),
        list(_at_own_kl(experiment, curves)),
        list(_wins(experiment, curves)),
    )


_Curve = dict[int, list[Point]]
"""The points of a variant by seed, each in the order of its rounds."""
_BySeed = dict[int, Scores]


def _curves(points: Sequence[Point]) -> dict[str, _Curve]:
    found: dict[str, _Curve] = {}
    for point in points:
        found.setdefault(point.variant.name, {}).setdefault(point.seed, []).append(point)
    return found


def _means(experiment: Experiment, curve: _Curve) -> Iterator[Mean]:
    numbers = sorted({point.number for points in curve.values() for point in points})
    for number in numbers:
        here = [point for points in curve.values() for point in points if point.number == number]
        first = here[0]
        kl = over_runs([list(point.kl.values()) for point in here])
        x = kl if experiment.against == _KL else _score(here, experiment.against)
        yield Mean(
            first.variant.name, first.variant.arm, first.variant.label, number, number == numbers[-1],
            tuple(point.seed for point in here), kl, x, _score(here, experiment.score),
            {judge: _score(here, judge).mean for judge in first.scores}, first.bound,
        )  # fmt: skip


def _by_arm(curves: Mapping[str, _Curve]) -> dict[str, _Curve]:
    """Puts the points of all values of an arm's sweep together, by seed."""
    arms: dict[str, _Curve] = {}
    for curve in curves.values():
        for seed, points in curve.items():
            arms.setdefault(_arm(curve), {}).setdefault(seed, []).extend(points)
    return arms


def _at_own_kl(experiment: Experiment, curves: Mapping[str, _Curve]) -> Iterator[AtOwnKl]:
    first, baseline = next(iter(_by_arm(curves).items()))
    for name, curve in curves.items():
        pairs = []
        for last in (points[-1] for seed, points in curve.items() if seed in baseline and _arm(curve) != first):
            there = [(point.mean_kl, point.scores[experiment.score]) for point in baseline[last.seed]]
            pairs.append((last.scores[experiment.score], mixed(there, last.mean_kl)))
        reached = [(own, there) for own, there in pairs if there is not None]
        if pairs and len(reached) == len(pairs):
            found = difference([own for own, _ in reached], [there for _, there in reached])
            yield AtOwnKl(name, first, found.interval, found.p)


def _at_kl(experiment: Experiment, curves: Mapping[str, _Curve]) -> Iterator[AtKl]:
    for kl in experiment.at_kl:
        leader: _BySeed | None = None
        for arm, points_of_arm in _by_arm(curves).items():
            scores = _mixed(points_of_arm, kl, experiment.score)
            if scores is None:
                continue
            compared = None if leader is None else _less(leader, scores)
            y = over_runs(_values([*scores.values()]))
            less, p = (None, None) if compared is None else (compared.interval, compared.p)
            yield AtKl(kl, arm, y, less, p)
            leader = leader or scores


def _less(leader: _BySeed, scores: _BySeed) -> Difference | None:
    seeds = [seed for seed in leader if seed in scores]
    return difference([leader[seed] for seed in seeds], [scores[seed] for seed in seeds]) if seeds else None


def _mixed(points_of_arm: _Curve, kl: float, judge: str) -> _BySeed | None:
    """Returns the scores of each seed at a KL; None if one does not reach it."""
    found = {
        seed: mixed([(point.mean_kl, point.scores[judge]) for point in points], kl)
        for seed, points in points_of_arm.items()
    }
    known = {seed: scores for seed, scores in found.items() if scores is not None}
    return known if len(known) == len(found) else None


def _wins(experiment: Experiment, curves: Mapping[str, _Curve]) -> Iterator[Win]:
    tabled = experiment.table or tuple(curves)
    players = {name: {seed: points[-1] for seed, points in curves[name].items()} for name in tabled if name in curves}
    first = next((curve for curve in curves.values() if all(points[0].number == 0 for points in curve.values())), {})
    if first:
        players = {INITIAL: {seed: points[0] for seed, points in first.items()}, **players}
    for name, mine in players.items():
        for other, theirs in players.items():
            both = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
            if name != other and both:
                yield _win(experiment, name, other, both)


def _win(experiment: Experiment, name: str, other: str, both: Sequence[tuple[Point, Point]]) -> Win:
    judge, drawn = experiment.table_judge, experiment.score
    rate = wins([one.answered[judge] for one, _ in both], [two.answered[judge] for _, two in both])
    more = difference([one.scores[drawn] for one, _ in both], [two.scores[drawn] for _, two in both])
    return Win(name, other, rate, more.interval, more.p)


def _arm(curve: _Curve) -> str:
    return next(iter(curve.values()))[0].variant.arm


def _score(points: Sequence[Point], judge: str) -> Interval:
    return over_runs(_values([point.scores[judge] for point in points]))


def _values(runs: Sequence[Scores]) -> list[list[float]]:
    return [[score for score in run.values() if score is not None] for run in runs]


def _known(value: Any) -> Any:
    if isinstance(value, float) and isnan(value):
        return None
    if isinstance(value, dict):
        return {key: _known(inner) for key, inner in value.items()}
    return [_known(inner) for inner in value] if isinstance(value, list | tuple) else value
