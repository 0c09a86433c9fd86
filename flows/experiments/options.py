"""What the methods take that are no run of rondo, and what is recorded of it with what they have measured."""

from typing import Any

from pydantic import Field, ValidationError

from flows.experiments.experiment import Variant
from pipeline.config.base import Config
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from pipeline.records import content_id


class BestOfOptions(Config):
    """What best_of takes."""

    samples: int = Field(64, ge=2, le=4096, description="completions of each held-out prompt; N is up to half of them")


class PeerOptions(Config):
    """What grpo and rloo take."""

    learning_rate: float = Field(1e-5, gt=0, le=1, description="of AdamW, constant")
    beta: float = Field(0.05, ge=0, le=100, description="weight of the KL to the initial policy")
    adam_epsilon: float = Field(1e-8, gt=0, le=1, description="of AdamW")
    prompts_per_step: int = Field(16, ge=1, le=100_000, description="prompts of an optimizer step")


def options_of(variant: Variant) -> BestOfOptions | PeerOptions:
    """Returns the options of an arm that is no run of rondo; ConfigError if one is wrong."""
    kind = BestOfOptions if variant.spec.method == "best_of" else PeerOptions
    try:
        return kind.model_validate(variant.options)
    except ValidationError as error:
        fault = error.errors()[0]
        name = ".".join(map(str, fault["loc"]))
        known = ", ".join(kind.model_fields)
        raise ConfigError(
            f"arm '{variant.name}', option {name}: {fault['msg']}; {variant.spec.method} takes {known}"
        ) from None


def annex_header(variant: Variant, recipe: Recipe) -> dict[str, Any]:
    """Returns what the annex of such an arm records of its origin: of others, nothing that is there counts."""
    return {
        "format": 1, "method": variant.spec.method, "options": options_of(variant).model_dump(mode="json"),
        "recipe": content_id(recipe.hashed(exclude=("name", "description"))),
    }  # fmt: skip
