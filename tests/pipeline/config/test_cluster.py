"""What a recipe may ask of a Ray cluster."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.recipe import Recipe
from support.recipes import TINY

LLM = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "mode": "rubric", "budget_requests": 5}


def test_nothing_is_on_ray_by_default() -> None:
    cluster = Recipe.model_validate(TINY).cluster
    assert not cluster.used
    assert cluster.sampler.gpus_per_engine == 1


def test_a_model_is_split_over_the_gpus_of_a_replica() -> None:
    recipe: dict[str, Any] = {
        **TINY, "sampling": {**TINY["sampling"], "engine": "vllm"}, "devices": {"sampler": "cuda"},
        "cluster": {"address": "ray://head.example:10001", "sampler": {"replicas": 8, "gpus": 4}},
    }  # fmt: skip
    assert Recipe.model_validate(recipe).cluster.sampler.gpus_per_engine == 4
    # Without replicas the sampler is a process of this machine, with one GPU.
    recipe["cluster"]["sampler"] = {"gpus": 4}
    assert Recipe.model_validate(recipe).cluster.sampler.gpus_per_engine == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": {"sampler": {"replicas": 1, "gpus": 1}}}, r"cluster\.sampler\.gpus 1 .* devices\.sampler 'cpu'"),
        (
            {"cluster": {"sampler": {"replicas": 1, "gpus": 1}}, "devices": {"sampler": "cuda:1"}},
            r"cluster\.sampler\.gpus 1 .* devices\.sampler 'cuda:1'",
        ),
        (
            {"cluster": {"judge": {"replicas": 1}}, "devices": {"judge": "cuda"}},
            r"cluster\.judge\.gpus 0 .* devices\.judge 'cuda'",
        ),
        (
            {"cluster": {"sampler": {"replicas": 1, "gpus": 2}}, "devices": {"sampler": "cuda"}},
            r"cluster\.sampler\.gpus 2: sampling\.engine 'transformers' uses one GPU",
        ),
        ({"cluster": {"judge": {"gpus": 2}}}, r"cluster\.judge\.gpus 2: a reward model uses one GPU"),
        ({"cluster": {"judge": {"replicas": 2}}, "judge": LLM}, r"cluster\.judge\.replicas 2: a judge has a budget"),
        ({"cluster": {"address": "somewhere"}}, "String should match pattern"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Recipe.model_validate({**TINY, **changes})
