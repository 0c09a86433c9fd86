"""Two real vLLM engines on CPU, as replicas on Ray or as processes of this machine, sample what one samples.

To the bit, and also after they took new weights.
"""

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.remote.engine_pool import EnginePool
from flows.remote.ray.cluster import RayCluster
from flows.remote.ray.pool import RayPool
from flows.remote.replica_pool import ReplicaPool
from flows.remote.worker_process import WorkerProcess
from flows.workers.references import PolicyRef
from pipeline.config import ClusterConfig, ReplicasConfig
from pipeline.model.logprobs import sequence_logps
from pipeline.model.policy import load_policy
from pipeline.packing.packing import TokenGroup
from pipeline.records import PROBE, PROMPTS, to_table
from storage.log.manifest import FileRef
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory, weights_digest
from storage.tables.shards import read_table, write_table
from support.recipes import TINY
from support.tiny import tiny_llama

# It starts three engines. Another process's bits: test_vllm_engine.py; replicas: tests/flows/remote/ray/test_pool.py.
pytestmark = [pytest.mark.vllm, pytest.mark.nightly, pytest.mark.timeout(600)]

SHARDS, PROMPTS_OF_ONE = 4, 8
SAMPLING = {**TINY["sampling"], "engine": "vllm", "max_sequences": 32, "cache_gib": 0.25, "context": 64}


def policy(store: Store, seed: int) -> PolicyRef:
    with stage_directory(store, "r", seed, "checkpoint") as staged:
        tiny_llama(staged.path, seed=seed, scale=0.3)
    directory = tiny_llama(Path(store.root) / f"probed-{seed}", seed=seed, scale=0.3)
    model, _ = load_policy(directory, device="cpu")
    ((logp,),) = sequence_logps(model, [TokenGroup("p", [5, 6, 7], [[8, 9, 10, 2]])], 64)
    row = {"prompt_token_ids": [5, 6, 7], "token_ids": [8, 9, 10, 2], "logp": logp, "previous_logp": None}
    return PolicyRef(
        weights_digest(staged.files), staged.files, write_table(store, "r", 0, "probe", to_table([row], PROBE))
    )


def prompts(store: Store) -> FileRef:
    """Prompts of different lengths."""
    numbers = np.random.default_rng(0)
    rows = [
        {"prompt_id": f"p{index}", "text": "t", "messages": None, "source": "test", "reference_answer": None,
         "split": "train", "token_ids": numbers.integers(4, 64, 3 + index % 5).tolist()}
        for index in range(SHARDS * PROMPTS_OF_ONE)
    ]  # fmt: skip
    return write_table(store, "r", 0, "prompts", to_table(rows, PROMPTS))


async def work(
    worker: ReplicaPool | WorkerProcess, policies: list[PolicyRef], given: FileRef
) -> tuple[list[Any], set[str]]:
    """All shards from one policy after the other; and the devices that did them."""
    devices, sampled = set[str](), []

    async def sample(number: int, policy: PolicyRef, shard: int) -> Any:
        rows = list(range(shard * PROMPTS_OF_ONE, (shard + 1) * PROMPTS_OF_ONE))
        return await worker.call(
            "sample", on_progress=lambda metrics: devices.add(metrics.get("device", "")),
            policy=asdict(policy), prompts=[given.to_json()], rows=rows, round=number, stage="candidates",
            shard=shard, held_out=False,
        )  # fmt: skip

    try:
        await worker.start()
        while isinstance(worker, ReplicaPool) and worker.replicas < 2:
            await asyncio.sleep(0.1)
        for number, policy in enumerate(policies, 1):
            drift = await worker.call("use", policy=asdict(policy))
            assert drift["per_token"] < 1e-4  # two float32 computations of one sum: about 1e-6
            sampled += await asyncio.gather(*(sample(number, policy, shard) for shard in range(SHARDS)))
    finally:
        await worker.stop()
    return sampled, devices - {""}


@pytest.mark.parametrize("where", ["ray", "this machine"])
def test_two_replicas_sample_what_one_engine_samples(tmp_path: Path, where: str) -> None:
    store = Store.open(tmp_path / "root")
    run = store.create_run("r", {})
    policies, given = [policy(store, 1), policy(store, 2)], prompts(store)
    arguments = {"root": store.root, "run": "r", "recipe": {**TINY, "sampling": SAMPLING}}
    environment = {"OMP_NUM_THREADS": "1"}
    config = ReplicasConfig(replicas=2)
    cluster = RayCluster(ClusterConfig(sampler=config))

    def engine(place: int) -> WorkerProcess:
        (own := tmp_path / f"scratch {place}").mkdir()
        return WorkerProcess("sampler", {**arguments, "scratch": str(own)}, tmp_path / f"log {place}", environment)

    pool: ReplicaPool
    if where == "ray":
        pool = RayPool("sampler", arguments, run.created, tmp_path / "log", environment, config, 1, cluster, print)
    else:
        pool = EnginePool("sampler", ["cpu", "cpu"], engine, 1, print)
    found, devices = asyncio.run(work(pool, policies, given))
    assert len(devices) == 2
    (tmp_path / "scratch").mkdir()
    alone = {**arguments, "scratch": str(tmp_path / "scratch")}
    one = WorkerProcess("sampler", alone, tmp_path / "log", environment, capacity=2)
    expected, _ = asyncio.run(work(one, policies, given))
    tables = [
        [read_table(store, [FileRef.from_json(shard["file"])]) for shard in shards] for shards in (found, expected)
    ]
    assert sum(table.num_rows for table in tables[0]) == 2 * SHARDS * PROMPTS_OF_ONE * SAMPLING["candidates"]
    for mine, theirs in zip(*tables, strict=True):
        assert mine.equals(theirs)
    first, second = tables[0][0], tables[0][SHARDS]
    assert first["policy"][0] != second["policy"][0]
    assert first["token_ids"] != second["token_ids"]
