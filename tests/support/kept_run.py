"""A run with tables, weights and a shared warm start whose records agree with each other; no model, and quick."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import pyarrow as pa

from flows.analysis.pruning import prune_to
from flows.registry.verify_rules import RULES
from flows.run.fork_history import import_parent_rounds
from storage.log.manifest import FileRef, Key
from storage.log.run import Run
from storage.log.store import Store
from storage.log.writer import Writer
from storage.retention.prune import Pruning, create_fork
from storage.tables.checkpoints import find_shared, stage_directory, stage_shared, weights_digest
from storage.tables.shards import write_table
from storage.verify.verify import Progress, Verification
from storage.verify.verify import verify as verify_run

WARM_START = ("warm_starts", "0123456789abcdef")
Figures = Callable[..., Mapping[str, object]]
TABLES = ("metrics", "probe", "eval_candidates", "eval_judgments", "eval_logps", "judgments", "preferences")
STAGES = (*TABLES, "candidates", "checkpoint", "optimizer", "ema")
LAST = 4


def kept_run(store: Store, name: str = "kept", rounds: int = 4, metrics: Figures = dict, **header: object) -> Run:
    """A run with this many rounds after round 0.

    Args:
        metrics: what the entry of a round says beside its number and policy.
        header: fields of the run's header.
    """
    run = store.create_run(name, {"recipe": {"name": "kept"}, "parent": None, **header})
    with run.writer() as writer:
        add_rounds(store, run, writer, rounds, metrics)
    return run


def kept_fork(store: Store, parent: Run, round: int, name: str, rounds: int) -> Run:
    """A fork with this many rounds, those of its parent included."""
    run = create_fork(store, parent, round, name, {"recipe": {"name": "kept"}}, parent.files(round, "checkpoint"))
    with run.writer() as writer:
        import_parent_rounds(store, run, writer)
        add_rounds(store, run, writer, rounds)
    return run


def kept_with_fork(root: Path) -> Store:
    """A run of rounds 0 to ``LAST``, whose round 1 was pruned, and a fork of its round 3 with one round more."""
    store = Store.open(root)
    prune(store, kept_run(store, "kept", LAST), {2, 3})
    kept_fork(store, store.run("kept"), 3, "fork", LAST)
    with store.run("kept").writer():
        pass  # so that the last entries are none that matter
    return store


def verify(store: Store, name: str, progress: Progress | None = None) -> Verification:
    """The run, verified with what is known of rounds such as these."""
    return verify_run(store, name, RULES, progress)


def prune(store: Store, run: Run, keep: Collection[int]) -> Pruning:
    """The run without the weights of other rounds than these and those that are always kept."""
    return prune_to(store, run, keep)


def add_rounds(store: Store, run: Run, writer: Writer, last: int, metrics: Figures = dict) -> None:
    """The rounds that are missing, up to the last."""
    for number in range(len(run.finished), last + 1):
        before = run.entries(number - 1, "checkpoint")[-1].meta["policy"] if number else None
        if number == 0:
            add_table(store, run, writer, 0, "prompts")
        if number:
            for shard in (0, 1):
                add_table(store, run, writer, number, "candidates", {"policy": before}, shard)
        files = warm_start(store) if number == 0 else weights(store, run, number, "checkpoint")
        policy = weights_digest(files)
        if number:
            for stage in ("optimizer", "ema"):
                state = weights(store, run, number, stage)
                writer.commit(Key(number, stage), state, {"policy": weights_digest(state)} if stage == "ema" else None)
        writer.commit(Key(number, "checkpoint"), files, {"policy": policy} | ({"reference": before} if number else {}))
        for stage in TABLES:
            meta = {"policy": policy} if stage == "eval_candidates" else None
            add_table(store, run, writer, number, stage, meta)
        writer.finish_round(number, {"policy": policy, "round": number, **metrics(round=number)})


def add_table(
    store: Store, run: Run, writer: Writer, number: int, stage: str,
    meta: Mapping[str, object] | None = None, shard: int | None = None,
) -> None:  # fmt: skip
    """One small table as one commit."""
    table = pa.table({"prompt_id": [f"{stage} {number} {shard}", run.name], "score": [number / 2, 1.0]})
    key = Key(number, stage, shard)
    writer.commit(key, [write_table(store, run.name, number, stage, table, shard)], dict(meta or {}))


def weights(store: Store, run: Run, number: int, stage: str) -> tuple[FileRef, ...]:
    """A directory of three files, other ones in every run and round."""
    with stage_directory(store, run.name, number, stage) as staged:
        _fill(staged.path, f"{run.name} {number} {stage}")
    return staged.files


def warm_start(store: Store) -> tuple[FileRef, ...]:
    """The shared directory that round 0 of every run has."""
    found = find_shared(store, *WARM_START)
    if found is not None:
        return found
    with stage_shared(store, *WARM_START) as staged:
        _fill(staged.path, "warm start")
    return staged.files


def _fill(directory: Path, what: str) -> None:
    (directory / "model.safetensors").write_bytes(what.encode() * 5)
    (directory / "config.json").write_text(f'{{"of": "{what}"}}')
    (directory / "tokenizer.json").write_text(f'{{"tokens": "{what}"}}')
