"""What the store cannot know when it verifies a run: what a loss means, and which records contradict each other."""

from collections.abc import Iterator, Mapping, Sequence

from flows.registry.given_rounds import SAMPLER_POLICY
from flows.registry.head import start_of
from flows.registry.resume_check import CARRIED_STAGES, needed_after
from storage.log.manifest import Entry
from storage.log.run import Run
from storage.tables.checkpoints import weights_digest
from storage.verify.verify import Rules

Policies = Mapping[int, str]
"""Hash of the weights that each round ended with."""


def loss_of(entry: Entry) -> str:
    """Says what it means for the run that a file of this commit is damaged."""
    stage = entry.key.stage if entry.key else ""
    if stage == "prompts":
        return "the prompts of the run: no round of it can go on"
    if stage.startswith("gate_") and stage != "gate_candidates":
        return f"{stage} of round {entry.round}: rounds whose gate compares with it cannot be gone on from"
    if stage not in CARRIED_STAGES:
        return f"{stage} of round {entry.round}: it cannot be read any more; weights and other tables are not concerned"
    if entry.round == 0:
        return f"{stage} of round 0, which every round compares with: no round of the run can go on"
    return f"{stage} of round {entry.round}: nothing can go on from this round; other rounds are not concerned"


def contradictions(run: Run, commits: Sequence[Entry]) -> Iterator[tuple[Entry, str]]:
    """Finds the entries of rounds that contradict others, as far as they say who made what, each with what is wrong.

    - The policy that samples is that of the round before which passed its gate, or with staleness 1 that of the one
      before that; if the round says which, it must be that one.
    - Completions that a fork was given come from the policy that its log names for it.
    - The policy that is evaluated is that of the round.
    - A checkpoint's hash is that of its weights, and the round's.
    - A reference is an earlier policy, or an average of them.

    Completions that were sampled on other inputs, and then replaced, count for nothing.
    """
    newest = {entry.key.piece: entry for entry in sorted(commits, key=lambda entry: entry.number) if entry.key}
    policies = {entry.round: entry.meta["policy"] for entry in _of(commits, "checkpoint") if "policy" in entry.meta}
    averages = {entry.meta.get("policy") for entry in _of(commits, "ema")}
    starts = {number: start_of(run, number) for number in {entry.round for entry in commits}}
    others = {entry.round: entry.meta.get("policy") for entry in _of(commits, SAMPLER_POLICY)}
    said = {number: _said_sampler(run.round_entry(number)) for number in run.finished}
    for entry in commits:
        counts = entry.key is not None and newest[entry.key.piece] is entry
        problem = (_sampled_by(entry, policies, starts, said, others) if counts else None) or _checkpoint(
            entry, policies, averages | {others.get(entry.round)}
        )
        if problem is not None:
            yield entry, problem
    for number in run.finished:
        entry = run.round_entry(number)
        recorded = entry.meta.get("policy")
        if number in policies and recorded not in (None, policies[number]):
            yield entry, f"round {number} ended with {recorded[:12]}, its checkpoint is {policies[number][:12]}"


def _said_sampler(round: Entry) -> str | None:
    origin = round.meta.get("origin")
    return origin.get("sampled_by") if isinstance(origin, dict) else None


def _sampled_by(
    entry: Entry,
    policies: Policies,
    starts: Mapping[int, int],
    said: Mapping[int, str | None],
    others: Mapping[int, str | None],
) -> str | None:
    start = starts[entry.round]
    before, initial = policies.get(start), policies.get(0)
    stage, policy = entry.key.stage if entry.key else "", entry.meta.get("policy")
    sampled = said.get(entry.round)
    earlier = {before, policies.get(starts.get(start, 0))}
    allowed = {
        "candidates": earlier if sampled is None or None in earlier else earlier & {sampled},
        "eval_candidates": {policies.get(entry.round)},
        "served_candidates": {policies.get(entry.round)},
        "gate_candidates": {policies.get(entry.round)},
        "baseline_candidates": {before, initial},  # also of round 0, in runs of earlier versions
        "initial_candidates": {initial},
    }.get(stage, {policy})
    if stage == "candidates" and entry.round in others:
        allowed = {others[entry.round]}
    if policy is None or None in allowed or policy in allowed:
        return None
    return f"{entry.key} come from policy {policy[:12]}, and not from that of their round"


def _checkpoint(entry: Entry, policies: Policies, averages: set[str | None]) -> str | None:
    policy, reference = entry.meta.get("policy"), entry.meta.get("reference")
    if entry.key is None or entry.key.stage != "checkpoint" or policy is None:
        return None
    if not any((file.name or "").endswith(".safetensors") for file in entry.files):
        return f"the checkpoint of round {entry.round} has no weights"
    if policy != weights_digest(entry.files):
        return f"the weights of round {entry.round} do not have the hash {policy[:12]} that stands beside them"
    earlier = {known for number, known in policies.items() if number < entry.round} | averages
    if reference is not None and reference not in earlier:
        return f"the reference {reference[:12]} of round {entry.round} is no policy before it"
    return None


def _of(commits: Sequence[Entry], stage: str) -> list[Entry]:
    return [entry for entry in commits if entry.key is not None and entry.key.stage == stage]


RULES = Rules(needed_after, loss_of, contradictions)
"""What the store asks when it verifies a run of ours."""
