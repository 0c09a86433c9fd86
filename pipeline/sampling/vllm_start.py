"""How a vLLM engine is started: what it is given, and what is checked before."""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from pipeline.config import LoraConfig, SamplingConfig
from pipeline.errors import EngineError, RondoError, UnsupportedModelError
from pipeline.model.checkpoint_files import Shapes
from pipeline.model.policy import Precision
from pipeline.packing.text_decoder import text_config
from pipeline.sampling.vllm_lora import engine_arguments

GIB = 2**30
# Tokens after which the engine hands out an unfinished answer: often enough for a progress display.
STREAM_INTERVAL = 16


def start_engine(
    directory: Path,
    config: SamplingConfig,
    *,
    context: int,
    shapes: Shapes,
    device: str,
    threads: int,
    seed: int,
    gpus: int,
    precision: Precision,
    sleeps: bool,
    transfers: bool,
    lora: LoraConfig | None = None,
) -> Any:
    """Starts an engine in this process; ``VllmSampler`` says what each argument is.

    Args:
        context: tokens of the longest sequence.
        shapes: of the weights in the directory.
        transfers: whether it is to take weights out of shared memory; it has to be one process then.

    Raises:
        EngineError: the engine cannot start.
        UnsupportedModelError: vLLM's CPU attention has no kernel for heads of this width.
    """
    arguments: dict[str, Any] = {
        "model": str(directory),
        "dtype": precision,
        "max_model_len": context,
        "max_num_seqs": config.max_sequences,
        "max_num_batched_tokens": max(2048, context, config.max_sequences),
        "kv_cache_memory_bytes": int(config.cache_gib * GIB / gpus),  # of each GPU
        "tensor_parallel_size": gpus,
        "enforce_eager": device == "cpu",
        # A seeded request whose prompt is cut into chunks kills the CPU engine: to take back the number drawn
        # for an unfinished prompt it rewinds the generator, and "CPU Generator does not use offset".
        "enable_chunked_prefill": device != "cpu",
        # Ids go in and come out: no tokenizer, and none of the checkpoint's sampling defaults.
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "stream_interval": STREAM_INTERVAL,
        "use_tqdm_on_load": False,
        "disable_log_stats": True,
        "seed": seed,
    }
    if device != "cpu":
        arguments["gpu_memory_utilization"] = _memory_share(shapes, precision, device, config.cache_gib, gpus)
        arguments["enable_sleep_mode"] = sleeps
    if transfers:
        from vllm.config import WeightTransferConfig

        from pipeline.sampling.vllm_transfer import BACKEND

        arguments["weight_transfer_config"] = WeightTransferConfig(backend=BACKEND)
    if lora is not None:
        arguments |= engine_arguments(directory, lora)
    if ":" in device:
        arguments["device_ids"] = [int(name.partition(":")[2]) for name in device.split(",")]
    try:
        if device == "cpu":
            _check_head_width(directory)
        return _start(arguments, threads)
    except RondoError:
        raise
    except Exception as error:
        raise EngineError(
            f"vLLM cannot start on '{directory}' ({reason(error)}): check sampling.cache_gib "
            "against the free memory, and that vLLM supports this architecture"
        ) from error


def forget_expert_kernels(model: Any) -> None:
    """Has vLLM's CPU build pack the experts of a mixture anew with the next weights.

    Version 0.32 packs them when their kernel is made, and leaves that out when new weights come for a kernel that is
    there: log-probabilities are then off by nats. Without a kernel it makes one, and packs.
    """
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if method is not None and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def reason(error: BaseException) -> str:
    """Names an error of vLLM in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Raises EngineError if the engine fails here: it cannot be used after that.

    Whoever holds it ends it, and with it what it has of the GPU.
    """
    try:
        yield
    except Exception as error:
        raise EngineError(f"vLLM cannot {what} ({reason(error)}): start a new sampler") from error


def _memory_share(shapes: Shapes, precision: Precision, device: str, cache_gib: float, gpus: int) -> float:
    """Computes the share of the GPU that vLLM wants free when it starts: weights, cache and a tenth for activations.

    The cache's size is given, so that this decides nothing else. With vLLM's own 0.92 the engine would not start beside
    an update on the same GPU.
    """
    weights: int = getattr(torch, precision).itemsize * sum(map(prod, shapes.values()))
    total: int = torch.cuda.get_device_properties(device.partition(",")[0]).total_memory
    return min(0.95, (weights + cache_gib * GIB) / gpus / total + 0.1)


def _start(arguments: dict[str, Any], threads: int) -> Any:
    # OMP_NUM_THREADS counts only if it is set before torch is imported, and vLLM forbids a later change.
    torch.set_num_threads(threads)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine.from_engine_args(EngineArgs(**arguments))


def _check_head_width(directory: Path) -> None:
    """Refuses heads of a width that vLLM's CPU attention lacks: it would start, and fail on the first prompt."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    config = text_config(AutoConfig.from_pretrained(directory))
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    supported = CPUAttentionBackend.get_supported_head_sizes()
    if width not in supported:
        raise UnsupportedModelError(
            f"the attention heads of {directory} are {width} wide, and vLLM on a CPU takes {supported}: "
            "choose hidden_size / heads among these, or sampling.engine transformers"
        )
