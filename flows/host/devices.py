"""The devices of a recipe that this machine has to have: those of the workers that are processes of it."""

from pipeline.judges.implicit import ImplicitConfig
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.model.devices import check_device
from pipeline.recipe import Recipe


def check_devices(recipe: Recipe) -> None:
    """Refuses a recipe whose trainer, sampler or judging model would not find their device here.

    Replicas on Ray look for theirs where they are placed.

    Raises:
        ConfigError: torch finds no such device on this machine.
    """
    devices, cluster = recipe.devices, recipe.cluster
    check_device("devices.trainer", devices.trainer)
    if not cluster.sampler.replicas:
        for device in devices.sampler.split(","):
            check_device("devices.sampler", device)
        if recipe.sampling.tensor_parallel > 1 and devices.sampler == "cuda":
            check_device("the last GPU of sampling.tensor_parallel", f"cuda:{recipe.sampling.tensor_parallel - 1}")
    by_model = any(isinstance(part, RewardModelConfig | ImplicitConfig) for part in recipe.all_judge_parts)
    if by_model and not cluster.judge.replicas:
        check_device("devices.judge", devices.judge)
