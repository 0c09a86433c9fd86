"""What a recipe's round takes on devices of a kind: on paper, or with the speeds that a run measured."""

import json
from pathlib import Path

from flows.analysis.calibration import calibrated
from flows.host.allotment import Allotment
from flows.registry import DEFAULT_ROOT
from pipeline.config import PretrainedPolicy
from pipeline.errors import ConfigError
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.planning.devices import DEVICES
from pipeline.planning.plan import Plan, plan_round
from pipeline.planning.shapes import KNOWN_SHAPES, ModelShape, shape_of_config, shape_of_warm_start
from pipeline.planning.work import workload_of
from pipeline.recipe import Recipe


def plan_recipe(
    recipe: Recipe, device: str | None = None, devices: int | None = None, *, prompt_tokens: float | None = None,
    answer_tokens: float | None = None, usd_per_hour: float | None = None, calibrate: str | None = None,
    root: str = DEFAULT_ROOT,
) -> Plan:  # fmt: skip
    """Plans a round of a recipe on devices of ``DEVICES``; what is not given follows from the recipe or is assumed.

    Args:
        prompt_tokens: mean length of a prompt.
        answer_tokens: mean length of a completion.
        usd_per_hour: price of a device.
        calibrate: a RUN@ROUND under ``root``, whose lengths and speeds are taken.

    Raises:
        ConfigError: a device or a size is not known, the round does not fit, or ``calibrate`` is given with a length.
    """
    name = device or ("cpu" if recipe.devices.trainer == "cpu" else "h100")
    if name not in DEVICES:
        raise ConfigError(f"--device '{name}' is not known: choose among {', '.join(DEVICES)}")
    kind = DEVICES["cpu"].with_threads(Allotment.of(recipe).threads["trainer"]) if name == "cpu" else DEVICES[name]
    policy, parts = recipe.policy, [part for judge in recipe.judges for part in judge.parts()]
    shape = _shape(policy.path, "policy") if isinstance(policy, PretrainedPolicy) else shape_of_warm_start(policy)
    judges = [_shape(part.path, "judge") for part in parts if isinstance(part, RewardModelConfig)]
    judge = max(judges, key=lambda shape: shape.parameters, default=None)
    work = workload_of(recipe, shape, judge, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
    if calibrate is not None and (prompt_tokens or answer_tokens):
        raise ConfigError(f"--calibrate {calibrate} takes that round's lengths: leave --prompt-tokens and others out")
    work, measured = (work, {}) if calibrate is None else calibrated(work, kind, calibrate, root)
    return plan_round(work, kind, devices, usd_per_hour=usd_per_hour, measured=measured)


def _shape(path: str, field: str) -> ModelShape:
    config = Path(path) / "config.json"
    if config.is_file():
        return shape_of_config(json.loads(config.read_text("utf-8")), path)
    shape = next((shape for known, shape in KNOWN_SHAPES.items() if known.partition("/")[2] in path), None)
    if shape is None:
        raise ConfigError(
            f"the size of '{path}' is not known here, and no hub is asked: --set {field}.path to a directory with its "
            f"config.json, or to the nearest of {', '.join(KNOWN_SHAPES)}"
        )
    return shape
