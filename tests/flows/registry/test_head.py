"""Where a round starts, by what the gates of the rounds before it have said."""

from collections.abc import Sequence
from typing import Any

from flows.analysis.pruning import plan
from flows.registry.catalog import ended_by_patience, gate_ends
from flows.registry.head import head_of, sampler_of, start_of
from flows.registry.resume_check import inputs_of_next_round, needed_after
from storage.log.manifest import FileRef, Key
from storage.log.run import Run
from storage.log.store import Store
from support.contexts import round_context


def rounds(verdicts: Sequence[bool | None]) -> tuple[Store, Run]:
    """A run whose rounds passed, failed, or had no gate; each has a checkpoint, and other files of one byte."""
    with round_context() as context:
        for number, passed in enumerate(verdicts):
            for stage in ("checkpoint", "probe", "eval_candidates", "eval_judgments"):
                file = FileRef(f"runs/r/rounds/{number:04}/{stage}", 1, "0" * 64, 1)
                context.writer.commit(Key(number, stage), [file], {"policy": f"{number}" * 64})
            gate: dict[str, Any] = {} if passed is None else {"gate": {"passed": passed, "measures": [], "since": 0}}
            context.writer.finish_round(number, gate)
        return context.store, context.run


def test_a_round_starts_from_the_newest_that_passed() -> None:
    _, run = rounds([True, True, False, False, True, False])
    assert [start_of(run, number) for number in range(7)] == [0, 0, 1, 1, 1, 4, 4]
    assert head_of(run) == 4
    assert start_of(run, 9) == 8, "a round that is not finished has not failed"


def test_without_a_gate_it_is_the_round_before() -> None:
    _, run = rounds([None, None, None])
    assert [start_of(run, number) for number in range(4)] == [0, 0, 1, 2]
    assert [sampler_of(run, number, 1) for number in range(4)] == [0, 0, 0, 1]


def test_with_staleness_the_start_of_the_start_samples() -> None:
    """A fork may go on with staleness from a run that had a gate: rounds that failed are passed over twice."""
    _, run = rounds([True, True, False, True, False])
    assert sampler_of(run, 5, 1) == 1, "round 5 starts from 3, which started from 1"


def test_what_the_next_round_reads_is_of_the_last_good_one() -> None:
    _, run = rounds([True, True, False])
    read = {file.path.split("/")[3] for file in inputs_of_next_round(run, 2, 0)}
    assert read == {"0000", "0001"}
    assert needed_after(run, 2) == inputs_of_next_round(run, 1, 0)


def test_the_next_gate_reads_what_the_best_policies_were_judged_anew_on() -> None:
    """Round 3 began to measure otherwise: its gate has the reward of the best, round 1 or 0, judged by itself."""
    for best, read in ((1, "baseline_judgments"), (0, "initial_judgments"), (3, None)):
        with round_context() as context:
            for number in range(4):
                stages = ["checkpoint", "probe", "eval_judgments"]
                if number == 3:
                    stages += [
                        "baseline_judgments",
                        "initial_judgments",
                        "gate_baseline_judgments",
                        "gate_baseline_tasks",
                    ]
                for stage in stages:
                    file = FileRef(f"runs/r/rounds/{number:04}/{stage}", 1, "0" * 64, 1)
                    context.writer.commit(Key(number, stage), [file], {"policy": f"{number}" * 64})
                measures = [{"name": "reward", "next_best": best}]
                context.writer.finish_round(number, {"gate": {"passed": True, "measures": measures, "since": 3}})
            files = {file.path for file in inputs_of_next_round(context.run, 3, 0) if "/0003/" in file.path}
        names = {"checkpoint", "probe", "eval_judgments", "gate_baseline_judgments", "gate_baseline_tasks", read} - {
            None
        }
        assert files == {f"runs/r/rounds/0003/{name}" for name in names}


def test_a_fork_is_not_ended_by_a_round_of_its_parent() -> None:
    """Rounds 0 and 1 are the parent's, whose patience ended with round 1; round 2 ends the fork itself."""
    store = Store.open("memory://")
    for name, parent in (("parent", None), ("fork", {"run": "parent", "round": 1})):
        run = store.create_run(name, {"recipe": {"name": "kept"}, "parent": parent})
        with run.writer() as writer:
            for number, ends in enumerate((None, "patience")):
                writer.finish_round(number, {"round": number, "gate": {"passed": True, "ends": ends}})
            assert gate_ends(run) == (None if parent else "patience")
            assert ended_by_patience(run) == (parent is None)
            writer.finish_round(2, {"round": 2, "gate": {"passed": False, "ends": "failures"}})
        assert gate_ends(run) == "failures"


def test_pruning_keeps_the_last_good_weights() -> None:
    store, run = rounds([True, True, True, False, False])
    taken = {removal.round for removal in plan(store, run, []).removals}
    assert taken == {1, 3}, "round 0, the newest, and that from which the next one starts stay"
