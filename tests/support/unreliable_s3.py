"""S3 as moto speaks it over real HTTP on loopback, with faults for the requests that a test picks.

error        the answer is status 500; nothing took place
slow down    the answer is status 503, as S3 gives it to those who ask too often; nothing took place
too many     the same with status 429
conflict     the answer is status 409, as S3 gives it to a conditional write that met another; nothing took place
lost reply   it took place, and the answer is status 500
reset        it took place, and the connection ends without an answer
cut          the connection ends in the middle of the answer's body
slow         the answer's body comes in pieces, with pauses
hang         the answer comes after the client has lost patience
overwrite    the condition of a conditional write is ignored, as some look-alikes do

    python -m support.unreliable_s3    one without faults, which says its endpoint and lives until its input is closed

Servers in one process share moto's buckets; one in a process of its own has others.
"""

import logging
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "rondo"
HANG_SECONDS = 1.5
_STATUS = {
    "error": "500 Internal Server Error", "lost reply": "500 Internal Server Error", "slow down": "503 Slow Down",
    "too many": "429 Too Many Requests", "conflict": "409 Conflict",
}  # fmt: skip
Choose = Callable[[int, str, str], str]
"""From the number of a request, its method and its path to the name of a fault, empty for none."""


def reliable(_number: int, _method: str, _path: str) -> str:
    """No faults."""
    return ""


class UnreliableS3:
    """A WSGI application in front of moto's.

    Attributes:
        choose: picks the fault of each request.
        faults: how many there were, by name.
        endpoint: where it is served.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self.endpoint = ""
        self.reset()

    def reset(self, choose: Choose = reliable) -> None:
        """Counts from zero, with these faults from now on."""
        self.choose, self._number, self.faults = choose, 0, dict[str, int]()

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a client."""
        return {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ALLOW_HTTP": "true",
        }  # fmt: skip

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self._number += 1
        fault = self.choose(self._number, environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if fault:
            self.faults[fault] = self.faults.get(fault, 0) + 1
        if fault in ("error", "slow down", "too many", "conflict"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            return _refuse(start_response, fault)
        if fault == "hang":
            time.sleep(HANG_SECONDS)
        if fault == "overwrite":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        lost = fault in ("lost reply", "reset")
        answer = b"".join(self._application(environ, (lambda *_: None) if lost else start_response))
        if fault == "lost reply":
            return _refuse(start_response, fault)
        if fault == "reset":
            _hang_up(environ)
            return _refuse(start_response, "error")
        if fault == "cut":
            return _cut(answer, environ)
        return _slowly(answer) if fault == "slow" else [answer]


@contextmanager
def unreliable_s3() -> Iterator[UnreliableS3]:
    """A server with the bucket ``rondo``."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    application = UnreliableS3(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    application.endpoint = f"http://127.0.0.1:{server.server_port}"
    bucket = f"{application.endpoint}/{BUCKET}"
    urllib.request.urlopen(urllib.request.Request(bucket, method="PUT")).close()  # noqa: S310
    try:
        yield application
    finally:
        server.shutdown()
        thread.join()


def _refuse(start_response: Callable[..., Any], fault: str) -> list[bytes]:
    start_response(_STATUS[fault], [("Content-Type", "application/xml"), ("Content-Length", "0")])
    return [b""]


def _hang_up(environ: dict[str, Any]) -> None:
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def _cut(answer: bytes, environ: dict[str, Any]) -> Iterator[bytes]:
    yield answer[: len(answer) // 2]
    _hang_up(environ)


def _slowly(answer: bytes, pieces: int = 4) -> Iterator[bytes]:
    step = max(1, len(answer) // pieces)
    for start in range(0, max(1, len(answer)), step):
        time.sleep(0.05)
        yield answer[start : start + step]


if __name__ == "__main__":
    with unreliable_s3() as served:
        sys.stdout.write(f"{served.endpoint}\n")
        sys.stdout.flush()
        sys.stdin.read()
