"""What a round is compared with: bare calls to the engine and to the update, each in a process of its own.

    python round_contestants.py engine '{"directory": ...}'

serves one request a line, in JSON, and answers each with a line; `Contestant` is the other side of it.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.round_processes import high_water

Server = Callable[..., Callable[..., Any]]
"""Takes what a contestant is made of, and returns what answers its requests."""


class Contestant:
    """A contestant that waits in its process until it is asked."""

    def __init__(self, file: str, name: str, environment: Mapping[str, str], **arguments: Any) -> None:
        self._log = Path(arguments.pop("log"))
        self._name = name
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, file, name, json.dumps(arguments)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=dict(environment),
            )  # fmt: skip

    def ask(self, **request: Any) -> Any:
        """The answer to a request; it ends the benchmark where the contestant has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the contestant '{self._name}' ended: see {self._log}")
        return json.loads(line)

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(servers: Mapping[str, Server]) -> None:
    """The contestant's side: a process that has imported this module as its program."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    server = servers[sys.argv[1]](**json.loads(sys.argv[2]))
    for line in sys.stdin:
        answers.write(json.dumps(server(**json.loads(line))) + "\n")


@contextlib.contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Fills in the seconds of the block, those of the processor, and the process's largest memory so far in bytes."""
    found: dict[str, Any] = {}
    started, processor = time.perf_counter(), time.process_time()
    yield found
    found["seconds"], found["processor"] = time.perf_counter() - started, time.process_time() - processor
    found["peak"] = high_water(os.getpid())


def engine(directory: str, recipe: Mapping[str, Any], threads: int) -> Callable[..., Any]:
    """A bare ``LLM``, set up as our sampler's engine is, but for what that needs to stream.

    It is asked for prompts, each with the seed of its first candidate, and says how long ``generate`` took. That
    returns ids and log-probabilities; no text is made of them, and nothing is written.
    """
    from pipeline.recipe import Recipe
    from pipeline.sampling import configure_environment
    from pipeline.sampling.base import stop_tokens

    configure_environment("cpu", threads)
    import torch
    from vllm import LLM, SamplingParams

    torch.set_num_threads(threads)
    sampling = Recipe.model_validate(recipe).sampling
    stop = sorted(stop_tokens(Path(directory)))
    llm = LLM(
        model=directory, dtype="float32", enforce_eager=True, max_model_len=sampling.context,
        max_num_seqs=sampling.max_sequences,
        max_num_batched_tokens=2048, kv_cache_memory_bytes=int(sampling.cache_gib * 2**30), skip_tokenizer_init=True,
        generation_config="vllm", enable_chunked_prefill=False, disable_log_stats=True,
    )  # fmt: skip

    def generate(prompts: list[dict[str, Any]]) -> dict[str, Any]:
        llm.reset_prefix_cache()
        inputs = [{"prompt_token_ids": row["token_ids"]} for row in prompts for _ in range(sampling.candidates)]
        params = [
            SamplingParams(
                temperature=sampling.temperature, top_p=sampling.top_p, max_tokens=sampling.max_tokens,
                seed=row["seed"] + k, logprobs=0, stop_token_ids=stop, detokenize=False,
            )
            for row in prompts
            for k in range(sampling.candidates)
        ]  # fmt: skip
        with measured() as found:
            outputs = llm.generate(inputs, params, use_tqdm=False)
        return {**found, "tokens": sum(len(output.outputs[0].token_ids) for output in outputs)}

    return generate


def update(root: str, threads: int) -> Callable[..., Any]:
    """A bare ``run_update``, asked for a round of a run; it says how long that took on the round's own preferences.

    Reading the tables and the policy that the round started from is not counted. A trial takes the first batch alone.
    """
    import tempfile

    import torch

    from flows.registry.resume import recipe_of
    from flows.workers.preference_groups import preference_groups
    from pipeline.dpo.update import RoundFacts, run_update
    from pipeline.model.policy import load_policy
    from pipeline.records import prompt_seed
    from storage.log.store import Store
    from storage.tables.checkpoints import local_directory
    from storage.tables.shards import read_table

    torch.set_num_threads(threads)
    store = Store.open(root)

    def run(run: str, round: int, trial: bool = False) -> dict[str, Any]:
        found = store.run(run)
        recipe = recipe_of(found)
        tables = [
            read_table(store, found.files(number, stage))
            for number, stage in ((0, "prompts"), (round, "candidates"), (round, "preferences"))
        ]
        groups = preference_groups(*tables)[: recipe.update.batch_size if trial else None]
        with tempfile.TemporaryDirectory() as scratch:
            directory = local_directory(store, found.files(round - 1, "checkpoint"), Path(scratch))
            model, _ = load_policy(directory, device="cpu")
        facts = RoundFacts(round=round, rounds=recipe.rounds)
        seed = prompt_seed(recipe.seed, round, "round")
        with measured() as found:
            result = run_update(model, groups, recipe.update, seed=seed, facts=facts)
        return {**found, "preferences": len(groups), "last_loss": result.steps[-1].loss}

    return run


if __name__ == "__main__":
    serve({"engine": engine, "update": update})
