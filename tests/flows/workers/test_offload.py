"""The trainer's weights are on its GPU while it works, and in main memory otherwise, if the recipe says so.

No GPU is here: what is seen is what the model is asked for, and when.
"""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from flows.workers.trainer import TrainerWorker
from pipeline.errors import LostUpdateError
from pipeline.recipe import Recipe
from support.recipes import TINY

GPU = {"trainer": "cuda:1", "offload": "all"}
RANKS = {"trainer": "cuda", "trainer_ranks": 2}


class Model:
    """Remembers where it was put."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def to(self, place: str) -> None:
        self.places.append(place)


@pytest.mark.parametrize(("offload", "places"), [("none", []), ("optimizer", []), ("all", ["cuda:1", "cpu"])])
def test_weights_are_put_back_whatever_happens(
    make_worker: Callable[..., Any], offload: str, places: list[str]
) -> None:
    worker = make_worker(TrainerWorker, Recipe.model_validate(TINY))
    worker.recipe = Recipe.model_validate({**TINY, "devices": {**GPU, "offload": offload}})
    model = worker._model._model = Model()
    worker._model.recipe = worker.recipe
    with pytest.raises(LostUpdateError):
        worker.finish_update("unsaved")
    assert model.places == places


def test_all_that_computes_has_the_model_on_its_device() -> None:
    """What is left is made in main memory anyway: pieces for the sampler, and files."""
    collective = {name for name, method in vars(TrainerWorker).items() if getattr(method, "collective", False)}
    at_work = {name for name in collective if hasattr(getattr(TrainerWorker, name), "__wrapped__")}
    assert collective - at_work == {"begin_sending", "send_weights", "end_sending", "save_update"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": {"offload": "optimizer"}}, r"devices\.trainer 'cpu', whose memory is the main one"),
        ({"devices": {**GPU, **RANKS}}, "2 ranks, whose pieces of the weights .* set the former to optimizer"),
        ({"devices": GPU, "update": {"optimizer": "adamw_8bit"}}, r"update\.optimizer 'adamw_8bit', which keeps"),
        ({"devices": GPU, "update": {"compile": True}}, r"update\.compile, whose layers .* former to optimizer"),
    ],
)
def test_what_cannot_be_put_away_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Recipe.model_validate({**TINY, **changes})


@pytest.mark.parametrize("changes", [{"devices": RANKS}, {"update": {"compile": True}, "devices": {"trainer": "cuda"}}])
def test_moments_go_where_weights_must_stay(changes: dict[str, Any]) -> None:
    recipe = Recipe.model_validate({**TINY, **changes, "devices": {**changes["devices"], "offload": "optimizer"}})
    assert recipe.devices.offload == "optimizer"
