"""Records of rounds that contradict each other are found; those that may be meant so are not."""

from pathlib import Path

import pytest

from storage.log.manifest import Entry, Key
from storage.log.store import Store
from support.damage import rewrite
from support.kept_run import kept_run, verify


@pytest.mark.parametrize(
    ("stage", "field", "problem"),
    [
        ("candidates", "policy", "and not from that of their round"),
        ("eval_candidates", "policy", "and not from that of their round"),
        ("checkpoint", "policy", "do not have the hash"),
        ("checkpoint", "reference", "is no policy before it"),
        ("round", "policy", "its checkpoint is"),
    ],
)
def test_records_that_contradict_each_other(tmp_path: Path, stage: str, field: str, problem: str) -> None:
    """A log that is intact in itself, of a program that mixed up its policies in round 2."""
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 2)
    rewrite(store, run, lambda entry: wrong(entry, stage, field))
    found = verify(store, "kept")
    assert problem in " ".join(damage.problem for damage in found.damages)
    assert {damage.round for damage in found.damages} == {2}
    assert found.good == (0, 1)


@pytest.mark.parametrize(
    ("stage", "round", "policies", "says"),
    [
        ("candidates", 1, (0,), {}),
        ("candidates", 2, (0, 1), {}),
        ("candidates", 3, (1, 2), {}),
        ("candidates", 3, (1,), {3: 1}),
        ("candidates", 3, (2,), {3: 2}),
        ("eval_candidates", 3, (3,), {}),
        ("served_candidates", 3, (3,), {}),
        ("baseline_candidates", 3, (0, 2), {}),
        ("initial_candidates", 3, (0,), {}),
        ("checkpoint", 3, (0, 1, 2), {}),
    ],
)
def test_policies_that_may_be_meant(
    tmp_path: Path, stage: str, round: int, policies: tuple[int, ...], says: dict[int, int]
) -> None:
    """Of all policies of a run these may have sampled, or be the reference, by what the rounds say of who sampled."""
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 4)
    known = [snapshot.meta["policy"] for snapshot in run.rounds()]
    # There are no answers of earlier policies in this run: another table is taken for them.
    taken = "judgments" if stage in ("baseline_candidates", "initial_candidates", "served_candidates") else stage
    field = "reference" if stage == "checkpoint" else "policy"

    def change(old: Entry, policy: str) -> Entry:
        if old.kind == "round" and old.round in says:
            return Entry(**{**vars(old), "meta": {**old.meta, "origin": {"sampled_by": known[says[old.round]]}}})
        if old.key is None or old.round != round or old.key.stage not in (taken, stage):
            return old
        key = Key(round, stage, old.key.shard)
        return Entry(**{**vars(old), "key": key, "meta": {**old.meta, field: policy}})

    fine = []
    for number, policy in enumerate(known):
        rewrite(store, run, lambda old, policy=policy: change(old, policy))
        if not verify(store, "kept").damages:
            fine.append(number)
    assert tuple(fine) == policies


@pytest.mark.parametrize("named", ["f" * 64, "e" * 64])
def test_completions_that_were_given_come_from_the_policy_that_is_named(tmp_path: Path, named: str) -> None:
    """Completions of round 2, and its reference, are of a policy that is none of the run's: it has to be named."""
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 2)

    def change(old: Entry) -> Entry:
        if old.key is None or old.round != 2:
            return old
        if old.key.stage == "judgments":  # taken for the entry that names it
            return Entry(**{**vars(old), "key": Key(2, "sampler_policy"), "meta": {"policy": named}})
        changed = {"candidates": {"policy": "f" * 64}, "checkpoint": {"reference": "f" * 64}}
        return Entry(**{**vars(old), "meta": {**old.meta, **changed.get(old.key.stage, {})}})

    rewrite(store, run, change)
    problems = [damage.problem for damage in verify(store, "kept").damages]
    assert bool(problems) == (named != "f" * 64), problems


def test_nothing_is_concluded_from_a_policy_that_is_not_known(tmp_path: Path) -> None:
    """A checkpoint whose entry says no policy: what the next round was sampled by cannot be compared with it."""
    store = Store.open(tmp_path)
    run = kept_run(store, "kept", 3)
    policy = run.rounds()[2].meta["policy"]

    def change(old: Entry) -> Entry:
        if old.kind == "round" and old.round == 3:
            return Entry(**{**vars(old), "meta": {**old.meta, "origin": {"sampled_by": policy}}})
        checkpoint = old.key is not None and (old.key.stage, old.round) == ("checkpoint", 2)
        return Entry(**{**vars(old), "meta": {}}) if checkpoint else old

    rewrite(store, run, change)
    damages = [damage.problem for damage in verify(store, "kept").damages]
    assert not [problem for problem in damages if "candidates" in problem], damages


def wrong(entry: Entry, stage: str, field: str) -> Entry:
    hit = entry.key is not None and (entry.key.stage, entry.key.round) == (stage, 2)
    return Entry(**{**vars(entry), "meta": {**entry.meta, field: "f" * 64}}) if hit else entry
