"""A loopback server that speaks OpenAI's chat completions as a script tells it to: slow, refusing, malformed, gone."""

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any], int], "Response"]
"""From a request's body and its number, counted from 0, to what the server does."""


@dataclass(frozen=True)
class Response:
    """What the server sends after a while; ``close`` cuts the connection in place of an answer.

    With ``drip`` it sends a space so often, in seconds, before the body, for as long as anybody reads.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    close: bool = False
    drip: float = 0.0


@dataclass
class Served:
    """What the server has seen."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def chat_server(script: Script, port: int = 0) -> Iterator[Served]:
    """A server on this port, or a free one; gone at the end of the block."""
    served = Served("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                number = len(served.bodies)
                served.bodies.append(body)
                served.times.append(time.monotonic())
                served.keys.append(self.headers.get("Authorization"))
                served.at_once += 1
                served.most_at_once = max(served.most_at_once, served.at_once)
            try:
                self._answer(script(body, number))
            finally:
                with served.lock:
                    served.at_once -= 1

        def _answer(self, response: Response) -> None:
            time.sleep(response.wait)
            self.close_connection = response.close
            if response.close:
                return
            try:
                self.send_response(response.status)
                for name, value in {"Content-Type": "application/json", **response.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(response.body) + (1_000_000 if response.drip else 0)))
                self.end_headers()
                while response.drip:
                    self.wfile.write(b" ")
                    time.sleep(response.drip)
                self.wfile.write(response.body)
            except (BrokenPipeError, ConnectionResetError):  # the client no longer waits
                self.close_connection = True

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def says(content: str | None, rivals: Mapping[str, float] | None = None, *, finish: str = "stop") -> Response:
    """A completion; with ``rivals`` (probabilities of tokens) each digit of it is a token with these in its place."""
    logprobs = None
    if rivals is not None:
        named = [{"token": token, "logprob": math.log(share)} for token, share in rivals.items()]
        pieces = re.findall(r"\d|\D+", content or "")
        logprobs = {
            "content": [
                {"token": piece, "logprob": -0.1, "top_logprobs": named if piece.isdigit() else []} for piece in pieces
            ]
        }
    choice = {
        "index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content}, "logprobs": logprobs,
    }  # fmt: skip
    completion = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice],
        "usage": {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100},
    }  # fmt: skip
    return Response(json.dumps(completion).encode())


def refuses(status: int, message: str, **headers: str) -> Response:
    """An error as such endpoints send it."""
    return fails(status, {"error": {"message": message}}, **headers)


def fails(status: int, body: Any, **headers: str) -> Response:
    """An error with a body of its own."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(json.dumps(body).encode(), status, named)


def answers_shown(body: Mapping[str, Any]) -> list[str]:
    """The texts of the answers in a request, in order, found as a careful reader finds them: by the code of the marks.

    Asserts that each block is opened and closed once.
    """
    system, user = (message["content"] for message in body["messages"])
    (mark,) = re.findall(r"hold the code (\w{16})", system)
    titles = re.findall(rf"^<<<(.*) {mark}$", user, re.MULTILINE)
    opened = [title for title in titles if not title.startswith("END OF ")]
    assert titles == [title for one in opened for title in (one, f"END OF {one}")]
    return [
        user.split(f"<<<{title} {mark}\n", 1)[1].split(f"\n<<<END OF {title} {mark}", 1)[0]
        for title in opened
        if "ANSWER" in title and "REFERENCE" not in title
    ]
