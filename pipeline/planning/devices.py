"""What devices and the software on them do: each figure from a data sheet, measured here, or assumed.

Rates are per second and decimal (1 TB/s is 10**12 bytes a second); a GPU's memory is in GB, as data sheets have it.
"""

from dataclasses import dataclass, fields, replace

GB = 10**9
GIB = 2**30
_CORE = "one core of an AMD EPYC (family 26, virtual), one thread, 2026-11-25"


class Fact(float):
    """A figure and its source, which begins with "data sheet", "measured" or "assumed"."""

    source: str

    def __new__(cls, value: float, source: str) -> "Fact":
        """Makes the number, which reckons as a float does."""
        fact = super().__new__(cls, value)
        fact.source = source
        return fact


@dataclass(frozen=True)
class Device:
    """One GPU, or the cores of a processor that one part of a run computes with.

    ``link`` and ``network`` are bytes a second, each way, to a device of the same node and to one of another node.
    Shares are of what the line above says: of operations in an update and in passes without gradient, of any traffic.
    """

    name: str
    bfloat16_flops: Fact
    float32_flops: Fact  # without TF32
    bandwidth: Fact
    memory: Fact | None  # None if nobody said
    link: Fact
    network: Fact
    per_node: int = 8
    cache_block: int = 16  # tokens of a block of the KV cache; whole blocks of a prompt are shared
    update_share: Fact = Fact(0.40, "assumed; Llama 3's pre-training reports 0.38 to 0.43 on H100, arXiv:2407.21783")
    pass_share: Fact = Fact(0.50, "assumed")
    traffic_share: Fact = Fact(0.70, "assumed")
    step_seconds: Fact = Fact(0.7e-3, f"measured: vLLM 0.32's own work in a decoding step; {_CORE}")
    sequence_seconds: Fact = Fact(25e-6, f"measured: vLLM 0.32's own work for a sequence in a step; {_CORE}")
    rule_seconds: Fact = Fact(0.1e-3, f"measured: a rule's verdict on a completion; {_CORE}")
    request_seconds: Fact = Fact(1.0, "assumed: an endpoint's reply to one request of a judge")
    framework_bytes: Fact = Fact(1.5 * GB, "assumed: a process before it has a model")
    store_bandwidth: Fact = Fact(1.0 * GB, "assumed: a local disk; a bucket is often slower")

    def speed(self, precision: str) -> float:
        """Operations a second in ``bfloat16`` or ``float32``."""
        return self.bfloat16_flops if precision == "bfloat16" else self.float32_flops

    def with_threads(self, threads: int) -> "Device":
        """Gives a processor's device so many cores, which share one memory."""
        flops = Fact(threads * self.float32_flops, f"{self.float32_flops.source}; times {threads}")
        return replace(self, bfloat16_flops=flops, float32_flops=flops)

    def facts(self) -> dict[str, Fact]:
        """Gives all figures by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Fact)}


def _gpu(name: str, *sheet: float, port: float, per_node: int = 8) -> Device:
    """Makes a GPU from its data sheet (operations, bandwidth, memory, link) and its share of a node's network."""
    facts = (Fact(value, f"data sheet: NVIDIA {name.upper()}") for value in sheet)
    return Device(name, *facts, network=Fact(port, "assumed: a port of the usual node"), per_node=per_node)


_PRODUCT = Fact(107e9, f"measured: a float32 product of matrices; {_CORE}")
# SXM models, A100 and H100 of 80 GB. Links are half of what data sheets say, which count both directions; operations
# are the dense ones, half of what is said "with sparsity".
DEVICES = {
    "a100": _gpu("a100", 312e12, 19.5e12, 2.039e12, 80 * GB, 300 * GB, port=25 * GB),
    "h100": _gpu("h100", 989e12, 67e12, 3.35e12, 80 * GB, 450 * GB, port=50 * GB),
    "h200": _gpu("h200", 989e12, 67e12, 4.8e12, 141 * GB, 450 * GB, port=50 * GB),
    "l4": _gpu("l4", 121e12, 30.3e12, 0.3e12, 24 * GB, 32 * GB, port=3.1 * GB, per_node=4),
    "cpu": Device(
        "cpu", _PRODUCT, _PRODUCT, bandwidth=Fact(38 * GB, f"measured: a sum over 256 MiB; {_CORE}"), memory=None,
        link=Fact(38 * GB, "assumed: as fast as the memory"), network=Fact(1.25 * GB, "assumed: 10 Gb/s"),
        update_share=Fact(0.66, f"measured: the demo's optimizer steps; {_CORE}"), cache_block=128,
    ),
}  # fmt: skip
