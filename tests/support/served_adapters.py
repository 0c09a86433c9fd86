"""Adapters that vLLM serves beside their base, against peft's own sum and against the merged weights.

    python -m support.served_adapters TYPE DIRECTORY        forked, see ``support.vllm_imported``

A sampler worker is given a base, adapters of it, another base with an adapter of its own, and the first ones again, as
in a run, in a fork, and when a baseline is sampled. Each probe is peft's; a wrong value is an AssertionError.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import PeftModel

from flows.workers import sampler as sampler_worker
from flows.workers.references import PolicyRef
from flows.workers.sampler import SamplerWorker
from pipeline.config import LoraConfig
from pipeline.errors import ConfigError, EngineError, UnsupportedModelError
from pipeline.model.lora import Adapter, merge
from pipeline.model.policy import load_policy
from pipeline.model.sampler_copy import sampler_copy
from pipeline.recipe import Recipe
from pipeline.records import PROBE, to_table
from pipeline.sampling import AdapterServer, SamplingRequest, Sleepable, finish
from pipeline.sampling.vllm_lora import why_merged
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory, weights_digest
from storage.tables.shards import write_table
from support.engine_of_type import SEQUENCES, SHAPE, assert_close, configurations
from support.recipes import TINY
from support.tiny import tiny_tokenizer

LORA = LoraConfig(rank=4, alpha=8)


def kinds() -> dict[str, Any]:
    """The types that are tried, by name."""
    return {**configurations(), "llama": lambda: hf.LlamaConfig(**SHAPE, tie_word_embeddings=True)}


class Bench:
    """A store with bases and adapters, and what transformers and peft say of them."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind, self.directory = kind, directory
        self.store = Store.open(directory / "root")
        self.store.create_run("r", {})

    def base(self, seed: int) -> PolicyRef:
        """A committed policy with all its weights."""
        with stage_directory(self.store, "r", 0, "checkpoint") as staged:
            torch.manual_seed(seed)
            hf.AutoModelForCausalLM.from_config(kinds()[self.kind]()).save_pretrained(staged.path)
            tiny_tokenizer(96).save_pretrained(staged.path)
        return self.ref(staged.files, self.by_peft(staged.path, None))

    def adapter(self, base: PolicyRef, seed: int, lora: LoraConfig = LORA) -> PolicyRef:
        """A committed adapter of a base."""
        model, tokenizer = load_policy(self.local(base), device="cpu")
        adapter = Adapter(model, lora, seed=seed)
        torch.manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
        with stage_directory(self.store, "r", 1, "checkpoint") as staged:
            adapter.save(tokenizer, staged.path)
        return replace(self.ref(staged.files, self.by_peft(self.local(base), staged.path)), base=base.files)

    def ref(self, files: Any, logps: list[list[float]]) -> PolicyRef:
        rows = [
            {"prompt_token_ids": prompt, "token_ids": answer, "logp": sum(each), "previous_logp": None}
            for (prompt, answer), each in zip(SEQUENCES, logps, strict=True)
        ]
        return PolicyRef(weights_digest(files), files, write_table(self.store, "r", 0, "probe", to_table(rows, PROBE)))

    def local(self, policy: PolicyRef) -> Path:
        return Path(self.store.root) / Path(policy.files[0].path).parent

    def by_peft(self, base: Path, adapter: Path | None) -> list[list[float]]:
        """Log-probabilities of each answer's tokens by transformers and peft alone."""
        model = hf.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager", dtype="float32").eval()
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter)
        found = []
        for prompt, answer in SEQUENCES:
            ids = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                logps = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(logps.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist())
        return found

    def expected(self, policy: PolicyRef) -> list[list[float]]:
        if not policy.base:
            return self.by_peft(self.local(policy), None)
        return self.by_peft(self.local(replace(policy, files=policy.base)), self.local(policy))


def main() -> None:
    """Compares every policy that the worker takes, and says what it refuses."""
    kind, directory = sys.argv[1], Path(sys.argv[2])
    bench = Bench(kind, directory)
    first, other = bench.base(0), bench.base(1)
    adapters = [bench.adapter(first, seed) for seed in (2, 3)]
    foreign = bench.adapter(other, 4)
    worker = make_worker(bench, "adapter")
    for policy in (first, *adapters, first, adapters[0], other, foreign, first, adapters[1]):
        drift = worker.use(policy)
        assert drift.source == "checkpoint"
        assert worker.wanted_weights(first) is None, "weights do not come out of the trainer's memory"
        engine = worker._engine.sampler
        assert engine is not None
        assert_close(engine.score(SEQUENCES), bench.expected(policy))
    assert isinstance(engine, Sleepable)
    engine.sleep(keeps_weights=False)  # the base is kept, as nobody would load it again
    assert_close(engine.score(SEQUENCES), bench.expected(adapters[1]))
    for candidate in finish(engine.sample([SamplingRequest("p", [5, 6, 7], 0)], worker.recipe.sampling)):
        assert_close([candidate.logprobs], engine.score([([5, 6, 7], candidate.token_ids)]))
    check_refusals(bench, worker, first)
    # The same weights merged, in the same engine.
    merged = merge(bench.local(first), bench.local(adapters[1]), directory / "merged")
    engine.load_weights(sampler_copy(merged, directory / "copy"))
    assert_close(engine.score(SEQUENCES), bench.expected(adapters[1]))


def make_worker(bench: Bench, lora: str) -> SamplerWorker:
    """A sampler of the run; its process has imported vLLM already."""
    sampler_worker.configure_environment = lambda *_: None  # type: ignore[assignment]
    sampling = {**TINY["sampling"], "engine": "vllm", "cache_gib": 0.1, "context": 48, "lora": lora, "max_tokens": 8}
    recipe = Recipe.model_validate({
        **TINY, "sampling": sampling, "update": {**TINY["update"], "lora": LORA.model_dump()},
    })  # fmt: skip
    scratch = bench.directory / "scratch"
    scratch.mkdir()
    return SamplerWorker(root=bench.store.root, run="r", recipe=recipe.model_dump(mode="json"), scratch=str(scratch))


def check_refusals(bench: Bench, worker: SamplerWorker, base: PolicyRef) -> None:
    """What cannot be served is refused by name, and the engine goes on; with auto on a GPU that is said, and merged."""
    engine = worker._engine.sampler
    assert isinstance(engine, AdapterServer)
    before = engine.score(SEQUENCES)
    sampling = engine.sample([SamplingRequest("p", [5, 6, 7], 0)], worker.recipe.sampling)
    next(sampling)
    with pytest.raises(EngineError, match="while it samples"):
        engine.serve_adapter(None)
    sampling.close()
    large = bench.adapter(base, 5, LoraConfig(rank=6, alpha=8))
    with pytest.raises(ConfigError, match=r"has rank 6, and update\.lora\.rank is 4"):
        engine.serve_adapter(bench.local(large))
    engine.serve_adapter(None)
    assert_close(engine.score(SEQUENCES), bench.expected(base))
    worker._policy = None
    assert before != engine.score(SEQUENCES)
    gpt2 = Bench("gpt2", bench.directory / "gpt2")
    of_gpt2 = gpt2.local(gpt2.base(0))
    local = bench.local(base)
    untied = Bench("mixtral", bench.directory / "untied")
    mixture = untied.local(untied.base(0))
    for reason, where, lora, device in (
        ("a rank up to 512, and update.lora.rank is 513", local, LoraConfig(rank=513), "cuda"),
        ("serves no adapters of a GPT2LMHeadModel", of_gpt2, LORA, "cuda"),
        ("adapters of the output head, and", mixture, LoraConfig(target_modules=("q_proj", "lm_head")), "cuda"),
        ("adapters of the embeddings, and", mixture, LoraConfig(target_modules=("embed_tokens",)), "cuda"),
        ("on a CPU serves no adapters of a mixture", mixture, LORA, "cpu"),
    ):
        assert reason in str(why_merged(where, lora, device))
    assert why_merged(mixture, LORA, "cuda") is None
    said: list[str] = []
    worker.progress = lambda **told: said.append(told["says"])
    with pytest.raises(UnsupportedModelError, match=r"sampling\.lora is 'adapter'"):
        worker._engine.served_adapters(of_gpt2)
    assert not said
    on_gpu = worker.recipe.devices.model_copy(update={"sampler": "cuda"})
    worker.device = "cuda"
    auto = worker.recipe.sampling.model_copy(update={"lora": "auto"})
    worker.recipe = worker.recipe.model_copy(update={"devices": on_gpu, "sampling": auto})
    assert worker._engine.served_adapters(local) == LORA
    assert not said
    assert worker._engine.served_adapters(of_gpt2) is None
    assert said == [
        "adapters are merged with their base, and all weights loaded each round: vLLM serves no adapters of a "
        "GPT2LMHeadModel"
    ]
