"""The checkpoint of round 0: a warm start, trained once for its configuration, or a pretrained policy."""

import time
from dataclasses import asdict
from typing import Any

from flows.workers.base import Worker
from pipeline.config import PretrainedPolicy, WarmStartPolicy
from pipeline.model.gguf_files import find_gguf
from storage.log.manifest import FileRef
from storage.tables import checkpoints

DEQUANTISED = "dequantised"
"""Directory of the store's shared cache for checkpoints that are made of GGUF files."""


def initial_policy(worker: Worker) -> tuple[list[FileRef], dict[str, Any]]:
    """Makes the checkpoint, and returns its files with what its entry keeps.

    Raises:
        ConfigError: the policy cannot be loaded, or the recipe's context does not fit it.
        UnsupportedModelError: it cannot be updated here, or not by the recipe's engine.
    """
    recipe, config = worker.recipe, worker.recipe.policy
    if not isinstance(config, PretrainedPolicy):
        return _warm_start(worker, config)
    import torch

    from pipeline.model.check import check_before_work
    from pipeline.model.checkpoint_files import source_dtype
    from pipeline.model.policy import choose_context, load_policy, save_policy
    from pipeline.sampling.check import check_engine
    from pipeline.sampling.thoughts import thought_marks

    source, files = pretrained_source(worker, config)
    asked = recipe.checkpoint_dtype
    model, tokenizer = load_policy(source, device="cpu", revision=config.revision)
    context = choose_context(source, recipe.sampling.context, revision=config.revision)
    untried = check_before_work(model, context, recipe.update.token_budget)
    check_engine(recipe.sampling.engine, model, context)
    if files is None:
        dtype = source_dtype(source, config.revision) if asked == "source" else getattr(torch, asked)
        with checkpoints.stage_directory(worker.store, worker.run, 0, "checkpoint") as staged:
            save_policy(model, tokenizer, staged.path, dtype=dtype)
        files = staged.files
    marks = thought_marks(tokenizer, recipe.sampling.thought)
    return list(files), {
        "source": config.path,
        **({"untried_lengths": untried} if untried else {}),
        **({"thought": marks.model_dump(mode="json")} if marks else {}),
    }


def pretrained_source(worker: Worker, config: PretrainedPolicy) -> tuple[str, tuple[FileRef, ...] | None]:
    """Returns where the policy is loaded from; also its files if runs share them, as those made of a GGUF file."""
    file = find_gguf(config.path)
    if file is None:
        return config.path, None
    import torch

    from pipeline.model.gguf import dequantise, gguf_digest

    dtype = torch.bfloat16 if worker.recipe.checkpoint_dtype == "bfloat16" else torch.float32
    digest = gguf_digest(file, dtype)
    files = checkpoints.find_shared(worker.store, DEQUANTISED, digest)
    if files is None:
        worker.progress(notice=f"dequantising {file.name}: once, about half a minute for 100 million weights")
        with checkpoints.stage_shared(worker.store, DEQUANTISED, digest) as staged:
            dequantise(file, staged.path, dtype=dtype)
        files = staged.files
    return str(worker.directory(files)), files


def _warm_start(worker: Worker, config: WarmStartPolicy) -> tuple[list[FileRef], dict[str, Any]]:
    from pipeline.model.warm_start import train_warm_start, warm_start_digest

    devices = worker.recipe.devices
    digest = warm_start_digest(config, threads=devices.threads, device=devices.trainer)
    cached = checkpoints.find_shared(worker.store, "warm_starts", digest)
    if cached is not None:
        return list(cached), {"source": f"warm start {digest}", "cached": True}
    started = time.perf_counter()

    def on_step(step: int, loss: float) -> None:
        worker.progress(done=step, total=config.steps, loss=loss, seconds=time.perf_counter() - started)

    with checkpoints.stage_shared(worker.store, "warm_starts", digest) as staged:
        report = train_warm_start(config, staged.path, threads=devices.threads, device=devices.trainer, on_step=on_step)
    return list(staged.files), {"source": f"warm start {digest}", "cached": False, **asdict(report)}
