"""The transformers sampler against the contract of all samplers."""

import pytest

from pipeline.config import SamplingConfig
from pipeline.sampling import Sampler, finish, make_sampler
from support.sampler_contract import CONTEXT, SETTINGS, SamplerContract, Weights, make_weights, requests


def make(weights: Weights, max_sequences: int) -> Sampler:
    config = SamplingConfig(engine="transformers", context=CONTEXT, max_sequences=max_sequences)
    return make_sampler(config, weights.first, device="cpu", threads=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return make_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def engine(weights: Weights) -> Sampler:
    return make(weights, 32)


class TestTransformersSampler(SamplerContract):
    def test_a_shard_wider_than_the_engine_is_sampled_in_parts(self, sampler: Sampler, weights: Weights) -> None:
        prompts = requests(6)
        wide, narrow = finish(sampler.sample(prompts, SETTINGS)), finish(make(weights, 5).sample(prompts, SETTINGS))
        assert [candidate.token_ids for candidate in narrow] == [candidate.token_ids for candidate in wide]
