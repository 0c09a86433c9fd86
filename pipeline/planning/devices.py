"""What devices and the software on them do, in bytes and seconds: from a data sheet, measured here, or assumed."""

from dataclasses import KW_ONLY, dataclass, replace

Parts = dict[str, float]  # seconds or bytes by what they go to
GIB = 2**30
FLOAT, HALF = 4, 2  # bytes of a weight
_CORE = "one core of an AMD EPYC (family 26, virtual), one thread, 2026-11-25"

_TRAINER = "one core of an AMD EPYC (family 25, virtual), 2026-11-30"


class Fact(float):
    """A number and its source, which begins with "data sheet", "measured" or "assumed"."""

    source: str

    def __new__(cls, value: float, source: str) -> "Fact":
        fact = super().__new__(cls, value)
        fact.source = source
        return fact


@dataclass(frozen=True)
class Device:
    """One GPU, or the cores of a processor that one part of a run computes with."""

    name: str
    bfloat16_flops: Fact
    float32_flops: Fact  # without TF32
    bandwidth: Fact  # between the device and its memory
    memory: Fact | None  # None if nobody said
    link: Fact  # each way, to a device of the same node
    _: KW_ONLY
    network: Fact  # each way, to a device of another node
    per_node: int = 8  # assumed
    cache_block: int = 16  # tokens of a block of vLLM's KV cache; whole blocks of a prompt are shared
    update_share: Fact = Fact(0.40, "assumed of the operations in an update; arXiv:2407.21783 reports 0.38 to 0.43")
    pass_share: Fact = Fact(0.50, "assumed of the operations in a pass without gradient")
    traffic_share: Fact = Fact(0.70, "assumed of bandwidth, link and network")
    step_seconds: Fact = Fact(0.7e-3, f"measured: vLLM 0.32's own work in a decoding step; {_CORE}")
    sequence_seconds: Fact = Fact(25e-6, f"measured: vLLM 0.32's own work for a sequence in a step; {_CORE}")
    rule_seconds: Fact = Fact(0.1e-3, f"measured: a rule's verdict on a completion; {_CORE}")
    request_seconds: Fact = Fact(1.0, "assumed: an endpoint's reply to one request of a judge")
    drift: Fact = Fact(1.0, "assumed: nats per sequence by which engines in bfloat16 differ")
    framework_bytes: Fact = Fact(1.5e9, "assumed: a process before it has a model")
    trainer_bytes: Fact = Fact(1.5e9, "assumed: the trainer's process before it has a model")
    adapter_holes: Fact = Fact(0.0, "assumed: memory between the activations of an adapted model, as a share of them")
    sync_bandwidth: Fact = Fact(5e9, "assumed: weights out of the trainer's memory to an engine's GPU")
    store_bandwidth: Fact = Fact(1e9, "assumed: a local disk; a bucket is often slower")

    def speed(self, precision: str) -> float:
        """Gives the operations a second in ``bfloat16`` or ``float32``."""
        return self.bfloat16_flops if precision == "bfloat16" else self.float32_flops

    def with_threads(self, threads: int) -> "Device":
        """Gives a processor's device so many cores, which share one memory; a GPU stays as it is."""
        if self.name != "cpu":
            return self
        flops = Fact(threads * self.float32_flops, f"{self.float32_flops.source}, times {threads}")
        return replace(self, bfloat16_flops=flops, float32_flops=flops)


_PRODUCT = Fact(107e9, f"measured: a float32 product of matrices; {_CORE}")
# As the fields above, then the network. SXM, A100 and H100 of 80 GB; dense operations; links count one way.
_SHEETS = {
    "a100": (312e12, 19.5e12, 2.039e12, 80e9, 300e9, 25e9),
    "h100": (989e12, 67e12, 3.35e12, 80e9, 450e9, 50e9),
    "h200": (989e12, 67e12, 4.8e12, 141e9, 450e9, 50e9),
    "l4": (121e12, 30.3e12, 0.3e12, 24e9, 32e9, 3.1e9),
}
DEVICES = {
    name: Device(name, *(Fact(x, f"data sheet: NVIDIA {name.upper()}") for x in sheet), network=Fact(port, "assumed"))
    for name, (*sheet, port) in _SHEETS.items()
}
DEVICES["cpu"] = Device(
    "cpu", _PRODUCT, _PRODUCT, Fact(38e9, f"measured: a sum over 256 MiB; {_CORE}"), None,
    link=Fact(38e9, "assumed: as fast as the memory"), network=Fact(1.25e9, "assumed: 10 Gb/s"),
    update_share=Fact(0.66, f"measured: the demo's optimizer steps; {_CORE}"), cache_block=128,
    drift=Fact(1e-4, "measured: nats per sequence by which engines in float32 differ, at most"),
    trainer_bytes=Fact(0.4e9, f"measured: a process with torch, transformers and peft; {_TRAINER}"),
    sync_bandwidth=Fact(0.42e9, f"measured: weights out of the trainer's memory to vLLM, with its packing; {_TRAINER}"),
    adapter_holes=Fact(0.8, f"measured: what glibc leaves between blocks, SmolLM2-135M with rank 16; {_TRAINER}"),
)  # fmt: skip
