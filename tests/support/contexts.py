"""The context of a round over a store in memory: a real log, a real table of prompts, and what else is given."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

from flows.host.progress import Display
from flows.registry.recipes import parse_recipe
from flows.registry.resume import header
from flows.round.context import RoundContext
from flows.round.policies import Policies
from pipeline.records import PROMPTS, to_table
from storage.log.manifest import Key
from storage.log.store import Store
from storage.tables.shards import write_table
from support.recipes import TINY


@contextmanager
def round_context(changes: Sequence[str] = (), prompts: int = 0, **parts: Any) -> Iterator[RoundContext]:
    """The context of run ``r``, which is open for writing while the block runs.

    Args:
        changes: of the tiny recipe.
        prompts: training prompts that the run has.
        parts: of the context, in place of nothing.
    """
    store, recipe = Store.open("memory://"), parse_recipe(TINY, changes)
    run = store.create_run("r", header(recipe))
    nothing: dict[str, Any] = dict.fromkeys(("workers", "control", "monitors"), SimpleNamespace()) | {
        "display": Display()
    }
    with run.writer() as writer:
        if prompts:
            rows = [
                {
                    "prompt_id": f"p{row}", "text": f"{row}", "messages": None, "token_ids": [row], "source": "test",
                    "reference_answer": None, "split": "train",
                }
                for row in range(prompts)
            ]  # fmt: skip
            file = write_table(store, "r", 0, "prompts", to_table(rows, PROMPTS))
            writer.commit(Key(0, "prompts"), [file])
        context = RoundContext(store, run, writer, recipe, policies=Policies(run, recipe), **cast(Any, nothing | parts))
        yield context
