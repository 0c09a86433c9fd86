"""The real vLLM against the contract of all samplers, and against itself in another process.

One engine for the whole module: vLLM has one to a process.
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.config import SamplingConfig
from pipeline.errors import EngineError
from pipeline.sampling import Sampler, Sleepable, configure_environment, finish, make_sampler, vllm_start
from support.sampler_contract import (
    CONTEXT,
    SETTINGS,
    SamplerContract,
    Weights,
    assert_logprobs_of,
    make_weights,
    requests,
)
from support.sent_weights import send
from support.tiny import tiny_llama

pytestmark = pytest.mark.vllm

CONFIG = SamplingConfig(context=CONTEXT, max_sequences=64, cache_gib=0.25)
IN_A_NEW_PROCESS = """
import dataclasses, json, sys
from pathlib import Path
from pipeline.sampling import configure_environment, finish, make_sampler
configure_environment("cpu", int(sys.argv[2]))
from support.sampler_contract import SETTINGS, requests
from test_vllm_engine import CONFIG
sampler = make_sampler(CONFIG, Path(sys.argv[1]), device="cpu", threads=int(sys.argv[2]))
candidates = finish(sampler.sample(requests(8, length=150), SETTINGS))
print(json.dumps([dataclasses.asdict(candidate) for candidate in candidates]))
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return make_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def engine(weights: Weights) -> Sampler:
    configure_environment("cpu", 1)
    return make_sampler(CONFIG, weights.second, device="cpu", threads=1)


def record_calls(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What the engine is asked for from now on that concerns its memory; weights that it drops are gone for real."""
    called: list[tuple[str, Any]] = []
    engine, ask_workers = sampler._engine, sampler._engine.collective_rpc

    def record(name: str) -> None:
        original = getattr(engine, name)

        def call(*given: Any, **named: Any) -> Any:
            if given != ("get_model",):  # to look at it
                called.append((name, *given, *(value for key, value in named.items() if key != "kwargs")))
            answer = original(*given, **named)
            if named == {"level": 2}:
                ask_workers("reset_weights")
            return answer

        monkeypatch.setattr(engine, name, call)

    for name in ("sleep", "wake_up", "collective_rpc"):
        record(name)
    return called


class TestVllmSampler(SamplerContract):
    def test_another_process_samples_the_same_bits(self, sampler: Sampler, weights: Weights) -> None:
        # This engine has sampled other shards and taken other weights before; the other one is new.
        here = finish(sampler.sample(requests(8, length=150), SETTINGS))
        tests = Path(__file__).parents[1]
        paths = os.pathsep.join([str(tests), str(tests / "e2e"), str(tests.parent)])
        done = subprocess.run(
            [sys.executable, "-c", IN_A_NEW_PROCESS, str(weights.first), "1"],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        there = json.loads(done.stdout.splitlines()[-1])
        assert [(row["token_ids"], row["logprobs"]) for row in there] == [
            (candidate.token_ids, candidate.logprobs) for candidate in here
        ]

    def test_an_engine_that_rested_goes_on_as_before(self, sampler: Sampler) -> None:
        """On a CPU vLLM lends nothing; what is seen here is that it wakes by itself."""
        assert isinstance(sampler, Sleepable)
        whole = finish(sampler.sample(requests(4), SETTINGS))
        sampler.sleep(keeps_weights=True)
        assert finish(sampler.sample(requests(4), SETTINGS)) == whole
        sampling = sampler.sample(requests(4), SETTINGS)
        next(sampling)
        with pytest.raises(EngineError, match="cannot sleep while it samples"):
            sampler.sleep(keeps_weights=True)
        sampling.close()

    def test_weights_that_were_dropped_are_not_computed_with(
        self, sampler: Sampler, weights: Weights, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a CPU vLLM drops nothing: its own call for zeros in all weights does. What wakes first is seen, too."""
        assert isinstance(sampler, Sleepable)
        called = record_calls(sampler, monkeypatch)
        prompts, takes = requests(4, length=150), {"file": sampler.load_weights, "memory": partial(send, sampler)}
        for source, directory in {"file": weights.second, "memory": weights.first}.items():
            sampler.sleep(keeps_weights=False)
            sampler.sleep(keeps_weights=True)  # too late: what is gone does not come back
            for compute in (lambda: finish(sampler.sample(prompts, SETTINGS)), lambda: sampler.score([([1], [2])])):
                with pytest.raises(EngineError, match="dropped its weights when it fell asleep"):
                    compute()
            with pytest.raises(EngineError, match="other names or shapes"):
                sampler.load_weights(tiny_llama(directory.with_name(f"wide {source}"), vocab=96))
            assert called == [("sleep", 2)]
            takes[source](directory)
            assert_logprobs_of(directory, prompts, finish(sampler.sample(prompts, SETTINGS)))
            (first, *loads, last) = called[1:]
            assert (first, last) == (("wake_up", ["weights"]), ("wake_up", ["kv_cache"]))
            assert loads[-1][1] == {"file": "reload_weights", "memory": "finish_weight_update"}[source]
            assert all(name == "collective_rpc" for name, _ in loads)
            called.clear()

    def test_tied_embeddings_are_refused(self, sampler: Sampler, weights: Weights) -> None:
        with pytest.raises(EngineError, match=r"tied embeddings.*sampler_copy"):
            sampler.load_weights(weights.tied[0])


def test_what_an_engine_on_gpus_is_given(engine: Sampler, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is here: vLLM knows all of the arguments, and finds room for weights, cache and a tenth."""
    from vllm.engine.arg_utils import EngineArgs

    given: list[dict[str, Any]] = []
    monkeypatch.setattr(vllm_start, "_start", lambda arguments, *_: given.append(arguments))
    card = SimpleNamespace(total_memory=8 * vllm_start.GIB)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: card)
    make_sampler(CONFIG, weights.first, device="cuda:1", threads=1, precision="bfloat16", sleeps=True)
    large = CONFIG.model_copy(update={"cache_gib": 4.0})
    make_sampler(large, weights.first, device="cuda", threads=1, gpus=2, precision="float32")
    alone, split = (EngineArgs(**arguments) for arguments in given)
    assert (alone.dtype, alone.device_ids, alone.enable_sleep_mode, alone.enforce_eager) == (
        "bfloat16",
        [1],
        True,
        False,
    )
    assert (split.device_ids, split.enable_sleep_mode, split.tensor_parallel_size) == (None, False, 2)
    size = sum(tensor.nbytes for tensor in load_file(weights.first / "model.safetensors").values())  # in float32
    assert alone.gpu_memory_utilization == pytest.approx((size / 2 / vllm_start.GIB + 0.25) / 8 + 0.1)
    assert split.dtype == "float32"
    assert split.gpu_memory_utilization == pytest.approx((size / vllm_start.GIB + 4) / 2 / 8 + 0.1)
    assert split.kv_cache_memory_bytes == 2 * vllm_start.GIB


def test_the_environment_comes_first(engine: Sampler) -> None:
    with pytest.raises(EngineError, match="imported before"):
        configure_environment("cpu", 1)
