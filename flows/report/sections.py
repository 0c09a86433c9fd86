"""Which charts a report shows, in what order, and what each of them tells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
from altair.typing import ChartType

from flows.registry.round_summary import RoundSummary
from flows.report.charts import MOST_CURVES, Axes, Row, curves, histograms, side_by_side
from flows.report.data import points_by_judge, points_of, step_points
from flows.report.gantt import gantt
from flows.report.timeline import Timeline, lane_rows

_PER_SEQUENCE = "nats per sequence"
_BY_ROUND = Axes()
_COUNTED: tuple[tuple[str, str, dict[str, str], Axes], ...] = (
    (
        "Distinct completions",
        "How many different held-out completions there are, for each hundred.",
        {"": "distinct"},
        Axes(percent=True),
    ),
    (
        "Length",
        "Mean length of the completions, end of sequence included.",
        {"held-out": "length", "sampled for training": "sampled_length"},
        Axes(unit="tokens"),
    ),
    (
        "Truncated completions",
        "Share of held-out completions cut at the largest number of tokens.",
        {"": "truncated"},
        Axes(percent=True),
    ),
    (
        "Length of thought and answer",
        "Mean length of what held-out completions think, and of what they answer, end of sequence included.",
        {"thought": "thought_length", "answer": "answer_length"},
        Axes(unit="tokens"),
    ),
    (
        "Truncated within thought or answer",
        "Share of held-out completions cut before their thought had ended, which have no answer, and after it.",
        {"within the thought": "cut_in_thought", "within the answer": "cut_in_answer"},
        Axes(percent=True),
    ),
)
"""What is counted of held-out completions: title, caption, metrics by the names of their curves, axes."""


@dataclass(frozen=True)
class Figure:
    """A chart with its heading and a sentence on how to read it; a wide one has a row of its own."""

    title: str
    caption: str
    chart: ChartType
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Figures that answer one question, and tables by their captions."""

    title: str
    lead: str
    figures: list[Figure]
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)


def sections(
    rounds: Sequence[RoundSummary],
    scores_by_round: Mapping[int, Sequence[float]],
    steps: Mapping[int, pa.Table],
    times: Timeline | None = None,
) -> list[Section]:
    """Gathers the charts of a run; charts without data yet are left out.

    Args:
        scores_by_round: scores of the completions that were sampled for training, for the rounds to be shown.
        steps: the ``metrics`` tables of the rounds to be shown, ascending.
        times: what ran when in the last rounds; None in runs that did not record it.
    """
    found = [
        Section(
            "What the judges say",
            "Bands and bars are 95% intervals (1.96 standard errors) over the held-out prompts. They are answered at "
            "temperature 1, which the KL needs and which reads worse than what one would serve.",
            [*_judged(rounds), *_sampled(scores_by_round)],
        ),
        Section(
            "Whether the judge can be trusted",
            "Policies learn what their judge rewards, its mistakes included: a judge that they exploit, or that "
            "changes, shows here first.",
            [*_watched(rounds)],
        ),
        Section(
            "How far the policy moved",
            "In nats per sequence, estimated on each round's own held-out completions.",
            [*_moved(rounds)],
        ),
        Section(
            "Whether the text still reads as before",
            "A reward that rises while the text decays is a failed run: these curves would show it.",
            [*_text(rounds)],
        ),
        Section(
            "Inside the rounds",
            "Every optimizer step, before it is taken, over its batch of preferences; thin lines show where rounds "
            "begin.",
            [*_steps(steps, rounds)],
        ),
        *where_time_goes(times),
    ]
    return [section for section in found if section.figures]


def summary_chart(title: str, rounds: Sequence[RoundSummary]) -> ChartType:
    """Draws reward, win rate against round 0 and KL to the initial policy, side by side."""
    panels = [
        ("held-out reward", "reward", _BY_ROUND),
        ("win rate against round 0", "win_rate_initial", Axes(percent=True, reference=0.5)),
        ("KL to round 0, nats per sequence", "kl_initial", Axes(interval="bar")),
    ]
    found = [(name, points_of(rounds, {"": metric}), axes) for name, metric, axes in panels]
    return side_by_side(title, {name: curves(name, points, axes) for name, points, axes in found if points})


def _judged(rounds: Sequence[RoundSummary]) -> Iterator[Figure]:
    served: list[Row] = [
        {"curve": "as served", "x": summary.round, "y": found.reward, "error": found.reward_se}
        for summary in rounds
        if (found := summary.served) is not None and found.reward is not None
    ]
    yield from _curves(
        "Held-out reward",
        "Mean score of the training judge, on prompts that training never sees.",
        [*points_of(rounds, {"at temperature 1" if served else "": "reward"}), *served],
    )
    yield from _curves(
        "Win rate",
        "Share of held-out prompts whose completion is scored above the earlier policy's; a tie counts one half.",
        points_of(rounds, {"against round 0": "win_rate_initial", "against the previous round": "win_rate_previous"}),
        Axes(percent=True, reference=0.5),
    )
    scores = points_by_judge(rounds, "judges")
    for name in dict.fromkeys(point["curve"] for point in scores):
        yield from _curves(
            f"Judge {name}",
            "Mean score of a held-out judge, on the same completions.",
            [{**point, "curve": ""} for point in scores if point["curve"] == name],
        )


def _sampled(scores_by_round: Mapping[int, Sequence[float]]) -> Iterator[Figure]:
    if scores_by_round:
        title = "Scores of the completions"
        yield Figure(
            title,
            "What the judge gave the completions sampled for training, by round; the upright mark is their mean. Round "
            "n's completions come from the policy of the round before; with staleness 1, of the one before that.",
            histograms(title, scores_by_round, "score"),
        )


def _watched(rounds: Sequence[RoundSummary]) -> Iterator[Figure]:
    yield from _by_judge(
        "Rise over held-out judges",
        "How much more the score of the training judge has risen since round 0 than that of a held-out judge, each in "
        "standard deviations of its own scores of round 0. What climbs on and on is learned from one judge's mistakes.",
        points_by_judge(rounds, "gaps"),
        Axes(unit="standard deviations", reference=0.0),
    )
    yield from _by_judge(
        "Agreement with held-out judges",
        "Share of the pairs of held-out completions that both judges put in the same order, of those that neither sees "
        "as equal; the dashed line is chance.",
        points_by_judge(rounds, "agreement"),
        Axes(percent=True, reference=0.5),
    )
    yield from _curves(
        "Score and length",
        "Spearman's correlation of score and length among the completions of a prompt: what the judge gives for "
        "length.",
        points_of(rounds, {"": "length_correlation"}),
        Axes(reference=0.0),
    )
    yield from _curves(
        "What the judge leaves open",
        "Shares of the pairs of completions that are ties, of the comparisons whose verdict turns with the order in "
        "which the two are shown, and of the replies that could not be read.",
        points_of(rounds, {"ties": "tied", "flips": "flipped", "unparsable": "unparsable"}),
        Axes(percent=True),
    )
    yield from _by_judge(
        "Drift of the judge",
        "Mean change of what a judge says of the same completions of round 0, asked again in each round.",
        points_by_judge(rounds, "judge_drift"),
        Axes(reference=0.0),
    )


def _moved(rounds: Sequence[RoundSummary]) -> Iterator[Figure]:
    yield from _curves(
        "KL divergence",
        "Of the policy from the initial one and from the round before.",
        points_of(rounds, {"to the initial policy": "kl_initial", "to the previous round": "kl_previous"}),
        Axes(unit=_PER_SEQUENCE, interval="bar"),
    )
    yield from _curves(
        "Log-probability of the pairs",
        "Mean change over the round's update. Chosen completions should not fall along with the rejected ones.",
        points_of(rounds, {"chosen": "chosen_change", "rejected": "rejected_change"}),
        Axes(unit=_PER_SEQUENCE, reference=0.0),
    )
    yield from _curves(
        "Likelihood displacement",
        "Share of pairs whose chosen completion became less likely in the update.",
        points_of(rounds, {"": "chosen_fell"}),
        Axes(percent=True),
    )


def _text(rounds: Sequence[RoundSummary]) -> Iterator[Figure]:
    # Round 0's own completions surprise its policy by its entropy.
    surprise: list[Row] = [
        {
            "curve": "surprise to round 0's policy",
            "x": summary.round,
            "y": summary.entropy_per_token
            if summary.initial_logp_per_token is None
            else -summary.initial_logp_per_token,
        }
        for summary in rounds
    ]
    yield from _curves(
        "Entropy and surprise",
        "Minus the log-probability per token of each round's own completions: under the policy that wrote them, and "
        "under round 0's. A second curve that climbs above its beginning says that the text has left what round 0 "
        "would write; a first that falls to nothing means that all completions are alike.",
        [*points_of(rounds, {"entropy": "entropy_per_token"}), *surprise],
        Axes(unit="nats per token"),
    )
    for title, caption, metrics, axes in _COUNTED:
        yield from _curves(title, caption, points_of(rounds, metrics), axes)


def _steps(steps: Mapping[int, pa.Table], rounds: Sequence[RoundSummary]) -> Iterator[Figure]:
    if not steps:
        return
    begins = [0]
    for table in steps.values():
        begins.append(begins[-1] + table.num_rows)
    first, last = min(steps), max(steps)
    which = f"round {first}" if first == last else f"rounds {first} to {last}"
    axes = Axes(x=f"optimizer step, {which}", boundaries=begins[:-1])
    expected = {summary.first_loss_expected for summary in rounds if summary.round in steps}
    loss_axes = replace(axes, reference=expected.pop() if len(expected) == 1 else None)
    dashed = "The dashed line is the value of the first step of a round, where policy and reference are one."
    caption = "Mean over the step's preferences." if loss_axes.reference is None else dashed
    yield from _curves("Loss", caption, step_points(steps, {"": "loss"}), loss_axes)
    yield from _curves(
        "Implicit rewards",
        "Beta times the log-ratio of policy and reference, of the best and the worst completions; their margin.",
        step_points(steps, {"chosen": "reward_chosen", "rejected": "reward_rejected", "margin": "reward_margin"}),
        replace(axes, reference=0.0),
    )
    yield from _curves(
        "Accuracy",
        "Share of preferences whose best completion has the larger implicit reward.",
        step_points(steps, {"": "accuracy"}),
        replace(axes, percent=True, reference=0.5),
    )
    yield from _curves("Gradient norm", "Before clipping.", step_points(steps, {"": "grad_norm"}), axes)


def where_time_goes(times: Timeline | None) -> Iterator[Section]:
    """Yields the chart of what ran when, and its lanes as a table; nothing if the rounds did not record it."""
    if times is None:
        return
    first, last = times.rounds[0], times.rounds[-1]
    which = f"round {last}" if first == last else f"rounds {first} and {last}"
    title = f"Timeline of {which}"
    ahead = any(times.is_ahead(span) for lane in times.lanes for span in lane.spans)
    pale = " Pale bars belong to the round after." if ahead else ""
    cut = " If nothing ran for long, that time is cut out, at the dashed line." if times.cuts else ""
    caption = (
        "A bar is a piece of work, such as a shard: for training, for the evaluation of the new policy, or the "
        f"sync of its weights.{pale}{cut}"
    )
    yield Section(
        "Where the time goes",
        "When each part worked, on which device. What is blank is idle, or is the store's and the scheduler's.",
        [Figure(title, caption, gantt(title, times), wide=True)],
        {f"Time of {which}": lane_rows(times)},
    )


def _curves(title: str, caption: str, points: Sequence[Row], axes: Axes = _BY_ROUND) -> Iterator[Figure]:
    if points:
        yield Figure(title, caption, curves(title, points, axes))


def _by_judge(title: str, caption: str, points: Sequence[Row], axes: Axes) -> Iterator[Figure]:
    """Draws one curve for each judge; many judges are divided among several charts."""
    judges = list(dict.fromkeys(point["curve"] for point in points))
    for first in range(0, len(judges), MOST_CURVES):
        part = judges[first : first + MOST_CURVES]
        yield from _curves(
            title if len(part) > 1 else f"{title}: {part[0]}",
            caption,
            [point for point in points if point["curve"] in part],
            axes,
        )
