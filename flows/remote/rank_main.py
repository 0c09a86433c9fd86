"""A rank of a worker. torchrun starts several: the parent talks to rank zero, and the others do as it does.

    torchrun ... -m flows.remote.rank_main trainer '{"root": ...}'          # started by `WorkerProcess`
    torchrun ... -m flows.remote.rank_main [--root ROOT]                    # on each other machine, started by people

The first rank of the parent's machine is rank zero, whichever number torchrun has given to that machine. It serves the
parent as any worker does. It passes requests that concern all ranks on, as JSON in the rendezvous store. The others
wait there, and not in a collective operation, which would end by its timeout. If a rank fails, it writes its error
there too. The parent hears of it at once, and ends all ranks, as some may be waiting for the one that failed.

    work            what other machines need to know: kind, arguments, and the number of the parent's machine
    request N       the Nth request that was passed on, until all have done it; null at the end
    done            how many requests ranks have done, all together; the first of each is to construct its worker
    error           why a rank has failed
    scratch P       the directory for local files of the machine P
    beat P          counts up as long as the machine P is there
"""

import argparse
import json
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from pydantic import ValidationError

from flows.errors import NodeError, WorkerDiedError
from flows.host.scratch import held_directory
from flows.registry.catalog import existing_store
from flows.remote.dispatcher import describe, public_method
from flows.remote.torchrun import address_towards, interfaces, split_address
from flows.remote.worker_main import ENDED_BY_PARENT, WORKERS, Pipe, serve
from pipeline.errors import RondoError
from pipeline.model.distributed import rendezvous_store
from pipeline.recipe import Recipe
from storage.errors import StoreError

POLL_SECONDS = 0.01
HEAR_SECONDS = 0.1
BEAT_SECONDS = 0.5
SILENT_SECONDS = 60.0
"""A machine whose beat has not changed for so long is lost."""

TORCHRUN_SECONDS = 3.0
"""More than torchrun takes to see that a rank died, and to end the others."""

FAILED = 1
WAIT = timedelta(hours=1)
"""A wait for a request ends with an error after this, and begins anew."""


def main() -> None:
    """Takes part until the parent closes the pipe, or torchrun ends."""
    parser = argparse.ArgumentParser(prog="rank_main", description="A rank of a run's update; see docs/machines.md.")
    parser.add_argument("kind", nargs="?", help="what the worker is; given by the run itself")
    parser.add_argument("arguments", nargs="?", help="its arguments as JSON; given by the run itself")
    parser.add_argument("--root", default=os.environ.get("RONDO_ROOT"), help="the store, if it is elsewhere here")
    given = parser.parse_args()
    ranks = Ranks()
    if given.arguments is None:
        ranks.join(given.root)
    else:
        ranks.lead(given.kind, json.loads(given.arguments))
    os._exit(ENDED_BY_PARENT)  # gloo's threads do not always outlive the interpreter in order


class Ranks:
    """What one rank knows of the others."""

    def __init__(self) -> None:
        self._place, self._each = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        self._node, self._nodes = int(os.environ["GROUP_RANK"]), int(os.environ["GROUP_WORLD_SIZE"])
        # Each thread has a store of its own: one that waits in it would hold up another.
        self._store, self._torchrun = rendezvous_store("requests"), os.getppid()
        self._passed_on = 0

    def lead(self, kind: str, arguments: dict[str, Any]) -> None:
        """Works as a rank of the parent's machine."""
        pipe = Pipe()
        os.environ["RANK"] = str(self._place)
        heard = [pipe.descriptor] if self._place > 0 else []  # rank zero reads from it, and hears the end there
        threading.Thread(target=self._end_with_parent, args=(heard,), daemon=True).start()
        if self._place == 0:
            self._serve(pipe, kind, arguments)
        else:
            pipe.keep_silent()
            self._follow(kind, arguments)

    def _serve(self, pipe: Pipe, kind: str, arguments: dict[str, Any]) -> None:
        """Works as rank zero: serves the parent."""
        self._store.set("work", json.dumps({"kind": kind, "arguments": arguments, "node": self._node}))
        threading.Thread(target=self._hear, args=(pipe, self._store.clone()), daemon=True).start()
        last = self._store.clone()

        def construct() -> Any:
            with self._explained():
                worker = WORKERS[kind](**arguments)
                self._await_done()
            return worker

        def at_end() -> None:
            with suppress(dist.DistError):
                if self._all_done(last):
                    last.set(f"request {self._passed_on + 1}", "null")
                    return
            os._exit(FAILED)  # otherwise torchrun would wait for ranks that wait for this one

        serve(pipe, construct, self._together, at_end)
        threading.Event().wait()  # for the parent, which ends all ranks

    def join(self, root: str | None) -> None:
        """Works as a rank of another machine."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        held = ExitStack()
        if self._place == 0:
            self._store.set(f"scratch {self._node}", str(held.enter_context(held_directory("rondo-ranks"))))
        threading.Thread(target=self._leave_with_torchrun, args=(held, self._store.clone()), daemon=True).start()
        work = json.loads(self._store.get("work"))
        number = (self._node - work["node"]) % self._nodes * self._each + self._place
        arguments = {**work["arguments"], "scratch": self._store.get(f"scratch {self._node}").decode()}
        arguments["root"] = root or arguments["root"]
        own = address_towards(*split_address(arguments["recipe"]["devices"]["trainer_address"]))
        os.environ.update(interfaces(own), RANK=str(number))
        with held:
            self._follow(work["kind"], arguments, joined=True)

    @contextmanager
    def _together(self, request: dict[str, Any]) -> Iterator[None]:
        """Has the other ranks do a request too, and ends once they have."""
        with self._explained():
            self._passed_on += 1
            self._store.set(f"request {self._passed_on}", json.dumps(request))
            yield
            self._await_done()
            self._store.delete_key(f"request {self._passed_on}")

    def _await_done(self) -> None:
        while not self._all_done(self._store):
            time.sleep(POLL_SECONDS)

    def _all_done(self, store: dist.Store) -> bool:
        due = (self._passed_on + 1) * (self._each * self._nodes - 1)
        return bool(store.add("done", 0) >= due)

    def _follow(self, kind: str, arguments: dict[str, Any], *, joined: bool = False) -> None:
        """Runs the follower loop: does what rank zero passes on, and speaks only if it fails."""
        try:
            with self._explained():
                if joined:
                    self._check_joined(arguments)
                worker, number = WORKERS[kind](**arguments), 0
                while True:
                    self._store.add("done", 1)
                    number += 1
                    self._await(f"request {number}")
                    request = json.loads(self._store.get(f"request {number}"))
                    if request is None:
                        return
                    public_method(worker, request["method"])(**request["arguments"])
        except Exception as error:
            with suppress(dist.DistError):
                self._store.set("error", json.dumps(describe(error)))
        threading.Event().wait()

    def _await(self, key: str) -> None:
        while not self._store.check([key]):
            with suppress(RuntimeError):  # it took too long; if the store is gone, the check above raises
                self._store.wait([key], WAIT)

    def _check_joined(self, arguments: dict[str, Any]) -> None:
        """Raises what is wrong with this machine, so that rank zero tells people.

        Raises:
            NodeError: it has another version of rondo, or another number of ranks.
            ConfigError, RunNotFoundError: it does not see the run's store.
        """
        try:
            devices = Recipe.model_validate(arguments["recipe"]).devices
        except ValidationError as error:
            raise NodeError(
                "a machine that has joined does not know the run's recipe "
                f"({'.'.join(map(str, error.errors()[0]['loc']))}): install the same version of rondo on all"
            ) from None
        if self._each != devices.trainer_ranks:
            raise NodeError(
                f"a machine has joined with --nproc-per-node={self._each}, and devices.trainer_ranks is "
                f"{devices.trainer_ranks}: start torchrun there with as many"
            )
        existing_store(arguments["root"]).run(arguments["run"])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raises WorkerDiedError if another machine was lost; a rank that died here is left to torchrun."""
        try:
            yield
        except (RondoError, StoreError):
            raise
        except Exception as error:
            time.sleep(TORCHRUN_SECONDS)  # torchrun ends this rank meanwhile, if another one here has died
            if self._nodes > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise WorkerDiedError(f"{self._one_of_the_machines} was lost: {error}") from error
            raise

    @property
    def _one_of_the_machines(self) -> str:
        return f"one of the {self._nodes} machines that share the update"

    def _hear(self, pipe: Pipe, store: dist.Store) -> None:
        """Tells the parent why another rank has failed, or that a machine is silent."""
        beats = {node: (0, time.monotonic()) for node in range(self._nodes) if node != self._node}
        error = None
        while error is None:
            time.sleep(HEAR_SECONDS)
            try:
                error = json.loads(store.get("error")) if store.check(["error"]) else self._silent(store, beats)
            except dist.DistError as lost:
                time.sleep(TORCHRUN_SECONDS)
                error = describe(WorkerDiedError(f"{self._one_of_the_machines} was lost: {lost}"))
        pipe.send({"id": None, "error": error})

    def _silent(self, store: dist.Store, beats: dict[int, tuple[int, float]]) -> dict[str, str] | None:
        for node, (before, since) in beats.items():
            if (beat := store.add(f"beat {node}", 0)) != before:
                beats[node] = (beat, time.monotonic())
            elif (silence := time.monotonic() - since) > SILENT_SECONDS:
                gone = f"{self._one_of_the_machines} is gone: nothing was heard of it for {silence:.0f} s"
                return describe(WorkerDiedError(gone))
        return None

    def _end_with_parent(self, descriptors: list[int]) -> None:
        """Ends this process when no process can write to the parent's pipe any more, or torchrun is gone."""
        hang_up = select.poll()
        for descriptor in descriptors:
            hang_up.register(descriptor, 0)
        while not hang_up.poll(500) and os.getppid() == self._torchrun:
            pass
        os._exit(ENDED_BY_PARENT)

    def _leave_with_torchrun(self, held: ExitStack, store: dist.Store) -> None:
        """Gives signs of life until torchrun asks to end, or is gone; also while the main thread waits for ranks."""
        while signal.sigtimedwait({signal.SIGTERM}, BEAT_SECONDS) is None and os.getppid() == self._torchrun:
            if self._place == 0:
                with suppress(dist.DistError):
                    store.add(f"beat {self._node}", 1)
        held.close()
        os._exit(ENDED_BY_PARENT)


if __name__ == "__main__":
    main()
