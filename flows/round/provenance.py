"""What a round was made from, as hashes: equal hashes mean equal inputs."""

from flows.registry.first_facts import sampled_in
from flows.registry.recipes import NOT_COMPARED
from flows.registry.resume import FREE
from flows.registry.round_summary import JudgeOrigin, RoundOrigin
from flows.round.context import RoundContext
from flows.round.shards import prompt_rows
from pipeline.config.sampling import Precision
from pipeline.recipe import Recipe
from pipeline.records import content_id
from storage.tables.shards import read_table

NO_RESULT = frozenset({*NOT_COMPARED, *FREE} - {"devices"})
"""The fields that no result depends on; another device, or another number of threads, changes the last bits."""


def round_origin(context: RoundContext, number: int) -> RoundOrigin:
    """Describes what a round of the running context was made from."""
    recipe = context.recipe
    versions = context.judge_versions[: len(recipe.judges)]  # the gate's have a hash of their own
    judges = zip(recipe.judge_names, versions, recipe.judges, strict=True)
    return RoundOrigin(
        recipe=recipe_hash(_as_sampled(recipe, sampled_in(context.store, context.run))),
        sampled_by=context.policies.sampling_policy(number).digest if number else None,
        prompts=_prompts(context, number, held_out=False) if number else None,
        held_out=_prompts(context, number, held_out=True),
        judges=[
            JudgeOrigin(name=name, version=version, config=content_id(config.hashed()))
            for name, version, config in judges
        ],
    )


def recipe_hash(recipe: Recipe) -> str:
    """Hashes the fields of a recipe that its rounds depend on."""
    return content_id(recipe.hashed(exclude=NO_RESULT))


def _as_sampled(recipe: Recipe, precision: Precision | None) -> Recipe:
    """Names the precision that ``auto`` came to, if it is not float32, in which version 0.1.0 sampled."""
    if recipe.sampler_precision != "auto" or precision in (None, "float32"):
        return recipe
    return recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"precision": precision})})


def _prompts(context: RoundContext, number: int, *, held_out: bool) -> str:
    ids = read_table(context.store, context.files(0, "prompts"), columns=["prompt_id"])["prompt_id"].to_pylist()
    return content_id([ids[row] for shard in prompt_rows(context, number, held_out=held_out) for row in shard])
