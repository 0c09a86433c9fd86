"""A proxy on loopback in front of a Prefect server, a process of its own, which a test has answer, hang or vanish.

    python -m support.prefect_proxy UPSTREAM_PORT DIRECTORY

``DIRECTORY/port`` says where it listens, ``DIRECTORY/mode`` what it does from now on (``pass``, ``refuse``, or ``hang``
with a pattern of paths), and ``DIRECTORY/requests`` has a line for each request: ``passed`` or ``held``, and its path.
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
ALL_BUT_HEALTH = r"^(?!/api/health)"


class PrefectProxy:
    """The test's side."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.url = f"http://127.0.0.1:{(directory / 'port').read_text()}/api"

    def passes(self) -> None:
        """Answers what the server answers."""
        _replace(self._directory / "mode", "pass")

    def hangs(self, pattern: str = ALL_BUT_HEALTH) -> None:
        """Accepts requests whose path matches, and never answers them; nor do websockets go on."""
        _replace(self._directory / "mode", f"hang {pattern}")

    def vanishes(self) -> None:
        """Ends all connections and takes no more."""
        _replace(self._directory / "mode", "refuse")

    def requests(self, what: str) -> list[str]:
        """The paths of the requests that were ``passed``, or ``held``."""
        lines = (self._directory / "requests").read_text().splitlines()
        return [path for found, path in map(str.split, lines) if found == what]

    def wait_for(self, what: str, pattern: str) -> None:
        """Waits until a request whose path matches was passed, or held."""
        _until(lambda: any(re.search(pattern, path) for path in self.requests(what)), f"request {what}: {pattern}")


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

    def _held(self, path: str) -> bool:
        mode, _, pattern = self._mode().partition(" ")
        return mode == "hang" and re.search(pattern, path) is not None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            path = head.split(" ", 2)[1]
            held = self._held(path)
            with (self._directory / "requests").open("a") as log:
                log.write(f"{'held' if held else 'passed'} {path}\n")
            there, onward = await asyncio.open_connection("127.0.0.1", self._upstream)
            self._open.add(onward)
            if "\r\nupgrade: websocket" not in head.lower():
                head = re.sub(r"(?i)\r\nconnection: [^\r]*", "", head).replace("\r\n", "\r\nConnection: close\r\n", 1)
            if not held:
                onward.write(head.encode("latin-1"))
            await asyncio.gather(self._pump(reader, onward, path), self._pump(there, writer, path))
        for end in (writer, onward):
            self._open.discard(end)
            end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> None:
        while data := await reader.read(2**16):
            while self._held(path):
                await asyncio.sleep(LOOK_SECONDS)
            writer.write(data)
            await writer.drain()
        writer.write_eof()


if __name__ == "__main__":
    asyncio.run(_Proxy(int(sys.argv[1]), Path(sys.argv[2])).run())
