"""What a run's workers get of this machine, where the recipe says ``auto``: counted once, when a session begins.

Nothing that a round keeps is found by these numbers. So a run may go on on another machine; it then says that its
results change in the last bits.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from flows.host.processor import available_cores, multiplies_bfloat16
from pipeline.config import ReplicasConfig
from pipeline.config.sampling import Precision
from pipeline.judges.implicit import ImplicitConfig
from pipeline.judges.reward_model import RewardModelConfig
from pipeline.recipe import Recipe


@dataclass(frozen=True)
class Allotment:
    """What the workers get.

    Attributes:
        threads: of each kind of worker; each rank of a trainer has as many.
        precision: of the sampler.
    """

    threads: Mapping[str, int]
    precision: Precision

    @classmethod
    def of(cls, recipe: Recipe, cores: int | None = None, *, bfloat16: bool | None = None) -> "Allotment":
        """Returns what a recipe's workers get of a machine.

        Args:
            cores: how many it has; those of this one if left out.
            bfloat16: whether its processor multiplies bfloat16; this one's if left out.
        """
        precision = recipe.sampler_precision
        if precision == "auto":
            precision = "bfloat16" if (multiplies_bfloat16() if bfloat16 is None else bfloat16) else "float32"
        return cls(_threads(recipe, available_cores() if cores is None else cores), precision)

    def recipe(self, recipe: Recipe, kind: str) -> Recipe:
        """Returns the recipe that a worker of this kind is given: with numbers in place of ``auto``."""
        devices = recipe.devices.model_copy(update={"cpu_threads": self.threads[kind]})
        sampling = recipe.sampling.model_copy(update={"precision": self.precision})
        return recipe.model_copy(update={"devices": devices, "sampling": sampling})

    def record(self) -> dict[str, Any]:
        """Returns what the session's entry keeps."""
        return asdict(self)


def report_allotment(
    allotment: Allotment, recipe: Recipe, before: Mapping[str, Any] | None, say: Callable[[str], None]
) -> None:
    """Says what ``auto`` came to, and that results change in the last bits if the session before had other numbers.

    Args:
        before: what that session recorded; None if there is none, or if it is of an earlier version.
    """
    now = allotment.record()
    if before is not None and before != now:
        say(f"this session has {_told(now)}; the one before had {_told(before)}: results change in the last bits")
    elif "auto" in (recipe.cpu_threads, recipe.sampler_precision):
        say(f"auto: {_told(now)}")


def _told(recorded: Mapping[str, Any]) -> str:
    threads = (f"{count} for the {kind}" for kind, count in recorded["threads"].items())
    return f"threads {', '.join(threads)}, and samples in {recorded['precision']}"


def _threads(recipe: Recipe, cores: int) -> dict[str, int]:
    """Counts threads: workers that compute in turn have all cores each, those that overlap an equal share.

    A worker on a GPU, and a judge without a model, computes little here: it has one. A replica on Ray has the CPUs that
    the recipe sets aside for it.
    """
    devices, cluster, asked = recipe.devices, recipe.cluster, recipe.cpu_threads
    if asked != "auto":
        return dict.fromkeys(("sampler", "trainer", "judge"), asked)
    judges = any(isinstance(part, RewardModelConfig | ImplicitConfig) for part in recipe.judge_parts)
    computes = {
        "sampler": devices.sampler == "cpu" and not cluster.sampler.replicas,
        "trainer": devices.trainer == "cpu",
        "judge": judges and devices.judge == "cpu" and not cluster.judge.replicas,
    }
    in_turn = recipe.mode == "phased" and not recipe.staleness
    share = cores if in_turn else cores // max(1, sum(computes.values()))
    threads = {kind: max(1, share) if here else 1 for kind, here in computes.items()}
    threads["trainer"] = max(1, threads["trainer"] // devices.trainer_ranks)
    for kind, replicas in (("sampler", cluster.sampler), ("judge", cluster.judge)):
        threads[kind] = _of_replica(replicas) or threads[kind]
    return threads


def _of_replica(config: ReplicasConfig) -> int:
    """Counts the threads of a replica without a GPU; 0 if there are no such replicas."""
    return max(1, int(config.cpus)) if config.replicas and not config.gpus else 0
