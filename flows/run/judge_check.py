"""Whether the judges that a recipe brings along can be loaded: asked of a process that imports little else.

    python -m flows.run.judge_check '[{"kind": "python", "function": "mine:score"}]'

The judges' worker says the same, but is there only when Prefect is loaded, which takes seconds. The command itself does
not import such a judge: it may bring torch, or start threads, and would stay for as long as the run lasts. The process
finds modules where the worker does.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pydantic import TypeAdapter

from flows.host.processes import kill_session
from pipeline.errors import JudgeError
from pipeline.judges import AnyJudge, make_judge
from pipeline.judges.json_schema import JsonSchemaConfig
from pipeline.judges.python_function import PythonConfig
from pipeline.recipe import Recipe

_OWN = (PythonConfig, JsonSchemaConfig)
"""Judges of which a recipe writes more than settings, and which are quick to load."""
PATIENCE_SECONDS = 3.0
"""For a module that takes longer to import, the run does not wait: its worker will tell."""


class JudgeCheck:
    """A process that loads judges; None if there are none to load."""

    def __init__(self, process: "subprocess.Popen[str] | None") -> None:
        self._process = process

    def wait(self) -> None:
        """Waits until the judges are loaded, if that does not take long.

        Raises:
            JudgeError: one cannot be loaded.
        """
        if self._process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            if sentence := self._process.communicate(timeout=PATIENCE_SECONDS)[0]:
                raise JudgeError(sentence)


@contextmanager
def checking_judges(recipe: Recipe) -> Iterator[JudgeCheck]:
    """Has the judges loaded beside what the block does. Replicas find their modules where they are placed."""
    own = [part.model_dump(mode="json") for part in recipe.all_judge_parts if isinstance(part, _OWN)]
    if not own or recipe.cluster.judge.replicas:
        yield JudgeCheck(None)
        return
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.run.judge_check", json.dumps(own)], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True, text=True, encoding="utf-8",
    )  # fmt: skip
    try:
        yield JudgeCheck(process)
    finally:
        kill_session(process.pid)
        if process.stdout is not None:
            process.stdout.close()  # unread: what a module has started may live on, and hold the other end
        process.wait()


def main() -> None:
    """Loads the judges that the argument describes, and prints what is wrong with the first that cannot be."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)  # for what their modules print
    # A forked child that outlives this process must not hold the answer's pipe open.
    os.register_at_fork(after_in_child=lambda: os.dup2(1, answer.fileno()))
    try:
        for config in TypeAdapter(list[AnyJudge]).validate_json(sys.argv[1]):
            make_judge(config)
    except JudgeError as error:
        answer.write(str(error))
    answer.close()
    os._exit(0)  # whatever threads they have started


if __name__ == "__main__":
    main()
