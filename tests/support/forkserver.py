"""A process that has imported everything once, and forks a ready interpreter for each command.

Starting ``rondo`` with its three workers imports torch four times, for seconds each; a fork takes milliseconds. Beyond
that nothing is simulated: every command and every worker is a process of its own, with the pipes, the signals and the
exit status that it has elsewhere.

    python -m support.forkserver SOCKET MODULE...  the server, and what it imports
    python -IS LAUNCHER ...    what stands in for ``sys.executable``: asks the server, and mirrors the end

A launcher that is killed takes its process with it; a process that ends by a signal ends its launcher by the same one.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PRELOAD = (
    "flows.prefect_api", "flows.cli.main", "flows.run.start", "flows.run.execute", "flows.report.page",
    "flows.prefect_api.server", "flows.remote.worker_main",
    "flows.workers.sampler", "flows.workers.judge", "flows.workers.trainer", "pipeline.sampling.transformers_engine",
    "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "storage.tables.checkpoints",
    "vaderSentiment.vaderSentiment", "prefect.artifacts", "duckdb", "support.chaos",
)  # fmt: skip
_SERVER = "PREFECT_API_URL"
_MESSAGE = 2**18  # bytes; a request holds the environment and a recipe
_START_SECONDS = 600.0  # for what hangs: 14 s of a core, of which a busy machine gives it little

# Small and without imports of its own: it is started once a worker, by the real interpreter.
_LAUNCHER = """#!{python} -IS
import os, signal, socket
from _json import encode_basestring_ascii as quote
import sys
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
connection.connect({path!r})
texts = lambda values: "[" + ",".join(map(quote, values)) + "]"
variables = "{{" + ",".join(quote(k) + ":" + quote(v) for k, v in os.environ.items()) + "}}"
request = '{{"argv":' + texts(sys.argv[1:]) + ',"environment":' + variables + ',"cwd":' + quote(os.getcwd()) + "}}"
socket.send_fds(connection, [request.encode()], [0, 1, 2])
for descriptor in (0, 1, 2):
    os.close(descriptor)
code = int(connection.recv(64) or b"1")
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def forked_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of processes that are forked: libraries that start threads when imported could not be."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    tests = Path(__file__).parents[1]
    return {**environment, **threads, "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)])}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class ForkServer:
    """The client's side.

    Args:
        socket_path: where the server listens.
        environment: variables of every command, on top of those that it is given.
    """

    def __init__(self, socket_path: str, environment: Mapping[str, str]) -> None:
        self.socket_path = socket_path
        self._environment = dict(environment)

    def start(self, *argv: str, directory: Path, environment: Mapping[str, str] | None = None) -> "Command":
        """Starts ``python -m argv...`` with its output in files in the directory."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.socket_path)
        variables = {**self._environment, **(environment or {})}
        request = {"argv": ["-m", *argv], "environment": variables, "cwd": os.getcwd()}
        name = f"{os.getpid()}-{time.monotonic_ns()}"
        outputs = [directory / f"{name}.{stream}" for stream in ("out", "err")]
        with contextlib.ExitStack() as stack:
            null = stack.enter_context(open(os.devnull))
            files = [stack.enter_context(path.open("w")) for path in outputs]
            descriptors = [null.fileno(), *(file.fileno() for file in files)]
            socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
        return Command(connection, outputs)

    def run(
        self, *argv: str, directory: Path, environment: Mapping[str, str] | None = None, timeout: float = 300
    ) -> Done:
        """The same, waited for."""
        return self.start(*argv, directory=directory, environment=environment).wait(timeout)


class Command:
    """A command that was started."""

    def __init__(self, connection: socket.socket, outputs: Sequence[Path]) -> None:
        self._connection, self._outputs = connection, outputs

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return bool(select.select([self._connection], [], [], 0)[0])

    def output(self) -> str:
        """What it has printed so far on standard output."""
        return self._outputs[0].read_text()

    def wait(self, timeout: float = 300) -> Done:
        """Its end; TimeoutError, and the command is killed, where it does not come."""
        with self._connection:
            self._connection.settimeout(timeout)
            code = self._connection.recv(64)
        out, err = (path.read_text() for path in self._outputs)
        assert code, f"the forkserver is gone: {err}"
        return Done(int(code), out, err)

    def kill(self) -> None:
        """Kills it, by closing the connection."""
        self._connection.close()


@contextlib.contextmanager
def forkserver(
    directory: Path, environment: Mapping[str, str], prefix: Sequence[str] = (), preload: Sequence[str] = PRELOAD
) -> Iterator[ForkServer]:
    """A running server.

    Args:
        directory: for its socket and log; its path must be short.
        environment: variables of the server and of every command.
        prefix: a command that starts the server, such as ``unshare``.
        preload: the modules that it imports.
    """
    path = str(directory / "forkserver")
    variables = {**environment, "RONDO_ZYGOTE_LAUNCHER": _write_launcher(directory, path)}
    with (directory / "forkserver.log").open("wb") as log:
        server = subprocess.Popen(
            [*prefix, sys.executable, "-m", "support.forkserver", path, *preload],
            env=variables,
            stderr=log,
            stdin=subprocess.PIPE,
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not os.path.exists(path):  # it is bound when everything is imported
            assert server.poll() is None, (directory / "forkserver.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield ForkServer(path, variables)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(30)


def _write_launcher(directory: Path, path: str) -> str:
    launcher = directory / "python"
    launcher.write_text(_LAUNCHER.format(python=sys.executable, path=path))
    launcher.chmod(0o700)
    return str(launcher)


class _Server:
    """Forks, reaps, and tells each launcher how its process ended."""

    def __init__(self, path: str, variables: Mapping[str, str]) -> None:
        self._variables = variables
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path + ".new")
        self._listener.listen(64)
        os.rename(path + ".new", path)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(0, selectors.EVENT_READ, self._end)
        self._running: dict[int, tuple[int, socket.socket]] = {}
        self._connections: dict[int, socket.socket] = {}

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fd in self._selector.get_map():
                    key.data(key.fd)

    def _accept(self, _: int) -> None:
        connection, _address = self._listener.accept()
        self._connections[connection.fileno()] = connection
        self._selector.register(connection, selectors.EVENT_READ, self._receive)

    def _receive(self, descriptor: int) -> None:
        connection = self._connections[descriptor]
        data, descriptors, _flags, _address = socket.recv_fds(connection, _MESSAGE, 3)
        if not data:  # its launcher is gone
            self._selector.unregister(connection)
            del self._connections[descriptor]
            connection.close()
            for pid, (_pidfd, client) in self._running.items():
                if client is connection:
                    os.kill(pid, signal.SIGKILL)
            return
        pid = os.fork()
        if pid == 0:
            request = json.loads(data)
            request["environment"] = {**self._variables, **request["environment"]}
            _become(request, descriptors, [*self._connections, self._listener.fileno()])
        for copy in descriptors:
            os.close(copy)
        pidfd = os.pidfd_open(pid)
        self._running[pid] = (pidfd, connection)
        self._selector.register(pidfd, selectors.EVENT_READ, lambda _, pid=pid: self._reap(pid))

    def _reap(self, pid: int) -> None:
        pidfd, client = self._running.pop(pid)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if client.fileno() >= 0:  # its launcher is there
            del self._connections[client.fileno()]
            with contextlib.suppress(OSError):
                client.send(str(code).encode())
            self._selector.unregister(client)
            client.close()

    def _end(self, _: int) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _become(request: dict[str, object], descriptors: Sequence[int], close: Sequence[int]) -> None:
    """The child: takes its pipes, arguments and environment, and runs the module's ``main``."""
    code = 1
    try:
        for target, source in enumerate(descriptors):
            os.dup2(source, target)
        for descriptor in (*descriptors, *close):
            os.close(descriptor)
        os.setsid()
        os.chdir(str(request["cwd"]))
        other_server = os.environ.get(_SERVER) != request["environment"].get(_SERVER)  # type: ignore[attr-defined]
        os.environ.clear()
        os.environ.update(request["environment"])  # type: ignore[arg-type]
        tempfile.tempdir = None  # TMPDIR may be another one
        if other_server:  # Prefect has read its settings already
            importlib.import_module("prefect.context").refresh_global_settings_context()
        sys.executable = os.environ["RONDO_ZYGOTE_LAUNCHER"]
        _option, module, *arguments = request["argv"]  # type: ignore[misc]
        sys.argv = [module, *arguments]
        if faults := os.environ.get("RONDO_CHAOS"):
            importlib.import_module("support.chaos").arm(faults)
        if poison := os.environ.get("RONDO_POISON"):
            importlib.import_module("support.poisoned").arm(poison)
        importlib.import_module(module).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    path, *preload = sys.argv[1:]
    given = dict(os.environ)
    for module in preload:
        importlib.import_module(module)
    # What a module sets when it is imported, such as the switches of vLLM, holds in the child too.
    variables = {name: value for name, value in os.environ.items() if name not in given}
    threads = [Path(f"/proc/self/task/{thread}/comm").read_text().strip() for thread in os.listdir("/proc/self/task")]
    # Arrow's allocator knows of forks; any other thread would be missing in the child, and what it holds stay locked.
    assert set(threads) <= {"python", "jemalloc_bg_thd"}, threads
    gc.collect()
    gc.freeze()
    _Server(path, variables).serve()


if __name__ == "__main__":
    main()
