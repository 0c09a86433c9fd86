"""Torchrun with a rendezvous of its own: nodes that know their number meet where RONDO_MEETING says.

    RONDO_MEETING=tcp://10.0.0.5:29400/3 python -m flows.remote.rendezvous --rdzv-backend=rondo --nnodes=2 \\
        --rdzv-conf=node=1 --nproc-per-node=8 -m flows.remote.rank_main trainer '{"root": "runs", ...}'

Of torchrun's own, `c10d` unpickles what lies in its store, which on a network is whatever anyone wrote there, and both
`c10d` and `static` open a store that listens on every network of the machine. This one opens none, and all that the
nodes exchange through the one it is given is JSON.
"""

from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)
from torch.distributed.run import main

from pipeline.model.distributed import meeting

BACKEND = "rondo"


class Meeting(RendezvousHandler):  # type: ignore[misc]
    """All nodes start once, with a number each, and nobody comes later: who dies ends the group."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        self._node = int(parameters.get("node"))
        self._nodes: int = parameters.max_nodes
        self._run_id: str = parameters.run_id

    def get_backend(self) -> str:
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        # The last is what ranks are told of a store of torchrun's: they meet as the nodes do, and there is none.
        return RendezvousInfo(meeting("torchrun"), self._node, self._nodes, RendezvousStoreInfo("localhost", 0))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing to close: the store is the head's."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return self._run_id

    def shutdown(self) -> bool:
        return True


if __name__ == "__main__":
    rendezvous_handler_registry.register(BACKEND, Meeting)
    main()
