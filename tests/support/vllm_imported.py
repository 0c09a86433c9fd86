"""Imports what an engine of vLLM needs, once for all processes that are forked from this one. It starts no thread."""

from pipeline.sampling.environment import configure_environment, without_garbage_collection

configure_environment("cpu", 1)
with without_garbage_collection():
    import transformers.models.llama.modeling_llama  # noqa: F401
    import vllm.engine.arg_utils
    import vllm.model_executor.models.llama
    import vllm.v1.engine.core
    import vllm.v1.engine.llm_engine
    import vllm.v1.worker.cpu_model_runner
    import vllm.v1.worker.cpu_worker  # noqa: F401

    import support.sampler_contract  # noqa: F401
