"""What the benchmark of a round runs: of the default recipe's policy, and of one that people know."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.round_runs import changed

FEW = {"evaluation": {"prompts": 2, "judges": []}}
PHASED: Mapping[str, Any] = {"mode": "phased"}
STREAMING: Mapping[str, Any] = {"mode": "streaming", "update": {"batch_order": "shards"}}
MODES = {"phased": PHASED, "streaming": STREAMING}
A_PAIR_OF_EACH: Mapping[str, Any] = {
    "judge": {"kind": "python", "function": "benchmarks.round_judges:sentiment"},
    "preferences": {"min_margin": 0.0, "drop_truncated": False},
}


@dataclass(frozen=True)
class Plan:
    """What is run. ``changes`` are made to the recipe throughout.

    Attributes:
        beside: whether to measure, beside a round as it is in each mode, one with evaluation, one of more prompts, and
            the loop of scripts.
    """

    recipe: str = "sentiment"
    parts: tuple[str, ...] = ("sampling", "handover", "round", "peers", "streaming", "growth")
    modes: tuple[str, ...] = ("phased", "streaming")
    beside: bool = True
    repetitions: int = 3
    stage_repetitions: int = 9
    changes: Mapping[str, Any] = field(default_factory=dict)
    growth_prompts: tuple[int, ...] = (128, 512, 2048)


QUICK = Plan(
    repetitions=1,
    stage_repetitions=2,
    changes={
        "policy": {"examples": 400, "steps": 20, "hidden_size": 64, "heads": 2, "layers": 1},
        "sampling": {"prompts_per_round": 16, "shard_prompts": 4},
        "preferences": {"min_margin": 0.0, "drop_truncated": False},
        "evaluation": {"prompts": 8},
    },
    growth_prompts=(8, 16, 32),
)
REAL = Plan(
    recipe="smollm2-json",
    parts=("round", "peers"),
    modes=("phased",),
    beside=False,
    repetitions=1,
    changes={
        "sampling": {
            "prompts_per_round": 16,
            "candidates": 4,
            "max_tokens": 32,
            "shard_prompts": 4,
            "precision": "float32",
            "alarm_truncated": 1.0,
        },
        "update": {"lora": None, "nll_weight": 0.0, "learning_rate": 3e-6, "warmup_steps": 0, "epochs": 1},
        **A_PAIR_OF_EACH,
    },
)
QUICK_REAL = replace(
    REAL,
    changes=changed(
        REAL.changes,
        {
            "sampling": {"prompts_per_round": 4, "candidates": 2, "max_tokens": 6, "shard_prompts": 2},
            "update": {"batch_size": 2},
        },
    ),
)
PLANS = {(False, False): Plan(), (False, True): QUICK, (True, False): REAL, (True, True): QUICK_REAL}
"""By whether the policy is a real one, and whether it is to be quick."""
