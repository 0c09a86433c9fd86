"""A recipe that runs in seconds: a tiny warm start, two rounds, and the transformers engine in vLLM's place."""

from typing import Any

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 7,
    "rounds": 2,
    "policy": {
        "source": "warm_start",
        "corpus": "film_reviews",
        "examples": 400,
        "steps": 150,
        "batch_size": 16,
        "hidden_size": 64,
        "layers": 1,
        "heads": 2,
        "vocabulary": 512,
        "context": 96,
    },
    "prompts": {"source": "generated", "corpus": "film_reviews", "train": 64},
    "sampling": {
        "engine": "transformers",
        "prompts_per_round": 12,
        "candidates": 4,
        "max_tokens": 20,
        "alarm_truncated": 1.0,  # a policy of so few steps seldom ends by itself
        "shard_prompts": 6,
    },
    "judge": {"kind": "vader"},
    "update": {"learning_rate": 1e-3, "batch_size": 2, "token_budget": 512},
    "evaluation": {"prompts": 8, "judges": [{"kind": "grammar"}]},
    "devices": {"cpu_threads": 1},
}
