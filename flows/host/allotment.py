"""What a run's workers get of this machine, where the recipe says ``auto``: counted once, when a session begins.

A run may go on on another machine. With other threads its results change in the last bits, which it says. Its samples
stay in the precision that they began in, for those of two precisions would mix within a round.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
        own_precision: the one that recipe and machine alone would give it.
    """

    threads: Mapping[str, int]
    precision: Precision
    own_precision: Precision

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        cores: int | None = None,
        *,
        bfloat16: bool | None = None,
        sampled_in: Precision | None = None,
    ) -> "Allotment":
        """Returns what a recipe's workers get of a machine.

        Args:
            cores: how many it has; those of this one if left out.
            bfloat16: whether its processor multiplies bfloat16; this one's if left out.
            sampled_in: the precision in which the run has sampled so far, which it keeps; None if it begins. vLLM
                computes in bfloat16 also on a processor without instructions for it, if more slowly.
        """
        own = recipe.sampler_precision
        if own == "auto":
            own = "bfloat16" if (multiplies_bfloat16() if bfloat16 is None else bfloat16) else "float32"
        return cls(_threads(recipe, available_cores() if cores is None else cores), sampled_in or own, own)

    def recipe(self, recipe: Recipe, kind: str, engine: int | None = None) -> Recipe:
        """Returns the recipe that a worker of this kind is given: with numbers in place of ``auto``.

        Args:
            engine: which of several sampling engines it is for; the recipe names the devices of that one alone.
        """
        own = {} if engine is None else {"sampler": recipe.engines[engine]}
        devices = recipe.devices.model_copy(update={"cpu_threads": self.threads[kind], **own})
        sampling = recipe.sampling.model_copy(update={"precision": self.precision})
        return recipe.model_copy(update={"devices": devices, "sampling": sampling})

    def record(self) -> dict[str, Any]:
        """Returns what the session's entry keeps."""
        return {"threads": dict(self.threads), "precision": self.precision}


def report_allotment(
    allotment: Allotment, recipe: Recipe, before: Mapping[str, Any] | None, say: Callable[[str], None]
) -> None:
    """Says what ``auto`` came to, and in what this session differs from where the run was before.

    Other threads change results in the last bits. The precision stays, even if this machine would take another one.

    Args:
        before: what that session recorded; None if there is none, or if it is of an earlier version.
    """
    threads, precision, own = allotment.threads, allotment.precision, allotment.own_precision
    if before is not None and before["threads"] != threads:
        say(f"this session has {_told(threads)}; the one before had {_told(before['threads'])}: results change in the "
            "last bits")  # fmt: skip
    elif "auto" in (recipe.cpu_threads, recipe.sampler_precision):
        say(f"auto: {_told(threads)}, and samples in {precision}")
    if precision != own:
        say(f"samples stay in {precision}, in which the run began, so that no round mixes two precisions; this machine "
            f"would take {own}: a fork with --set sampling.precision={own} does")  # fmt: skip


def _told(threads: Mapping[str, int]) -> str:
    return f"threads {', '.join(f'{count} for the {kind}' for kind, count in threads.items())}"


def _threads(recipe: Recipe, cores: int) -> dict[str, int]:
    """Counts threads: workers that compute in turn have all cores each, those that overlap an equal share.

    A worker on a GPU, and a judge without a model, computes little here: it has one. A replica on Ray has the CPUs that
    the recipe sets aside for it.
    """
    devices, cluster, asked = recipe.devices, recipe.cluster, recipe.cpu_threads
    if asked != "auto":
        return dict.fromkeys(("sampler", "trainer", "judge"), asked)
    judges = any(isinstance(part, RewardModelConfig | ImplicitConfig) for part in recipe.all_judge_parts)
    computes = {
        "sampler": devices.samples_on_cpu and not cluster.sampler.replicas,
        "trainer": devices.trainer == "cpu",
        "judge": judges and devices.judge == "cpu" and not cluster.judge.replicas,
    }
    in_turn = recipe.mode == "phased" and not recipe.staleness
    share = cores if in_turn else cores // max(1, sum(computes.values()))
    threads = {kind: max(1, share) if here else 1 for kind, here in computes.items()}
    threads["trainer"] = max(1, threads["trainer"] // devices.trainer_ranks)
    threads["sampler"] = max(1, threads["sampler"] // len(recipe.engines))
    for kind, replicas in (("sampler", cluster.sampler), ("judge", cluster.judge)):
        threads[kind] = _of_replica(replicas) or threads[kind]
    return threads


def _of_replica(config: ReplicasConfig) -> int:
    """Counts the threads of a replica without a GPU; 0 if there are no such replicas."""
    return max(1, int(config.cpus)) if config.replicas and not config.gpus else 0
