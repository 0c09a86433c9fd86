"""Every figure that a plan rests on, with its source: what devices do, and what is assumed of software.

Rates are per second and decimal (1 TB/s is 10**12 bytes a second); memory of a GPU is in the unit of its datasheet, GB.
"""

from dataclasses import dataclass, replace
from typing import Literal

GB = 10**9
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What one device does at most, by its maker.

    Attributes:
        flops: multiplications and additions of a dense product of matrices, a second, in the precision that rondo
            samples and judges with there: bfloat16 with sums in float32 on a GPU, float32 on a CPU.
        float32_flops: the same in float32, without TF32, which nothing here turns on.
        bandwidth: bytes a second between the device and its memory.
        memory: bytes of it; None where it is the machine's, and not checked.
        link: bytes a second, each way, to another device of the same node.
        network: bytes a second, each way, that each device has to devices of other nodes.
        per_node: devices of a node.
        element_bytes: of a weight while it computes.
        cache_block: tokens of a block of the KV cache: only whole blocks of a prompt are shared by its candidates.
        logit_seconds: time to draw from a distribution, per entry of the vocabulary, where it is not lost in the rest.
    """

    name: str
    flops: float
    float32_flops: float
    bandwidth: float
    memory: float | None
    link: float
    network: float
    per_node: int
    element_bytes: int = 2
    cache_block: int = 16
    logit_seconds: float = 0.0
    source: str = ""

    def computing_in(self, precision: Literal["float32", "bfloat16"]) -> "Device":
        """The device as work in this precision finds it; processors know float32 alone."""
        if precision == "bfloat16":
            return self
        return replace(self, flops=self.float32_flops, element_bytes=4)

    @property
    def memory_gb(self) -> float:
        """Its memory in GB; 0 where it is not known."""
        return (self.memory or 0.0) / GB

    @property
    def is_cpu(self) -> bool:
        """Whether it is a core of a processor."""
        return self.name == "cpu"


# Links are half of what datasheets call NVLink's or PCIe's bandwidth, which counts both ways. Networks are those of the
# makers' reference nodes: a port of 200 Gb/s (A100) or 400 Gb/s (H100, H200) a GPU; for L4 one of 100 Gb/s for four.
DEVICES = {
    device.name: device
    for device in (
        Device(
            "a100", 312e12, 19.5e12, 2.039e12, 80 * GB, 300 * GB, 25 * GB, 8,
            source="NVIDIA A100 80GB SXM datasheet: 312 TFLOPS BF16 dense, 19.5 FP32; 2,039 GB/s, 80 GB, "
            "NVLink 600 GB/s",
        ),
        Device(
            "h100", 989e12, 67e12, 3.35e12, 80 * GB, 450 * GB, 50 * GB, 8,
            source="NVIDIA H100 SXM datasheet: 1,979 TFLOPS BF16 with sparsity, half of it dense; 3.35 TB/s, 80 GB, "
            "NVLink 900 GB/s; 67 TFLOPS FP32",
        ),
        Device(
            "h200", 989e12, 67e12, 4.8e12, 141 * GB, 450 * GB, 50 * GB, 8,
            source="NVIDIA H200 SXM datasheet: compute as H100; 4.8 TB/s, 141 GB, NVLink 900 GB/s",
        ),
        Device(
            "l4", 121e12, 30.3e12, 0.3e12, 24 * GB, 32 * GB, 3.1 * GB, 4,
            source="NVIDIA L4 datasheet: 242 TFLOPS BF16 with sparsity, half of it dense, 30.3 FP32; 300 GB/s, 24 GB, "
            "PCIe 4 x16 64 GB/s",
        ),
        Device(
            "cpu", 107e9, 107e9, 38e9, None, 38 * GB, 1.25 * GB, 1,
            element_bytes=4, cache_block=128, logit_seconds=7e-9,
            source="one core of the development machine (AMD EPYC, family 26, virtual), measured 2026-11-25 with one "
            "thread: torch.mm in float32 104 to 111 GFLOP/s, a sum over 256 MiB 38 GB/s, vLLM's sampler 7 ns a logit; "
            "network of 10 Gb/s assumed",
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Assumptions:
    """What software makes of a device. Each is an assumption until `rondo plan --calibrate` puts a measurement in.

    Attributes:
        update_efficiency: share of ``flops`` that the update's products reach. Llama 3's pre-training reports 38% to
            43% in bfloat16 on H100 (arXiv:2407.21783, table 4).
        prefill_efficiency: the same of passes without gradient over many tokens.
        decode_efficiency: the same of the products of a decoding step.
        bandwidth_efficiency: share of ``bandwidth`` that reading weights and KV cache reaches while decoding.
        link_efficiency: share of links and networks that collectives reach.
        step_seconds: work of the host in a decoding step, whatever its batch: vLLM 0.32 in the sampler's process, a
            model of one layer and width 32, measured on the development machine (0.72 ms with one sequence).
        sequence_seconds: the same for each sequence of the batch (0.032 ms, of which 0.007 are drawing from 1,024
            logits on the CPU). It does not shrink with a faster GPU, and vLLM does not spread it over tensor-parallel
            GPUs; a GPU's own launches for seeded drawing are in it only as far as a CPU's are.
        reduce_seconds: latency of one collective between GPUs of a node.
        update_step_seconds: of the host, for an optimizer step: packing, checks, metrics.
        rule_seconds: a judge that is a rule (a lexicon, a parser, a pattern), for one answer, reading and writing
            included; measured on the development machine.
        request_seconds: an LLM judge's reply to one request, over ``concurrency`` of them at a time.
        store_bandwidth: bytes a second between a machine and the store, each way: a local NVMe disk with fsync and
            SHA-256 (about 2 GB/s on one core with SHA extensions); a bucket is often slower.
        handover_seconds: what a hand-over takes beside the bytes: reset of caches and the check on the probe.
        framework_bytes: of a process on a GPU, for the CUDA context, libraries and workspaces.
        sampler_activations: share of the GPU that vLLM keeps for activations, as the sampler asks for.
    """

    update_efficiency: float = 0.40
    prefill_efficiency: float = 0.50
    decode_efficiency: float = 0.50
    bandwidth_efficiency: float = 0.70
    link_efficiency: float = 0.70
    step_seconds: float = 0.7e-3
    sequence_seconds: float = 25e-6
    reduce_seconds: float = 10e-6
    update_step_seconds: float = 5e-3
    rule_seconds: float = 0.1e-3
    request_seconds: float = 1.0
    store_bandwidth: float = 1.0 * GB
    handover_seconds: float = 0.02
    framework_bytes: float = 1.5 * GB
    sampler_activations: float = 0.05


ASSUMED = Assumptions()

LOGITS_AT_ONCE = 1 << 27
"""Logits of a chunk of the update on a GPU: ``CHUNK_ELEMENTS`` in ``pipeline/model/logprobs.py``."""

# Bytes of a row in the store, from the default recipe's round 3, run on the development machine on 2026-11-25.
LOGPROB_BYTES = 3.03
"""Of a float32 with its bytes split and compressed: the sign and exponent shrink, the mantissa does not."""
TEXT_BYTES_PER_TOKEN = 1.6
"""About four characters a token, which zstd makes 2.5 times smaller; an assumption (the demo's words: 1.0)."""
CANDIDATE_BYTES, JUDGMENT_BYTES, PREFERENCE_BYTES, PROMPT_BYTES = 6.4, 29.0, 72.0, 11.0
"""Of a row, without its tokens and texts."""
STEP_BYTES, SCORE_BYTES = 160.0, 38.0
"""Of an optimizer step's metrics, and of a held-out answer's three log-probabilities."""
FILE_BYTES = 3_300
"""Of a Parquet file's footer, page headers and checksums."""
ENTRY_BYTES = 650
"""Of an entry in the log."""
TOKENIZER_BYTES_PER_ENTRY = 60
"""Of a tokenizer's files beside each checkpoint, per entry of the vocabulary (Qwen's 150,000 entries: about 11 MB)."""
