"""What devices and the cluster must agree on with who works on them."""

from collections.abc import Iterable

from pipeline.config.devices import ClusterConfig, DevicesConfig, ReplicasConfig
from pipeline.config.sampling import SamplingConfig
from pipeline.config.update import UpdateConfig
from pipeline.judges import JudgeConfig


def check_ranks(devices: DevicesConfig, update: UpdateConfig) -> None:
    """Refuses what one process alone can do, if several share the update."""
    nodes, ranks = devices.trainer_nodes, devices.trainer_ranks
    if devices.trainer_world == 1:
        return
    refused = {
        f"update.optimizer '{update.optimizer}', whose moments of 8 bits are not spread": update.optimizer != "adamw",
        "update.compile": update.compile,
        f"devices.trainer '{devices.trainer}', which is one GPU: cuda means all": ":" in devices.trainer,
    }
    if found := next((what for what, given in refused.items() if given), None):
        several = f"devices.trainer_ranks {ranks}" if nodes == 1 else f"devices.trainer_nodes {nodes}"
        raise ValueError(f"{several} does not go with {found}; set the former to 1, or leave the latter out")


def check_offload(devices: DevicesConfig, update: UpdateConfig) -> None:
    """Refuses to put into main memory what is there, moments of another library, or weights that must stay."""
    if devices.offload == "none":
        return
    moments = {
        f"devices.trainer '{devices.trainer}', whose memory is the main one": devices.trainer == "cpu",
        f"update.optimizer '{update.optimizer}', which keeps its moments itself": update.optimizer != "adamw",
    }
    weights = {
        f"{devices.trainer_world} ranks, whose pieces of the weights stay on their GPUs": devices.trainer_world > 1,
        "update.compile, whose layers are compiled for where they are": update.compile,
    }
    found = next((what for what, given in moments.items() if given), None)
    remedy = "leave the former out"
    if found is None and devices.offload == "all":
        found = next((what for what, given in weights.items() if given), None)
        remedy = "set the former to optimizer, which moves the moments alone"
    if found:
        raise ValueError(f"devices.offload '{devices.offload}' does not go with {found}: {remedy}")


def check_replicas(cluster: ClusterConfig, devices: DevicesConfig, sampling: SamplingConfig) -> None:
    """Refuses replicas on another device than Ray gives them, and GPUs that an engine cannot use."""
    parts: dict[str, tuple[ReplicasConfig, str]] = {
        "sampler": (cluster.sampler, devices.sampler), "judge": (cluster.judge, devices.judge)
    }  # fmt: skip
    for name, (part, device) in parts.items():
        if part.replicas and device != ("cuda" if part.gpus else "cpu"):
            raise ValueError(
                f"cluster.{name}.gpus {part.gpus} does not go with devices.{name} '{device}': a replica sees the "
                "GPUs that Ray gives it, as 'cuda'; without any it is on 'cpu'"
            )
    if cluster.sampler.replicas and cluster.sampler.gpus > 1 and sampling.engine != "vllm":
        raise ValueError(
            f"cluster.sampler.gpus {cluster.sampler.gpus}: sampling.engine '{sampling.engine}' uses one "
            "GPU: set the former to 1"
        )


def check_engines(cluster: ClusterConfig, devices: DevicesConfig, sampling: SamplingConfig) -> None:
    """Refuses GPUs that do not make up engines."""
    names, gpus = devices.sampler.split(","), sampling.tensor_parallel
    if not devices.samples_on_cpu and (twice := next((name for name in names if names.count(name) > 1), None)):
        raise ValueError(f"devices.sampler names {twice} twice, and an engine has its GPUs to itself: leave one out")
    if gpus == 1:
        return
    if cluster.sampler.replicas:
        raise ValueError(
            f"sampling.tensor_parallel {gpus} does not go with cluster.sampler.replicas, whose GPUs are "
            "cluster.sampler.gpus: set that, and leave the former out"
        )
    if devices.samples_on_cpu or sampling.engine != "vllm":
        raise ValueError(
            f"sampling.tensor_parallel {gpus} splits a model over GPUs, in vLLM, and sampling.engine is "
            f"'{sampling.engine}' on '{devices.sampler}': leave it out"
        )
    if names != ["cuda"] and len(names) % gpus:
        raise ValueError(
            f"devices.sampler names {len(names)} GPUs, which make no engines of sampling.tensor_parallel {gpus}: name "
            f"a multiple of {gpus}, or cuda for the first ones"
        )


def check_counted_budget(cluster: ClusterConfig, judge_parts: Iterable[JudgeConfig]) -> None:
    """Refuses a budget that several processes would each spend."""
    counted = any(part.has_budget for part in judge_parts)
    if counted and cluster.judge.replicas > 1:
        raise ValueError(
            f"cluster.judge.replicas {cluster.judge.replicas}: a judge has a budget, counted by each process "
            "by itself: set the former to 1, or leave the budget out"
        )
