"""The sampler's one engine: started with the first policy, and given the weights, or the adapter, of each later one."""

from pathlib import Path
from typing import Any

from flows.workers.base import Worker
from flows.workers.references import PolicyRef
from pipeline.config import LoraConfig, PretrainedPolicy
from pipeline.errors import UnsupportedModelError
from pipeline.model.gguf_files import find_gguf
from pipeline.sampling import AdapterServer, Sampler, make_sampler
from storage.tables.checkpoints import weights_digest


class SamplerEngine:
    """The engine, and the committed files that it is given.

    Args:
        worker: whose recipe and scratch directory these are.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.sampler: Sampler | None = None
        """None until the first policy."""
        self.tokenizer: Any = None
        self._base: str | None = None  # of the engine's own weights, if it serves adapters beside them

    def load(self, policy: PolicyRef) -> None:
        """Has the engine compute with a policy, which starts it if it is the first one.

        Raises:
            EngineError: sampling is in progress, or the engine cannot start, or does not take the weights.
            UnsupportedModelError: vLLM cannot serve the recipe's adapters.
        """
        if self.sampler is None:
            from pipeline.model.policy import load_tokenizer

            self._start(policy)
            self.tokenizer = load_tokenizer(self._worker.directory(policy.base or policy.files))
        elif self._base is None:
            self.sampler.load_weights(self._source(self._worker.whole(policy)))
        if self._base is not None:
            self._serve(policy)

    def check_adapters(self) -> None:
        """Refuses adapters as `SamplerWorker.check_adapters` says."""
        policy = self._worker.recipe.policy
        if not isinstance(policy, PretrainedPolicy) or find_gguf(policy.path) is not None:
            return  # a Llama whose modules the recipe names, or a file that is not opened twice
        from pipeline.model.policy import save_config

        self.served_adapters(save_config(policy.path, policy.revision, self._worker.scratch / "configuration"))

    def served_adapters(self, base: Path) -> LoraConfig | None:
        """Returns the adapters that the engine is to serve; None, and says so, if they are merged instead.

        Raises:
            UnsupportedModelError: vLLM cannot serve them, and the recipe wants nothing else.
        """
        from pipeline.sampling.vllm_lora import why_merged

        recipe = self._worker.recipe
        lora = recipe.update.lora
        assert lora is not None, "adapters are served if some are trained"
        if (reason := why_merged(base, lora, self._worker.device)) is None:
            return lora
        if recipe.adapter_serving == "adapter":
            raise UnsupportedModelError(f"sampling.lora is 'adapter', and {reason}: set it to merged")
        self._worker.progress(says=f"adapters are merged with their base, and all weights loaded each round: {reason}")
        return None

    def _start(self, policy: PolicyRef) -> None:
        """Starts the engine, with the policy's weights, or with its base alone if it is to serve adapters."""
        worker, recipe = self._worker, self._worker.recipe
        devices, precision = recipe.devices, recipe.sampler_precision
        assert precision != "auto", "a worker's recipe says what auto came to"
        lora = None
        if recipe.adapter_serving != "merged":
            base = policy.base or policy.files
            lora = self.served_adapters(worker.directory(base))
        self.sampler = make_sampler(
            recipe.sampling,
            self._source(worker.whole(policy) if lora is None else worker.directory(base)),
            device=devices.sampler,
            threads=devices.threads,
            gpus=recipe.gpus_per_engine,
            precision=precision,
            sleeps=recipe.sampler_sleeps,
            lora=lora,
        )
        self._base = None if lora is None else weights_digest(base)

    def _source(self, checkpoint: Path) -> Path:
        """Returns what the engine loads; that of transformers reads every checkpoint as it is saved."""
        from pipeline.model.sampler_copy import sampler_copy

        vllm = self._worker.recipe.sampling.engine == "vllm"
        return sampler_copy(checkpoint, self._worker.scratch / "sampler") if vllm else checkpoint

    def _serve(self, policy: PolicyRef) -> None:
        """Has the engine compute with a policy's adapter, and loads its base before if another one is in place."""
        assert isinstance(self.sampler, AdapterServer)
        base = policy.base or policy.files
        if self._base != (digest := weights_digest(base)):
            self._base = ""
            self.sampler.load_weights(self._source(self._worker.directory(base)))
            self._base = digest
        self.sampler.serve_adapter(self._worker.directory(policy.files) if policy.base else None)
