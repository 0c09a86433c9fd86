"""A vLLM engine that schedules a step before the tokens of the last one are known: as on a GPU, and never on a CPU.

    python -m support.engine_ahead DIRECTORY       forked, see ``support.vllm_imported``

When a call ends, a step of its requests is still in flight: what comes after must not be refused or moved by it.
"""

import sys
from pathlib import Path

from vllm.platforms.cpu import CpuPlatform

from pipeline.config import SamplingConfig
from pipeline.sampling import finish
from pipeline.sampling.vllm_engine import VllmSampler
from support.sampler_contract import CONTEXT, SETTINGS, make_weights, requests


def main() -> None:
    """Samples, gives up, rests and takes weights; a wrong result is an AssertionError."""
    original = CpuPlatform.check_and_update_config

    def schedule_ahead(config: object) -> None:
        original(config)
        config.scheduler_config.async_scheduling = True  # type: ignore[attr-defined]

    CpuPlatform.check_and_update_config = staticmethod(schedule_ahead)
    weights = make_weights(Path(sys.argv[1]))
    sampler = VllmSampler(weights.first, SamplingConfig(context=CONTEXT, cache_gib=0.25, max_sequences=64))
    in_flight = sampler._engine.engine_core.engine_core.batch_queue

    expected = finish(sampler.sample(requests(6), SETTINGS))
    assert len(in_flight) == 1, "else nothing is shown here"
    assert finish(sampler.sample(requests(6), SETTINGS)) == expected
    given_up = sampler.sample(requests(6), SETTINGS)
    for _ in range(3):
        next(given_up)
    given_up.close()
    assert finish(sampler.sample(requests(6), SETTINGS)) == expected
    sampler.sleep(keeps_weights=True)
    assert finish(sampler.sample(requests(6), SETTINGS)) == expected
    (request,) = requests(1)
    own = [candidate for candidate in expected if candidate.prompt_id == request.prompt_id]
    scored = sampler.score([(request.token_ids, candidate.token_ids) for candidate in own])
    for found, candidate in zip(scored, own, strict=True):
        assert max(abs(one - other) for one, other in zip(found, candidate.logprobs, strict=True)) < 1e-4
    sampler.sleep(keeps_weights=False)
    sampler.load_weights(weights.second)
    assert finish(sampler.sample(requests(6), SETTINGS)) != expected
    sampler.load_weights(weights.first)
    assert finish(sampler.sample(requests(6), SETTINGS)) == expected
