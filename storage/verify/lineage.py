"""Whether the records of a run agree with each other, and with those of the run that it was forked from."""

from collections.abc import Iterator, Mapping, Sequence

from storage.errors import StoreError
from storage.log.manifest import Entry
from storage.log.run import Run
from storage.log.store import Store
from storage.log.tombstones import parent_of
from storage.objects import layout
from storage.tables.checkpoints import weights_digest
from storage.verify.damage import Damage

_MEANING = "the round is not what its own records say it was made from: do not build on it"

Policies = Mapping[int, str]
"""Hash of the weights that each round ended with."""


def check_lineage(run: Run, commits: Sequence[Entry]) -> Iterator[Damage]:
    """Where the records of the rounds contradict each other, as far as they say who made what.

    What samples is the policy of the round before, or in a run of staleness 1 of the round before that, whichever the
    round says; what is evaluated is that of the round; a checkpoint's hash is that of its weights, and the round's; a
    reference is an earlier policy, or an average of them. What was sampled on other inputs, and then replaced, counts
    for nothing.
    """
    newest = {entry.key.piece: entry for entry in sorted(commits, key=lambda entry: entry.number) if entry.key}
    policies = {entry.round: entry.meta["policy"] for entry in _of(commits, "checkpoint") if "policy" in entry.meta}
    averages = {entry.meta.get("policy") for entry in _of(commits, "ema")}
    said = {number: _said_sampler(run.round_entry(number)) for number in run.finished}
    for entry in commits:
        counts = entry.key is not None and newest[entry.key.piece] is entry
        problem = (_sampled_by(entry, policies, said) if counts else None) or _checkpoint(entry, policies, averages)
        if problem is not None:
            yield _contradiction(run, entry, problem)
    for number in run.finished:
        entry = run.round_entry(number)
        recorded = entry.meta.get("policy")
        if number in policies and recorded not in (None, policies[number]):
            checkpoint = policies[number][:12]
            yield _contradiction(
                run, entry, f"round {number} ended with {recorded[:12]}, its checkpoint is {checkpoint}"
            )


def check_parent(store: Store, run: Run, commits: Sequence[Entry]) -> Iterator[Damage]:
    """Where a fork's past is not its parent's."""
    start = parent_of(run.header)
    if start is None:
        return
    name, last = start
    try:
        parent = store.run(name, intact_part=True)
        theirs = {(entry.key, entry.files) for number in range(last + 1) for entry in parent.entries(round=number)}
    except StoreError as error:
        yield Damage(layout.run_prefix(name), None, f"the parent: {error}", f"see 'rondo verify {name}'")
        return
    for entry in commits:
        inherited = entry.round <= last and entry.round in run.finished
        if inherited and (entry.key, entry.files) not in theirs:
            yield _contradiction(run, entry, f"{entry.key} is not what run '{name}' has")


def _said_sampler(round: Entry) -> str | None:
    origin = round.meta.get("origin")
    return origin.get("sampled_by") if isinstance(origin, dict) else None


def _sampled_by(entry: Entry, policies: Policies, said: Mapping[int, str | None]) -> str | None:
    before, initial = policies.get(entry.round - 1), policies.get(0)
    stage, policy = entry.key.stage if entry.key else "", entry.meta.get("policy")
    sampled = said.get(entry.round)
    earlier = {before, policies.get(max(entry.round - 2, 0))}
    allowed = {
        "candidates": earlier if sampled is None or None in earlier else earlier & {sampled},
        "eval_candidates": {policies.get(entry.round)},
        "baseline_candidates": {before, initial},  # also of round 0, in runs of earlier versions
        "initial_candidates": {initial},
    }.get(stage, {policy})
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


def _contradiction(run: Run, entry: Entry, problem: str) -> Damage:
    return Damage(layout.entry_key(run.name, entry.number), entry.round, problem, _MEANING)
