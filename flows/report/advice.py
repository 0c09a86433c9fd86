"""What an alarm means and what to do about it, beside the sentence that the round itself says."""

from collections.abc import Iterable
from dataclasses import dataclass

from flows.registry.round_summary import RoundSummary


@dataclass(frozen=True)
class Advice:
    """What one kind of alarm tells a person.

    Attributes:
        begins: how its sentence begins; one that begins longer comes first in the list.
        look: the query of the completions that show it, in the round of the alarm; empty if none do.
    """

    begins: str
    means: str
    do: str
    look: tuple[tuple[str, str], ...] = ()


_TRAINING, _HELD_OUT, _GATE = ("kind", "training"), ("kind", "held-out"), ("kind", "gate")
_ALL = (
    Advice(
        "gate failed",
        "The policy of this round can do less than the best one before it could, on what the recipe's gate measures: "
        "the round is kept, and the next one starts from the last good policy.",
        "Compare the answers with those of the best round (rondo show RUN@ROUND --table gate_completions); take "
        "smaller steps or more KL, or mend the judge that pays for this; if the loss is acceptable, raise "
        "gate.tolerance.",
        (_GATE,),
    ),
    Advice(
        "no update",
        "The round gave nothing to learn from, so it ended with the policy of the round before.",
        "Look at why prompts were dropped: if all completions of a prompt score the same, sample at a higher "
        "temperature or let the judge see finer differences; if few are scored, mend the judge.",
        (_TRAINING, ("role", "dropped")),
    ),
    Advice(
        "few preferences",
        "Few prompts gave a preference: the update learns from little, and its steps are noisy.",
        "Look at the dropped prompts: raise sampling.candidates or sampling.temperature if the completions are alike, "
        "or let the judge see finer differences; give harder prompts if all of them are right.",
        (_TRAINING, ("role", "dropped")),
    ),
    Advice(
        "truncation",
        "Completions were cut before they ended: the judge scores half a text, and the policy learns from it.",
        "See in reward against length what the cut ones score; preferences.drop_truncated leaves them out.",
        (("finish", "length"),),
    ),
    Advice(
        "likelihood displacement",
        "The update made chosen completions less likely, only less so than the rejected ones: probability goes to "
        "texts that nobody sampled.",
        "Lower update.learning_rate, raise update.beta, or add update.nll_weight, which keeps the chosen likely "
        "(docs/update.md); check that chosen and rejected differ in more than a few words.",
        (_TRAINING, ("role", "chosen"), ("sort", "margin")),
    ),
    Advice(
        "length",
        "Completions are half as long again as in round 0: the judge may reward length itself.",
        "Look at reward against length; set the penalty of length in preferences, or use a judge that sees both "
        "lengths.",
        (_HELD_OUT, ("sort", "-length")),
    ),
    Advice(
        "entropy collapse",
        "The policy is far surer of its tokens than it was: its completions become alike, and there is less to prefer.",
        "Read whether they repeat themselves; lower update.learning_rate, raise update.beta, or go back to an earlier "
        "round with a fork.",
        (_HELD_OUT,),
    ),
    Advice(
        "drift",
        "The policy has moved further from the initial one than evaluation.kl_limit allows.",
        "Read the held-out completions with the largest log-ratio; raise update.beta or lower update.learning_rate in "
        "a fork of an earlier round, or raise the limit if they read well.",
        (_HELD_OUT, ("sort", "-ratio")),
    ),
    Advice(
        "skipped",
        "The sampling engine died on these prompts, and the round went on without them.",
        "Look for what the engine said in the process logs of the run; often it is memory.",
    ),
    Advice(
        "judge drift",
        "A judge scores the very same completions of round 0 otherwise than it did: rounds cannot be compared.",
        "Pin the judge's model and version, and its temperature; start again from the round before it changed.",
        (_HELD_OUT,),
    ),
    Advice(
        "judge",
        "Completions have no score, as the judge failed, or its replies could not be read: they are in no "
        "preference.",
        "Read the statuses and the judge's replies; raise the judge's max_tokens, or say the form of the reply more "
        "plainly in its prompt.",
        (_TRAINING,),
    ),
    Advice(
        "over-optimisation",
        "The training judge's score rises while a held-out judge's falls: the policy learns the judge's mistakes.",
        "Read the completions with the largest score; go back to the round before the fall with a fork, and use "
        "another judge, several, or a larger update.beta.",
        (_HELD_OUT, ("sort", "-score")),
    ),
    Advice(
        "base rate",
        "All answers of the initial policy score the same, so that there may be nothing to prefer.",
        "If nothing scores, show an example in the prompt or give credit for half right answers; if all do, give "
        "harder prompts or a stricter judge.",
        (_HELD_OUT,),
    ),
    Advice(
        "went on without",
        "People were asked for labels and did not give all of them in time.",
        "Label what is left before the next round, or raise the judge's wait_minutes.",
    ),
)  # fmt: skip


def advice(alarm: str) -> Advice | None:
    """Returns what an alarm means; None for one that is not known here, as of another version."""
    fitting = [known for known in _ALL if alarm.startswith(known.begins)]
    return max(fitting, key=lambda known: len(known.begins), default=None)


@dataclass(frozen=True)
class Complaint:
    """An alarm of a round, and what it means, if it is the first of its kind."""

    round: int
    sentence: str
    advice: Advice | None


def complaints(rounds: Iterable[RoundSummary]) -> list[Complaint]:
    """Lists the alarms of these rounds, in their order."""
    known: set[Advice] = set()
    found = []
    for summary in rounds:
        for sentence in summary.alarms:
            told = advice(sentence)
            found.append(Complaint(summary.round, sentence, None if told in known else told))
            if told is not None:
                known.add(told)
    return found
