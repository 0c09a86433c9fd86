"""What a recipe may ask of a Ray cluster."""

from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.recipe import Recipe
from support.recipes import TINY

LLM = {"kind": "llm", "model": "m", "base_url": "http://127.0.0.1:1/v1", "mode": "rubric", "budget_requests": 5}


def test_nothing_is_on_ray_by_default() -> None:
    recipe = Recipe.model_validate(TINY)
    assert not recipe.cluster.used
    assert recipe.gpus_per_engine == 1


def test_a_model_is_split_over_the_gpus_of_a_replica() -> None:
    recipe: dict[str, Any] = {
        **TINY, "sampling": {**TINY["sampling"], "engine": "vllm"}, "devices": {"sampler": "cuda"},
        "cluster": {"address": "ray://head.example:10001", "sampler": {"replicas": 8, "gpus": 4}},
    }  # fmt: skip
    assert Recipe.model_validate(recipe).gpus_per_engine == 4
    # Without replicas the sampler is a process of this machine, with one GPU.
    recipe["cluster"]["sampler"] = {"gpus": 4}
    assert Recipe.model_validate(recipe).gpus_per_engine == 1


@pytest.mark.parametrize(
    ("sampler", "gpus", "engines"),
    [
        ("cpu", 1, ["cpu"]),
        ("cpu,cpu,cpu", 1, ["cpu"] * 3),
        ("cuda", 1, ["cuda"]),
        ("cuda", 4, ["cuda"]),
        ("cuda:3,cuda:1", 1, ["cuda:3", "cuda:1"]),
        ("cuda:0,cuda:1,cuda:2,cuda:3", 2, ["cuda:0,cuda:1", "cuda:2,cuda:3"]),
    ],
)
def test_the_engines_of_this_machine(sampler: str, gpus: int, engines: list[str]) -> None:
    recipe = on(sampler, gpus)
    assert recipe.engines == tuple(engines)
    assert recipe.gpus_per_engine == gpus


@pytest.mark.parametrize(
    ("sampler", "gpus", "words"),
    [
        ("cuda:1,cuda:1", 1, r"devices\.sampler names cuda:1 twice"),
        (
            "cpu,cpu",
            2,
            r"tensor_parallel 2 splits a model over GPUs, in vLLM, and sampling\.engine is 'vllm' on 'cpu,cpu'",
        ),
        ("cuda:0,cuda:1,cuda:2", 2, r"names 3 GPUs, which make no engines of sampling\.tensor_parallel 2"),
        ("cuda:0,cpu", 1, "should match pattern"),
        ("cuda,cuda", 1, "should match pattern"),
    ],
)
def test_devices_that_make_no_engines_are_refused(sampler: str, gpus: int, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        on(sampler, gpus)


@pytest.mark.parametrize(
    ("sampler", "gpus", "trainer", "ranks", "shared"),
    [
        ("cuda", 1, "cuda", 1, True),
        ("cuda:1", 1, "cuda", 1, False),
        ("cuda", 2, "cuda:1", 1, True),
        ("cuda:1,cuda:2", 1, "cuda:0", 1, False),
        ("cuda:1,cuda:2", 1, "cuda:2", 1, True),
        ("cuda:6,cuda:7", 2, "cuda", 6, False),
        ("cuda:5,cuda:7", 1, "cuda", 6, True),
    ],
)
def test_engines_sleep_if_the_update_is_on_one_of_their_cards(
    sampler: str, gpus: int, trainer: str, ranks: int, shared: bool
) -> None:
    assert on(sampler, gpus, trainer=trainer, trainer_ranks=ranks).sampler_sleeps == shared


def on(sampler: str, gpus: int = 1, **devices: Any) -> Recipe:
    sampling = {**TINY["sampling"], "engine": "vllm", "tensor_parallel": gpus}
    return Recipe.model_validate({**TINY, "sampling": sampling, "devices": {"sampler": sampler, **devices}})


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
