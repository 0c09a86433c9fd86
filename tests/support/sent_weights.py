"""A policy given to a sampler out of this process's memory, as a trainer gives it out of its own."""

from pathlib import Path

from pipeline.config import LoraConfig
from pipeline.model.lora import Adapter
from pipeline.model.policy import load_policy
from pipeline.model.sent_weights import SavedLayout, SentWeights
from pipeline.model.shared_memory import SharedPiece
from pipeline.sampling import Sampler, WeightReceiver


def send(sampler: Sampler, directory: Path, *, adapter: Path | None = None, piece_bytes: int = 30_000) -> int:
    """Sends the weights of a checkpoint, with an adapter merged if one is given; returns the number of pieces.

    Pieces are so small that one decoder layer comes in several.
    """
    assert isinstance(sampler, WeightReceiver)
    model, _ = load_policy(directory, device="cpu")
    layout, carried = SavedLayout.of(model, directory), None
    if adapter is not None:
        carried = Adapter(model, LoraConfig(rank=4, alpha=8), seed=0)
        carried.load(adapter)
    wanted = sampler.wanted_weights()
    assert wanted is not None
    sent = SentWeights(layout, wanted, carried, piece_bytes=piece_bytes)
    assert sent.fit
    for number in range(len(sent)):
        written = SharedPiece(sent.piece(number))
        sampler.take_weights(written.piece)
        written.close()
    sampler.finish_weights(f"policy of {directory.name}")
    return len(sent)
