"""A proxy on loopback in front of a Prefect server, a process of its own, which a test has answer, hang or vanish.

    python -m support.prefect_proxy UPSTREAM_PORT DIRECTORY

``DIRECTORY/port`` says where it listens, ``DIRECTORY/mode`` what it does from now on (``pass``, ``refuse``, or ``hang``
with a pattern of requests), and ``DIRECTORY/requests`` has a line for each: ``passed`` or ``held``, and the request,
such as ``GET /api/health``.
A request that is held is never answered. Each other connection carries one request, or one websocket.
"""

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK_SECONDS = 0.05
HANGS = 120.0
ALL_BUT_HEALTH = "^(?!GET /api/health)"


class PrefectProxy:
    """The test's side."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.url = f"http://127.0.0.1:{(directory / 'port').read_text()}/api"

    def passes(self) -> None:
        """Answers what the server answers."""
        _replace(self._directory / "mode", "pass")

    def hangs(self, pattern: str = ALL_BUT_HEALTH, *, after: int = 0) -> None:
        """Accepts requests that match, and never answers them, but for the first so many; nor do websockets go on."""
        _replace(self._directory / "mode", f"hang {after} {pattern}")

    def vanishes(self) -> None:
        """Ends all connections and takes no more."""
        _replace(self._directory / "mode", "refuse")

    def requests(self, what: str) -> list[str]:
        """The requests that were ``passed``, or ``held``."""
        lines = (self._directory / "requests").read_text().splitlines()
        return [line.removeprefix(what).strip() for line in lines if line.startswith(what)]

    def wait_for(self, what: str, pattern: str) -> None:
        """Waits until a request that matches was passed, or held."""
        _until(lambda: any(re.search(pattern, one) for one in self.requests(what)), f"request {what}: {pattern}")


@contextlib.contextmanager
def prefect_proxy(upstream: str, directory: Path) -> Iterator[PrefectProxy]:
    """Starts one in front of the server at this address, such as ``http://127.0.0.1:4200/api``."""
    port = upstream.removesuffix("/api").rpartition(":")[2]
    _replace(directory / "mode", "pass")
    (directory / "requests").touch()
    process = subprocess.Popen([sys.executable, __file__, port, str(directory)])
    try:
        _until(lambda: (directory / "port").exists() or process.poll() is not None, "proxy")
        yield PrefectProxy(directory)
    finally:
        process.kill()
        process.wait()


def _until(found: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + HANGS
    while not found():
        assert time.monotonic() < until, f"no {what} within {HANGS:.0f} s"
        time.sleep(LOOK_SECONDS)


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


class _Proxy:
    def __init__(self, upstream: int, directory: Path) -> None:
        self._upstream, self._directory, self._port = upstream, directory, 0
        self._open: set[asyncio.StreamWriter] = set()
        self._passed: list[str] = []

    async def run(self) -> None:
        while True:
            server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
            self._port = server.sockets[0].getsockname()[1]
            _replace(self._directory / "port", str(self._port))
            while self._mode() != "refuse":
                await asyncio.sleep(LOOK_SECONDS)
            server.close()
            for writer in [*self._open]:
                writer.transport.abort()
            while self._mode() == "refuse":
                await asyncio.sleep(LOOK_SECONDS)

    def _mode(self) -> str:
        return (self._directory / "mode").read_text()

    def _held(self, request: str) -> bool:
        mode, after, pattern = [*self._mode().split(" ", 2), "", ""][:3]
        if mode != "hang" or re.search(pattern, request) is None:
            return False
        return sum(re.search(pattern, one) is not None for one in self._passed) >= int(after)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.ExitStack() as ends:
            self._keep(writer, ends)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            request = " ".join(head.split(" ", 2)[:2])
            held = self._held(request)
            self._passed += [] if held else [request]
            with (self._directory / "requests").open("a") as log:
                log.write(f"{'held' if held else 'passed'} {request}\n")
            if held:
                await reader.read()  # until the other side gives up
                return
            there, onward = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._keep(onward, ends)
            websocket = "\r\nupgrade: websocket" in head.lower()
            if not websocket:
                head = re.sub(r"(?i)\r\nconnection: [^\r]*", "", head).replace("\r\n", "\r\nConnection: close\r\n", 1)
            onward.write(head.encode("latin-1"))
            stalls = request if websocket else None
            await asyncio.gather(self._pump(reader, onward, stalls), self._pump(there, writer, stalls))

    def _keep(self, writer: asyncio.StreamWriter, ends: contextlib.ExitStack) -> None:
        self._open.add(writer)
        ends.callback(writer.close)
        ends.callback(self._open.discard, writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stalls: str | None) -> None:
        while data := await reader.read(2**16):
            while stalls is not None and self._held(stalls):
                await asyncio.sleep(LOOK_SECONDS)
            writer.write(data)
            await writer.drain()
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(_Proxy(int(sys.argv[1]), Path(sys.argv[2])).run())
