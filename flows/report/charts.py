"""Which curves a report shows, in what order, and what each of them tells."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from flows.registry.round_summary import RoundSummary
from flows.report.gantt import gantt
from flows.report.plots import MOST_CURVES, Scale, Series, curves, distributions, series_of
from flows.report.timeline import Timeline, lane_rows

_PER_SEQUENCE = "nats per sequence"
_BY_ROUND = Scale()


@dataclass(frozen=True)
class Chart:
    """A figure with its heading and a sentence on how to read it; a wide one has a row of its own."""

    title: str
    caption: str
    svg: str
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """Charts that answer one question, and tables by their captions."""

    title: str
    lead: str
    charts: list[Chart]
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)


def sections(
    rounds: Sequence[RoundSummary],
    scores_by_round: Mapping[int, Sequence[float]],
    steps: Mapping[int, pa.Table],
    times: Timeline | None = None,
) -> list[Section]:
    """The charts of a run; what has no data yet is left out.

    Args:
        scores_by_round: scores of the candidates that were sampled for training, for the rounds to be shown.
        steps: the ``metrics`` tables of the rounds to be shown, ascending.
        times: what ran when in the last rounds; None in runs that did not record it.
    """
    found = [
        Section(
            "What the judges say",
            "Bands and bars are 95% intervals (1.96 standard errors) over the held-out prompts.",
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
            "In nats per sequence, estimated on each round's own held-out answers.",
            [*_moved(rounds)],
        ),
        Section(
            "Whether the text still reads as before",
            "A reward that rises while the text decays is a failed run: these curves would show it.",
            [*_text(rounds)],
        ),
        Section(
            "Inside the rounds",
            "Every optimizer step, before it is taken, over its batch of preferences; thin lines where rounds begin.",
            [*_steps(steps, rounds)],
        ),
        *_times(times),
    ]
    return [section for section in found if section.charts]


def _judged(rounds: Sequence[RoundSummary]) -> Iterator[Chart]:
    yield from _chart(
        "Held-out reward",
        "Mean score of the judge that training hears, on prompts that training never sees.",
        [series_of(rounds, "", "reward", "reward_se")],
    )
    yield from _chart(
        "Win rate",
        "Share of held-out prompts whose answer is scored above the earlier policy's; a tie counts one half.",
        [
            series_of(rounds, "against round 0", "win_rate_initial"),
            series_of(rounds, "against the previous round", "win_rate_previous"),
        ],
        Scale(percent=True, reference=0.5),
    )
    for name in dict.fromkeys(name for summary in rounds for name in summary.judges):
        there = [summary for summary in rounds if name in summary.judges]
        scores = Series("", [summary.round for summary in there], [summary.judges[name] for summary in there])
        yield from _chart(
            f"Judge {name}", "Mean score of a judge that training never hears, on the same answers.", [scores]
        )


def _sampled(scores_by_round: Mapping[int, Sequence[float]]) -> Iterator[Chart]:
    if scores_by_round:
        title = "Scores of the candidates"
        yield Chart(
            title,
            "What the judge gave the candidates sampled for training, by round; the upright mark is their mean. Round "
            "n's candidates come from the policy of the round before; with staleness 1, of the one before that.",
            distributions(title, scores_by_round, "score"),
        )


def _watched(rounds: Sequence[RoundSummary]) -> Iterator[Chart]:
    yield from _by_judge(
        "Rise over held-out judges",
        "How much more the score of the judge that training hears has risen since round 0 than that of a judge that it "
        "never hears, each in standard deviations of its own scores of round 0. What climbs on and on is learned from "
        "one judge's mistakes.",
        rounds,
        "gaps",
        Scale(unit="standard deviations", reference=0.0),
    )
    yield from _by_judge(
        "Agreement with held-out judges",
        "Share of the pairs of held-out answers that both judges put in the same order, of those that neither sees as "
        "equal; the dashed line is chance.",
        rounds,
        "agreement",
        Scale(percent=True, reference=0.5),
    )
    yield from _chart(
        "Score and length",
        "Spearman's correlation of score and length among the candidates of a prompt: what the judge gives for length.",
        [series_of(rounds, "", "length_correlation")],
        Scale(reference=0.0),
    )
    yield from _chart(
        "What the judge leaves open",
        "Shares of the pairs of candidates that are ties, of the comparisons whose verdict turns with the order in "
        "which the two are shown, and of the replies that could not be read.",
        [
            series_of(rounds, "ties", "tied"),
            series_of(rounds, "flips", "flipped"),
            series_of(rounds, "unparsable", "unparsable"),
        ],
        Scale(percent=True),
    )
    yield from _by_judge(
        "Drift of the judge",
        "Mean change of what a judge says of the same answers of round 0, asked again in each round.",
        rounds,
        "judge_drift",
        Scale(reference=0.0),
    )


def _by_judge(title: str, caption: str, rounds: Sequence[RoundSummary], figure: str, scale: Scale) -> Iterator[Chart]:
    """A figure that rounds have by judge, as one curve for each judge; of many judges as several charts."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for summary in rounds:
        for name, value in getattr(summary, figure).items():
            xs, ys = found.setdefault(name, ([], []))
            xs.append(summary.round)
            ys.append(value)
    series = [Series(name, xs, ys) for name, (xs, ys) in found.items()]
    for first in range(0, len(series), MOST_CURVES):
        part = series[first : first + MOST_CURVES]
        yield from _chart(title if len(part) > 1 else f"{title}: {part[0].label}", caption, part, scale)


def _moved(rounds: Sequence[RoundSummary]) -> Iterator[Chart]:
    yield from _chart(
        "KL divergence",
        "Of the policy from the initial one and from the round before.",
        [
            series_of(rounds, "to the initial policy", "kl_initial", "kl_initial_se"),
            series_of(rounds, "to the previous round", "kl_previous", "kl_previous_se"),
        ],
        Scale(unit=_PER_SEQUENCE, bars=True),
    )
    yield from _chart(
        "Log-probability of the pairs",
        "Mean change over the round's update. Chosen answers should not fall along with the rejected ones.",
        [series_of(rounds, "chosen", "chosen_change"), series_of(rounds, "rejected", "rejected_change")],
        Scale(unit=_PER_SEQUENCE, reference=0.0),
    )
    yield from _chart(
        "Chosen answers that fell",
        "Share of pairs whose chosen answer became less likely in the update (likelihood displacement).",
        [series_of(rounds, "", "chosen_fell")],
        Scale(percent=True),
    )


def _text(rounds: Sequence[RoundSummary]) -> Iterator[Chart]:
    # Round 0's own answers surprise its policy by its entropy.
    surprise = [
        summary.entropy_per_token if summary.initial_logp_per_token is None else -summary.initial_logp_per_token
        for summary in rounds
    ]
    yield from _chart(
        "Entropy and surprise",
        "Minus the log-probability per token of each round's own answers: under the policy that wrote them, and under "
        "round 0's. Where the second climbs above its beginning, the text has left what round 0 would write; a first "
        "that falls to nothing means that all answers are alike.",
        [
            series_of(rounds, "entropy", "entropy_per_token"),
            Series("surprise to round 0's policy", [summary.round for summary in rounds], surprise),
        ],
        Scale(unit="nats per token"),
    )
    yield from _chart(
        "Different answers",
        "How many different held-out answers there are, for each hundred.",
        [series_of(rounds, "", "distinct")],
        Scale(percent=True),
    )
    yield from _chart(
        "Length",
        "Mean length of the answers, end of sequence included.",
        [series_of(rounds, "held-out", "length"), series_of(rounds, "sampled for training", "sampled_length")],
        Scale(unit="tokens"),
    )
    yield from _chart(
        "Truncated answers",
        "Share of held-out answers cut at the largest number of tokens.",
        [series_of(rounds, "", "truncated")],
        Scale(percent=True),
    )


def _steps(steps: Mapping[int, pa.Table], rounds: Sequence[RoundSummary]) -> Iterator[Chart]:
    if not steps:
        return
    begins = [0]
    for table in steps.values():
        begins.append(begins[-1] + table.num_rows)
    scale = Scale(x=_steps_label(steps), boundaries=begins[:-1])
    whole = pa.concat_tables(steps.values())

    def curve(label: str, column: str) -> Series:
        return Series(label, range(whole.num_rows), whole[column].to_pylist())

    expected = {summary.first_loss_expected for summary in rounds if summary.round in steps}
    loss_scale = replace(scale, reference=expected.pop() if len(expected) == 1 else None)
    dashed = "The dashed line is the value of the first step of a round, where policy and reference are one."
    caption = "Mean over the step's preferences." if loss_scale.reference is None else dashed
    yield from _chart("Loss", caption, [curve("", "loss")], loss_scale)
    yield from _chart(
        "Implicit rewards",
        "Beta times the log-ratio of policy and reference, of the best and the worst candidates; their margin.",
        [curve("chosen", "reward_chosen"), curve("rejected", "reward_rejected"), curve("margin", "reward_margin")],
        replace(scale, reference=0.0),
    )
    yield from _chart(
        "Accuracy",
        "Share of preferences whose best candidate has the larger implicit reward.",
        [curve("", "accuracy")],
        replace(scale, percent=True, reference=0.5),
    )
    yield from _chart("Gradient norm", "Before clipping.", [curve("", "grad_norm")], scale)


def _times(times: Timeline | None) -> Iterator[Section]:
    if times is None:
        return
    first, last = times.rounds[0], times.rounds[-1]
    which = f"round {last}" if first == last else f"rounds {first} and {last}"
    title = f"Timeline of {which}"
    ahead = any(times.is_ahead(span) for lane in times.lanes for span in lane.spans)
    pale = " Pale bars belong to the round after." if ahead else ""
    cut = " Where nothing ran for long, the time is cut out, at the dashed line." if times.cuts else ""
    yield Section(
        "Where the time goes",
        "When each part worked, on which device. What is blank is idle, or is the store's and the scheduler's.",
        [
            Chart(
                title,
                "A bar is a piece of work, such as a shard: for training, for the evaluation of the new policy, or the "
                f"hand-over of its weights.{pale}{cut}",
                gantt(title, times),
                wide=True,
            )
        ],
        {f"Time of {which}": lane_rows(times)},
    )


def _steps_label(steps: Mapping[int, pa.Table]) -> str:
    first, last = min(steps), max(steps)
    return f"optimizer step, round {first}" if first == last else f"optimizer step, rounds {first} to {last}"


def _chart(title: str, caption: str, series: Sequence[Series], scale: Scale = _BY_ROUND) -> Iterator[Chart]:
    drawn = [curve for curve in series if curve.xs]
    if drawn:
        yield Chart(title, caption, curves(title, drawn, scale))
