"""The environment that vLLM needs. Nothing heavy is imported: this has to run before anything heavy is."""

import logging
import os
import sys

from pipeline.errors import EngineError


def configure_environment(device: str, threads: int) -> None:
    """Set what vLLM and the thread pools read once, when they are imported. A worker's first act.

    Raises:
        EngineError: vLLM is imported already, so that most of them would have no effect.
    """
    if "vllm" in sys.modules:
        raise EngineError(
            "vLLM was imported before its environment was set: call configure_environment first in a process"
        )
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    if device == "cpu":
        # Without the first, early batches wait for a compiler.
        settings |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    elif ":" in device:
        settings["CUDA_VISIBLE_DEVICES"] = device.split(":")[1]
    os.environ.update(settings)
    # Some messages come before vLLM has read its logging level.
    logging.getLogger("vllm").setLevel(logging.ERROR)
