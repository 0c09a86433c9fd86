"""Where each part of a run works: devices of this machine, ranks over several, replicas on a Ray cluster; the store.

Ray is a section of its own, and no value of ``sampling.engine``: the engine inside of a replica is still vLLM or
transformers, and the judge goes to the same cluster.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.config.base import Config, Device, Devices, Later

HOST_PART_BYTES = 256 * 2**20
"""Of moments in main memory, those that are on the GPU at a time, unless one tensor has more."""

Threads = Annotated[int, Field(ge=1, le=1024)]


class DevicesConfig(Config):
    """Where each part runs."""

    sampler: Devices = Field(
        "cpu",
        description="device of the sampling engine; several, such as cuda:1,cuda:2, have an engine each, or one for "
        "sampling.tensor_parallel of them. Their number changes no result",
    )
    trainer: Device = Field("cpu", description="device of the update")
    trainer_ranks: int = Field(
        1,
        ge=1,
        le=1024,
        description="processes of a machine that share the update, one a GPU; on CPU each has cpu_threads",
    )
    trainer_nodes: int = Field(
        1, ge=1, le=1024, description="machines that share the update: this one, and those where torchrun is started"
    )
    trainer_address: str | None = Field(
        None,
        pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[1-9]\d{0,4}$",
        examples=["node1:29400"],
        description="HOST:PORT of this machine, in the cluster's own network, where the other ones find it",
    )
    trainer_wait: float = Field(600.0, gt=0, description="seconds that the update waits for machines that are missing")
    judge: Device = Field("cpu", description="device of a reward model")
    offload: Annotated[Literal["none", "optimizer", "all"], Later("none")] = Field(
        "none",
        description="what the trainer's GPU is spared, for main memory and time. optimizer: AdamW's moments, but for "
        "those of a few weights while a step is taken; all: these, and the weights while the trainer does not work, "
        "but not with several ranks",
    )
    cpu_threads: Threads | Literal["auto"] | None = Field(
        None,
        description="threads of one CPU worker; auto: all cores of this machine for each worker, or a share of them "
        "where workers compute at the same time; if empty auto for a pretrained policy, and 1 for a warm start. "
        "Another number changes results in the last bits, and with more than one they depend on how shards meet in the "
        "sampler",
    )

    @property
    def threads(self) -> int:
        """Returns the threads of a worker, in the recipe that it is given; `flows.host.allotment` counts them.

        Raises:
            ValueError: the recipe does not say, and nobody has counted.
        """
        if not isinstance(self.cpu_threads, int):
            raise ValueError(f"devices.cpu_threads is {self.cpu_threads!r}: give a number to a worker's recipe")
        return self.cpu_threads

    @property
    def trainer_world(self) -> int:
        """Counts the processes that share the update, on all machines."""
        return self.trainer_ranks * self.trainer_nodes

    @property
    def samples_on_cpu(self) -> bool:
        """Says whether the sampling engines have no GPU."""
        return self.sampler.startswith("cpu")

    def engines(self, gpus: int) -> tuple[str, ...]:
        """Returns the devices of each sampling engine, which has so many GPUs: those that are named, in their order."""
        names = self.sampler.split(",")
        if self.samples_on_cpu or ":" not in self.sampler:
            return tuple(names)
        return tuple(",".join(names[start : start + gpus]) for start in range(0, len(names), gpus))

    def one_card(self, gpus: int) -> bool:
        """Says whether one of the samplers' GPUs is also one of the update's, if all are processes of this machine.

        Args:
            gpus: of the one engine, if it is on the first ones.
        """
        named = [int(device.partition(":")[2]) for device in self.sampler.split(",") if ":" in device]
        first = int(self.trainer.partition(":")[2] or 0)
        return not {*(named or range(gpus))}.isdisjoint(range(first, first + self.trainer_ranks))

    @model_validator(mode="after")
    def _nodes_have_an_address(self) -> "DevicesConfig":
        if self.trainer_nodes > 1 and self.trainer_address is None:
            raise ValueError(
                f"devices.trainer_nodes {self.trainer_nodes} needs devices.trainer_address, where the others find it: "
                "give this machine's name or address in the cluster's network, and a free port, as node1:29400"
            )
        return self


class StoreConfig(Config):
    """How a run gets on with the store that it is kept in."""

    patience_seconds: float = Field(
        300,
        ge=0,
        le=86_400,
        description="longest wait for a bucket that refuses, as with status 503, or does not answer, in seconds",
    )


class ReplicasConfig(Config):
    """Replicas of one worker; each does whole shards, so that their number changes no result."""

    replicas: int = Field(
        0, ge=0, le=4096, description="most replicas; those that the cluster has no room for join later; 0: not on Ray"
    )
    gpus: int = Field(0, ge=0, le=64, description="GPUs of one replica, over which vLLM splits the model")
    cpus: float = Field(1.0, ge=0, le=1024, description="CPUs that Ray sets aside for one replica")


class ClusterConfig(Config):
    """Which parts run on Ray, and where that is."""

    address: str = Field(
        "local",
        pattern=r"^(local|auto|(ray://)?[A-Za-z0-9._\[\]:-]+:[0-9]+)$",
        examples=["local", "auto", "node1:6379", "ray://node1:10001"],
        description="local: a cluster on this machine for the time of the run; auto: the one of RAY_ADDRESS or of this "
        "machine; HOST:PORT: one that this machine belongs to; ray://HOST:PORT: one that it does not belong to",
    )
    sampler: ReplicasConfig = Field(ReplicasConfig(), description="replicas of the sampling engine")
    judge: ReplicasConfig = Field(ReplicasConfig(), description="replicas of the judge")
    environment: tuple[str, ...] = Field(
        (), max_length=100, description="names of environment variables that replicas get from the flow's process"
    )
    patience_seconds: float = Field(
        600, gt=0, le=10**6, description="longest time without any replica before the run gives up, in seconds"
    )

    @property
    def used(self) -> bool:
        """Says whether anything runs on Ray."""
        return self.sampler.replicas > 0 or self.judge.replicas > 0

    @model_validator(mode="after")
    def _judges_need_one_gpu(self) -> "ClusterConfig":
        if self.judge.gpus > 1:
            raise ValueError(f"cluster.judge.gpus {self.judge.gpus}: a reward model uses one GPU: set it to 1 or 0")
        return self
