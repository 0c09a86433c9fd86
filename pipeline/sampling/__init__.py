"""Sampling: one protocol, two engines behind it, each imported only when it is made."""

from importlib import import_module
from pathlib import Path

from pipeline.config import LoraConfig, SamplingConfig
from pipeline.config.sampling import Precision
from pipeline.sampling.base import (
    AdapterServer,
    Candidate,
    Progress,
    Sampler,
    Sampling,
    SamplingRequest,
    Sleepable,
    WeightReceiver,
    candidates_table,
    check_lengths,
    finish,
    reported,
)
from pipeline.sampling.environment import configure_environment, without_garbage_collection

__all__ = [
    "AdapterServer",
    "Candidate",
    "Progress",
    "Sampler",
    "Sampling",
    "SamplingRequest",
    "Sleepable",
    "WeightReceiver",
    "candidates_table",
    "check_lengths",
    "configure_environment",
    "finish",
    "import_engine",
    "make_sampler",
    "reported",
]


def import_engine(config: SamplingConfig) -> None:
    """Imports all that the recipe's engine needs, which takes seconds, while its weights are still being made."""
    modules = ["pipeline.sampling.transformers_engine"]
    if config.engine == "vllm":
        modules = ["pipeline.sampling.vllm_engine", "vllm.v1.engine.llm_engine", "vllm.v1.worker.gpu_worker"]
    with without_garbage_collection():
        for module in modules:
            import_module(module)


def make_sampler(
    config: SamplingConfig,
    directory: Path,
    *,
    device: str,
    threads: int,
    seed: int = 0,
    gpus: int = 1,
    precision: Precision = "float32",
    sleeps: bool = False,
    lora: LoraConfig | None = None,
) -> Sampler:
    """Makes the engine that the recipe names, with the weights of a checkpoint directory.

    Before vLLM, ``configure_environment`` must have been called in this process, and before torch was imported.

    Args:
        config: the recipe's sampling section.
        directory: what ``sampler_copy`` returned for the checkpoint.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        threads: CPU threads of this process; another number changes results in the last bits.
        seed: seed of the engine itself. Candidates have seeds of their own.
        gpus: GPUs that vLLM splits the model over.
        precision: what vLLM computes in.
        sleeps: whether it may be asked to lend its GPU's memory, as `Sleepable`; vLLM alone can.
        lora: the adapters that it is to serve beside these weights, as `AdapterServer`; vLLM alone can, and only if
            `vllm_lora.why_merged` has nothing against it.

    Raises:
        ConfigError: the directory is no checkpoint, or the context does not fit the model.
        EngineError: the engine cannot start.
    """
    with without_garbage_collection():
        if config.engine == "transformers":
            from pipeline.sampling.transformers_engine import TransformersSampler

            return TransformersSampler(directory, config, device=device, threads=threads)
        from pipeline.sampling.vllm_engine import VllmSampler

        return VllmSampler(
            directory,
            config,
            device=device,
            threads=threads,
            seed=seed,
            gpus=gpus,
            precision=precision,
            sleeps=sleeps,
            lora=lora,
        )
