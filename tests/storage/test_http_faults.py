"""Faults of the network between the store and a bucket, injected into real HTTP exchanges."""

import logging
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store_faults import contents, small_run

from storage.manifest import Key
from storage.store import Store

ERROR = ("500 Internal Server Error", [("Content-Type", "application/xml"), ("Content-Length", "0")])


class Unreliable:
    """A WSGI application in front of another one, with a fault for each request that ``choose`` picks."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.choose: Callable[[int, str], str] = lambda number, method: ""
        self.number = 0
        self.faults = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.number += 1
        fault = self.choose(self.number, environ["REQUEST_METHOD"])
        self.faults += bool(fault)
        if fault == "error":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(*ERROR)
            return [b""]
        if fault == "slow":
            time.sleep(0.05)
        answer = self.application(environ, start_response if fault != "lost reply" else lambda *_: None)
        if fault != "lost reply":
            return answer
        b"".join(answer)  # it took place
        start_response(*ERROR)
        return [b""]


@pytest.fixture(scope="module")
def unreliable() -> Iterator[tuple[Unreliable, str]]:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = Unreliable(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/rondo", method="PUT")).close()  # noqa: S310
    yield application, endpoint
    server.shutdown()
    thread.join()


FAULTS: dict[str, Callable[[int, str], str]] = {
    "errors": lambda number, method: "error" if number % 3 == 0 else "",
    "lost replies to writes": lambda number, method: "lost reply" if method == "PUT" and number % 2 == 0 else "",
    "slow": lambda number, method: "slow" if number % 4 == 0 else "",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_run_over_an_unreliable_network(
    unreliable: tuple[Unreliable, str],
    s3_environment: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fault: str,
) -> None:
    """The client tries again; a write that it repeats without need is recognised as its own."""
    application, endpoint = unreliable
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    store = Store.open(f"s3://rondo/{uuid.uuid4().hex}")
    reference = Store.open("memory://")
    small_run(reference)
    application.number = application.faults = 0
    application.choose = FAULTS[fault]
    small_run(store)
    seen = contents(store, tmp_path / "a")
    application.choose = lambda number, method: ""
    assert application.faults >= 5
    assert seen == contents(store, tmp_path / "a") == contents(reference, tmp_path / "b")
    numbers = [int(key[-15:-5]) for key in store.objects.keys("runs/small/log")]
    assert numbers == list(range(len(reference.objects.keys("runs/small/log")))), "no entry twice, none missing"
    assert store.run("small").find(Key(2, "checkpoint")) is not None
