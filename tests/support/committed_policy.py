"""A tiny policy in a store, with the probe that a sampler compares itself with."""

from pathlib import Path

from flows.workers.references import PolicyRef
from pipeline.model.logprobs import sequence_logps
from pipeline.model.policy import load_policy
from pipeline.packing.packing import TokenGroup
from pipeline.records import PROBE, to_table
from storage.log.store import Store
from storage.tables.checkpoints import stage_directory, weights_digest
from storage.tables.shards import write_table
from support.tiny import tiny_llama

PROMPT, ANSWER = [5, 6, 7], [8, 9, 10, 2]


def committed_policy(
    store: Store,
    seed: int,
    *,
    probed_seed: int | None = None,
    previous: float | None = None,
    thinking: str | None = None,
) -> PolicyRef:
    """A committed policy of this seed; its probe is that of another where ``probed_seed`` says so."""
    with stage_directory(store, "r", 0, "checkpoint") as staged:
        tiny_llama(staged.path, seed=seed, scale=0.3, thinking=thinking)
    probed = tiny_llama(Path(store.root) / f"probed-{seed}-{probed_seed}", seed=probed_seed or seed, scale=0.3)
    model, _ = load_policy(probed, device="cpu")
    ((logp,),) = sequence_logps(model, [TokenGroup("p", PROMPT, [ANSWER])], 64)
    rows = [{"prompt_token_ids": PROMPT, "token_ids": ANSWER, "logp": logp, "previous_logp": previous}]
    probe = write_table(store, "r", 0, "probe", to_table(rows, PROBE))
    return PolicyRef(weights_digest(staged.files), staged.files, probe)
