"""Which policies a fork names that is given its parent's completions, and whether their weights are there."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.host.progress import Display
from flows.registry.catalog import REJUDGMENTS
from flows.registry.given_rounds import SAMPLER_POLICY
from flows.registry.head import start_of
from flows.registry.resume import header
from flows.run.given_fork import given_header, import_given_rounds, judged_recipe, weights_of_given_rounds
from flows.run.start import fork
from pipeline.errors import ConfigError
from pipeline.judges.length import LengthConfig
from pipeline.recipe import Recipe
from pipeline.records import content_id
from storage.errors import DroppedFileError
from storage.log.manifest import FileRef, Key
from storage.log.run import Run
from storage.log.store import Store
from support.recipes import TINY

RECIPE = Recipe.model_validate(TINY)


def stored(run: Run, number: int, stage: str, shard: int = 0) -> FileRef:
    return FileRef(f"runs/{run.name}/rounds/{number:04}/{stage}-{shard}", 1, "0" * 64, 1)


def judged_parent(store: Store, verdicts: Sequence[bool]) -> Run:
    """A run of rounds that passed their gate or failed it, judged again as 'other'; each skipped its first shard."""
    run = store.create_run("parent", header(RECIPE))
    with run.writer() as writer:
        for number, passed in enumerate(verdicts):
            policy = {"policy": f"{start_of(run, number)}" * 64}
            if number:
                writer.commit(Key(number, "candidates", 0), [], {"set_aside": 4, "reason": "the engine died"})
                writer.commit(Key(number, "candidates", 1), [stored(run, number, "candidates", 1)], policy)
            for stage in ("checkpoint", "probe", "eval_candidates", "eval_judgments", "handover"):
                meta = {"policy": f"{number}" * 64, "per_sequence": [0.0]}
                writer.commit(Key(number, stage), [stored(run, number, stage)], meta)
            gate: dict[str, Any] = {"passed": passed, "measures": [], "since": 0}
            writer.finish_round(number, {"round": number, "gate": gate})
    judge = LengthConfig(kind="length", name="other", target=20)
    judged = {"format": 1, "judge": judge.model_dump(mode="json"), "scoring": content_id(judge.scoring())}
    annex = store.create_annex(run, "other", judged)
    with annex.writer() as writer:
        for number in range(1, len(verdicts)):
            writer.commit(Key(number, REJUDGMENTS, 1), [stored(run, number, REJUDGMENTS, 1)], {"version": "1"})
    return run


def test_the_policy_that_sampled_is_named_though_it_is_that_of_round_0() -> None:
    """Rounds 1 and 2 of the parent failed, so that round 0 sampled round 3, too; the fork's own rounds may pass."""
    store = Store.open("memory://")
    parent = judged_parent(store, [True, False, False, True])
    child = store.create_run("child", header(RECIPE) | given_header(parent, 3, "other"))
    with child.writer() as writer:
        import_given_rounds(store, child, writer, RECIPE, print)
    named = {number: child.entries(number, SAMPLER_POLICY) for number in (1, 2, 3)}
    assert not named[1], "round 1 begins with round 0 in any run"
    assert [named[number][-1].meta["policy"] for number in (2, 3)] == ["0" * 64] * 2
    assert {file.path for file in weights_of_given_rounds(parent, 3, 0)} == {
        f"runs/parent/rounds/0000/{stage}-0" for stage in ("checkpoint", "probe")
    }


def test_a_fork_keeps_to_the_judgments_that_it_was_made_with() -> None:
    """Killed after round 1, and judged anew by another version meanwhile: it takes the first, and says so each time."""
    store = Store.open("memory://")
    parent = judged_parent(store, [True, True, True])
    child = store.create_run("child", header(RECIPE) | given_header(parent, 2, "other"))
    with parent.annex("other").writer() as writer:
        for number in (1, 2):
            key = Key(number, REJUDGMENTS, 1, "newer")
            path = f"runs/parent/rounds/{number:04}/newer"
            newer = replace(stored(parent, number, REJUDGMENTS, 1), path=path, sha256="1" * 64)
            writer.commit(key, [newer], {"version": "2"})
    said: list[str] = []
    for _ in range(2):
        with child.writer() as writer:
            import_given_rounds(store, child, writer, RECIPE, said.append)
    for number in (1, 2):
        (taken,) = child.entries(number, "judgments")
        assert [file.path for file in taken.files] == [f"runs/parent/rounds/{number:04}/{REJUDGMENTS}-1"]
    assert said[0].startswith(
        "run 'child' keeps to the judgments that it was made with: 'other' has judged rounds of run 'parent' anew "
        "since (1, 2); 'rondo fork parent@2 --name NEW --judgments other'"
    )
    fresh = store.create_run("newer", header(RECIPE) | given_header(parent, 2, "other"))
    with fresh.writer() as writer:
        import_given_rounds(store, fresh, writer, RECIPE, said.append)
    assert [file.path for file in fresh.files(2, "judgments")] == ["runs/parent/rounds/0002/newer"]
    assert len(said) == 2


def test_another_judge_than_the_one_that_judged_is_refused() -> None:
    """Else what was judged would be passed over in silence, and judged, and paid for, anew."""
    parent = judged_parent(Store.open("memory://"), [True, True])
    assert judged_recipe(parent, 1, "other", ["update.beta=0.2"]).judge.label == "other"
    with pytest.raises(ConfigError, match="--set changes the judge, and 'other' is what another one has said"):
        judged_recipe(parent, 1, "other", ["judge.target=21"])


def test_pruned_weights_are_refused_before_there_is_a_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(tmp_path)
    parent = judged_parent(store, [True, True, True])
    with parent.writer() as writer:
        writer.drop([stored(parent, 1, "checkpoint")], "pruned")
    monkeypatch.setattr("flows.run.start.check_inputs", lambda *_: None)  # the files here have no bytes
    with pytest.raises(DroppedFileError):
        fork("parent@2", "child", None, str(tmp_path), [], judgments="other", run=False, display=Display())
    assert "child" not in Store.open(tmp_path).run_names()
