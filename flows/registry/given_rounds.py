"""Completions that a fork was given for its first rounds, with another judge's verdicts on them.

The fork trains on them anew. From round 2 on they are samples of the parent's policies, and not of the fork's own: the
policy that sampled is named in the fork's log, and it is the reference of that round if ``update.reference`` is
``previous``.
"""

from dataclasses import dataclass

from storage.log.manifest import Entry
from storage.log.run import Run

SAMPLER_POLICY, SAMPLER_BASE, SAMPLER_PROBE = "sampler_policy", "sampler_base", "sampler_probe"
"""Stages: the weights of the policy that sampled a round's completions if it is none of the run's own; the whole
checkpoint that they change, if they are an adapter; and that policy's probe."""


@dataclass(frozen=True)
class Given:
    """What a fork was given.

    Attributes:
        run: whose completions they are.
        round: of the last of them; the first is round 1.
        judgments: the name under which they were judged again.
        until: number of the newest entry of that name when the fork was made: what was judged later is another
            version. None of forks that were made before this was recorded.
    """

    run: str
    round: int
    judgments: str
    until: int | None = None


def given_to(run: Run) -> Given | None:
    """Returns what a run was given; None if it samples all its rounds itself."""
    given = run.header.get("given")
    return None if given is None else Given(**given)


def is_given(run: Run, number: int) -> bool:
    """Says whether a round's completions were given to the run."""
    given = given_to(run)
    return given is not None and 0 < number <= given.round


def sampler_policy(run: Run, number: int) -> Entry | None:
    """Returns the entry of the policy that sampled a round's completions; None if it is one of the run's own."""
    entries = run.entries(number, SAMPLER_POLICY)
    return entries[-1] if entries else None
