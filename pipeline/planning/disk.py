"""Bytes that a round leaves in the store."""

from math import log2

from pipeline.config import Recipe
from pipeline.planning.constants import (
    CANDIDATE_BYTES,
    ENTRY_BYTES,
    FILE_BYTES,
    JUDGMENT_BYTES,
    LOGPROB_BYTES,
    PREFERENCE_BYTES,
    PROMPT_BYTES,
    SCORE_BYTES,
    STEP_BYTES,
    TEXT_BYTES_PER_TOKEN,
    TOKENIZER_BYTES_PER_ENTRY,
)
from pipeline.planning.shapes import ModelShape
from pipeline.planning.timing import optimizer_steps, trained_weights
from pipeline.planning.workload import Workload

FLOAT = 4


def token_bytes(shape: ModelShape) -> float:
    """Of a sampled token: its log-probability, its id (at most the bits that the vocabulary needs), and its text."""
    return LOGPROB_BYTES + log2(shape.vocabulary) / 8 + TEXT_BYTES_PER_TOKEN


def checkpoint_bytes(shape: ModelShape, recipe: Recipe) -> float:
    """Of a round's checkpoint: float32 weights, or the adapter's; with the tokenizer."""
    return FLOAT * trained_weights(shape, recipe) + TOKENIZER_BYTES_PER_ENTRY * shape.vocabulary


def round_bytes(shape: ModelShape, recipe: Recipe, work: Workload) -> dict[str, float]:
    """By what it is: tables and log entries, the checkpoint, and what the recipe keeps beside it."""
    sampled = work.answers + work.held_out
    judges = len(recipe.held_out_judges)
    rows = (
        sampled * (CANDIDATE_BYTES + work.answer_tokens * token_bytes(shape))
        + (work.answers + work.held_out * judges) * JUDGMENT_BYTES
        + work.preferences * PREFERENCE_BYTES
        + optimizer_steps(recipe, work) * STEP_BYTES
        + work.held_out * SCORE_BYTES
    )
    files = 2 * (work.shards + work.held_out_shards) + 4  # preferences, metrics, probe, log-probabilities
    found = {"tables": rows + files * FILE_BYTES + (files + 3) * ENTRY_BYTES}
    found["checkpoint"] = checkpoint_bytes(shape, recipe)
    if recipe.update.optimizer_state == "carried":
        found["moments"] = 2 * (FLOAT if recipe.update.optimizer == "adamw" else 1) * trained_weights(shape, recipe)
    if recipe.update.reference == "ema":
        found["moving average"] = FLOAT * shape.parameters
    return found


def run_bytes(shape: ModelShape, recipe: Recipe, work: Workload) -> float:
    """Of all rounds, if none is pruned: the prompts and the initial policy once, then round after round."""
    prompts = work.prompts * recipe.rounds + work.held_out
    first = FLOAT * shape.parameters + prompts * (
        PROMPT_BYTES + work.prompt_tokens * (token_bytes(shape) - LOGPROB_BYTES)
    )
    return first + recipe.rounds * sum(round_bytes(shape, recipe, work).values())
