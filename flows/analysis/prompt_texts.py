"""Prompts as people read them: the question without the marks of a chat template, or the whole conversation."""

from collections.abc import Collection, Sequence

from pipeline.data.conversations import messages_of, question, written_out
from storage.log.run import Run
from storage.log.store import Store
from storage.queries.sql import Source, ask

_SQL = "SELECT prompt_id, text, messages FROM prompts WHERE list_contains($ids, prompt_id)"


def prompt_texts(store: Store, runs: Sequence[Run], ids: Collection[str], *, full: bool) -> dict[str, str]:
    """Returns what people read of these prompts, by their ids; a prompt that is no conversation is its text.

    Args:
        runs: whose prompts they are.
        full: the whole conversation, in place of what it asks at its end.
    """
    found = {}
    for run in runs:
        for row in ask(store, run, _SQL, [Source("prompts")], {"ids": sorted(ids)}).to_pylist():
            messages = messages_of(row["messages"])
            shown = row["text"] if messages is None else written_out(messages) if full else question(messages)
            found[row["prompt_id"]] = shown
    return found
