"""The receiving end of vLLM's weight transfer, for weights in shared memory.

vLLM has engines of its own for GPUs. This one takes pieces of `pipeline.model.shared_memory`, and works wherever vLLM
does: it leaves to vLLM's loader what becomes of a tensor (fused, cut, packed for a kernel, brought to a GPU).
"""

from dataclasses import dataclass
from typing import Any

from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from pipeline.model.shared_memory import read_piece
from pipeline.model.weight_pieces import WeightPiece

BACKEND = "rondo_shared_memory"


@dataclass
class _Nothing(WeightTransferInitInfo):  # type: ignore[misc]
    """What has to be agreed on before the first transfer."""


@dataclass
class _Piece(WeightTransferUpdateInfo):  # type: ignore[misc]
    piece: WeightPiece


class SharedMemoryEngine(WeightTransferEngine[_Nothing, _Piece]):  # type: ignore[misc]
    """Loads the weights of one piece after the other into the model that the engine has."""

    init_info_cls = _Nothing
    update_info_cls = _Piece
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: _Nothing) -> None:
        """Does nothing: a piece says by itself where it is."""

    def start_weight_update(self) -> None:
        """Has the model take weights in a checkpoint's names and shapes again."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads a piece; all of it is there when this returns, on a GPU as well, as its memory cannot be pinned."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: _Piece) -> None:
        """Hands a piece's tensors to the model's loader, which may keep some until their layer has all of its own."""
        self.model.load_weights(read_piece(update_info.piece))

    def finish_weight_update(self) -> None:
        """Packs what has not been packed layer by layer."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Does nothing: no piece is held."""


WeightTransferEngineFactory.register_engine(BACKEND, SharedMemoryEngine)
