"""A run whose answers are judged by ``held_judge``, shard by shard, as the judge's worker is asked to."""

from pathlib import Path
from typing import Any

from pipeline.records import CANDIDATES, PROMPTS, to_table
from storage.log.store import Store
from storage.tables.shards import write_table
from support.recipes import TINY


class HeldRun:
    """The run, and what its judge's worker is given.

    Attributes:
        place: where the judge notes what it is given, and is told to wait.
        arguments: what the worker's constructor takes, but for its scratch directory.
    """

    def __init__(self, directory: Path) -> None:
        self.place = directory / "place"
        self.place.mkdir()
        self.store = Store.open(directory / "root")
        self.run = self.store.create_run("r", {})
        judge = {"kind": "python", "function": "support.held_judge:length", "options": {"place": str(self.place)}}
        self.arguments = {"root": self.store.root, "run": "r", "recipe": {**TINY, "judge": judge}}
        prompt = {
            "prompt_id": "p", "text": "t", "messages": None, "token_ids": [1], "source": "test",
            "reference_answer": None, "split": "train",
        }  # fmt: skip
        self._prompts = write_table(self.store, "r", 0, "prompts", to_table([prompt], PROMPTS))

    def shard(self, number: int, prompt: str = "p") -> dict[str, Any]:
        """The arguments of a call that judges one answer, ``shard-N``."""
        row = {
            "prompt_id": prompt, "candidate": 0, "token_ids": [1], "text": f"shard-{number}", "logprobs": [-1.0],
            "finish_reason": "stop", "seed": 1, "policy": "p",
        }  # fmt: skip
        candidates = write_table(self.store, "r", 1, "candidates", to_table([row], CANDIDATES), number)
        return {
            "prompts": [self._prompts.to_json()], "candidates": candidates.to_json(), "round": 1,
            "stage": "judgments", "shard": number, "judges": [0],
        }  # fmt: skip

    def notes(self) -> list[tuple[str, int, int, int]]:
        """Who has been given what: answer, pids of the worker, of its parent, and of its node; in order of time."""
        found = sorted((path.name.split() for path in self.place.glob("given *")), key=lambda note: int(note[5]))
        return [(answer, int(pid), int(parent), int(node)) for _, answer, pid, parent, node, _ in found]
