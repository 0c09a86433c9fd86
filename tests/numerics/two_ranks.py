"""What two ranks do, each in a process that torchrun started: ``two_ranks.py DIRECTORY``.

Every case leaves what it found in ``DIRECTORY/<case>-<rank>.json``, and checkpoints beside it.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from numerics.rank_cases import CARRIED, CASES, LONG, LORA, SEED, SETTINGS, UNEVEN, built, preferences
from torch.distributed.tensor import DTensor

from pipeline.config import UpdateConfig
from pipeline.dpo.host_moments import HostAdamW
from pipeline.dpo.types import RoundFacts, UpdateResult
from pipeline.dpo.update import Update, run_update
from pipeline.errors import RondoError
from pipeline.model.distributed import World, shard
from pipeline.model.logprobs import sequence_logps
from pipeline.model.lora import Adapter
from pipeline.model.policy import load_weights, save_policy
from support.tiny import tiny_tokenizer

out = Path(sys.argv[1])
world = World.join("cpu")
references = json.loads((out / "references.json").read_text())
pairs = preferences("pairs", references)


def sharded(name: str = "llama", settings: UpdateConfig = SETTINGS, seed: int = 0) -> Any:
    model = built(name, seed)
    shard(model, world, precision=settings.precision)
    return model


def leave(case: str, found: Any) -> None:
    (out / f"{case}-{world.rank}.json").write_text(json.dumps(found))


def metrics(result: UpdateResult) -> dict[str, Any]:
    return {**asdict(result), "steps": [{**asdict(row), "seconds": 0} for row in result.steps]}


def save(model: Any, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    save_policy(model, tiny_tokenizer(), directory)
    return directory


def whole_updates() -> None:
    for case, (name, settings, _) in CASES.items():
        model = sharded(name, settings)
        leave(case, metrics(run_update(model, preferences(case, references), settings, seed=SEED)))
        save(model, out / case)


def interrupted_and_resumed() -> None:
    model = sharded()
    update = Update(model, pairs, LONG, seed=SEED)
    update.run(lambda row: update.save(out / "state of two") if row.step == 3 else None)
    save(model, out / "uninterrupted")
    for state in ("state of two", "state of one"):
        model = sharded(seed=5)
        update = Update(model, pairs, LONG, seed=SEED)
        update.load(out / state)
        leave(f"resumed from {state}", metrics(update.run()))
        save(model, out / f"resumed from {state}")


def moments_in_main_memory() -> None:
    """In parts that differ from rank to rank; from the start, and with a state that is loaded."""
    HostAdamW.part_bytes = (3_000, 10_000)[world.rank]
    parts, model = list[int](), sharded()
    update = Update(model, pairs, LONG, seed=SEED, facts=RoundFacts(host_moments=True))
    with parts_of_steps(parts):
        update.run(lambda row: update.save(out / "state of two, offload") if row.step == 3 else None)
    assert not spread_moments(update._optimizer)
    save(model, out / "offload")
    leave("offload", parts)
    model = sharded(seed=5)
    update = Update(model, pairs, LONG, seed=SEED, facts=RoundFacts(host_moments=True))
    update.load(out / "state of two")
    assert not spread_moments(update._optimizer)
    update.run()
    save(model, out / "offload, resumed")


def spread_moments(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The weights whose moments are spread as they are; the others' are this rank's pieces."""
    assert optimizer.state
    return [weight for weight, state in optimizer.state.items() if isinstance(state["exp_avg"], DTensor)]


@contextmanager
def parts_of_steps(parts: list[int]) -> Iterator[None]:
    """Writes down how many weights each call of AdamW takes, when those alone have moments that are spread."""
    step = torch.optim.AdamW.step

    def look(self: torch.optim.AdamW) -> None:
        step(self)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        assert {id(weight) for weight in weights} == {id(weight) for weight in spread_moments(self)}
        parts.append(len(weights))

    with patch.object(torch.optim.AdamW, "step", look):
        yield


def loaded() -> None:
    """The weights that one rank saved, put into a sharded model, and saved again."""
    for name in CARRIED:
        model = sharded(name, seed=5)
        load_weights(model, out / f"weights of one, {name}")
        save(model, out / f"weights again, {name}")


def adapter() -> None:
    """Trained, saved, emptied and loaded again."""
    model = built("llama")
    carried = Adapter(model, LORA, seed=SEED)
    shard(model, world)
    trained = run_update(model, pairs, UNEVEN, seed=SEED)
    (out / "adapter").mkdir(exist_ok=True)
    carried.save(tiny_tokenizer(), out / "adapter")
    world.wait()  # for the first rank to write
    carried.reset()
    empty = sequence_logps(model, pairs, 200)
    carried.load(out / "adapter")
    again = sequence_logps(model, trained.sample, UNEVEN.token_budget)
    leave("adapter", {"trained": trained.final_logps, "empty": empty, "loaded": again})


def errors() -> None:
    def at_fault(case: str, breaking: Callable[[Any], None], *, everywhere: bool = False) -> None:
        model = sharded()
        if everywhere or world.rank == 1:
            breaking(model)
        try:
            run_update(model, pairs, UNEVEN, seed=SEED)
        except RondoError as error:
            leave(case, [type(error).__name__, str(error)])

    def overflow(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * torch.inf)

    def no_memory(model: Any) -> None:
        def refuse(_module: Any, _inputs: Any) -> None:
            if torch.is_grad_enabled():
                raise torch.OutOfMemoryError("CUDA out of memory.")

        model.model.layers[1].register_forward_pre_hook(refuse)

    def lose(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * torch.nan if torch.is_grad_enabled() else output

    at_fault("loss", lambda model: model.model.norm.register_forward_hook(lose))
    at_fault("gradient", lambda model: model.model.layers[1].mlp.up_proj.register_forward_hook(overflow))
    at_fault("memory", no_memory, everywhere=True)
    at_fault("weights", lambda model: model.model.norm.weight.detach().to_local().fill_(torch.nan))
    wrong = [
        replace(group, reference_logps=[group.reference_logps[0] - 1, group.reference_logps[1]]) for group in pairs
    ]
    try:
        run_update(sharded(), wrong, SETTINGS, seed=SEED)
    except RondoError as error:
        leave("reference", [type(error).__name__, str(error)])


for part in (whole_updates, interrupted_and_resumed, moments_in_main_memory, loaded, adapter, errors):
    part()
world.wait()
os._exit(0)  # gloo's threads do not always outlive the interpreter in order
