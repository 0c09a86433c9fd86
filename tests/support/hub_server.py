"""A loopback stand-in for the Hub's commit API: repositories, preupload, large files, commits; and faults."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_the_token_of_the_test"
LARGE = re.compile(r"\.(safetensors|parquet)$")


@dataclass
class Repository:
    """A repository as the Hub has it: the files of its last commit."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Fault:
    """What goes wrong with the next ``times`` requests whose path fits.

    Attributes:
        status: answered in place of the work.
        close: cut the connection instead, "before" or "after" the work.
    """

    path: str
    status: int = 0
    times: int = 1
    close: str = ""


@dataclass
class StandIn:
    """What the server holds and has seen; ``requests`` are (method, path)."""

    url: str = ""
    owner: str = "someone"
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    authorized: set[str] = field(default_factory=set)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.path, path):
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            if (sent := self.headers.get("Authorization")) and not path.startswith("/upload/"):
                self.hub.authorized.add(sent)
            fault = self.hub.fault(path)
            if fault and fault.close == "before":
                self.close_connection = True
                return
            if fault and fault.status:
                status, answer = fault.status, {"error": "as the test wants it"}
            elif sent != f"Bearer {TOKEN}" and not path.startswith("/upload/"):
                status, answer = 401, {"error": "Invalid username or password."}
            else:
                status, answer = self._work(path, body)
            if fault and fault.close == "after":
                self.close_connection = True
                return
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _work(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if match := re.fullmatch(r"/upload/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != match[1]:
                return 400, {"error": "these are other bytes"}
            self.hub.blobs[match[1]] = body
            return 200, {}
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        match = re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)/(preupload|commit|revision)/main", path)
        repository = self.hub.repositories.get((match[1], match[2])) if match else None
        if match is None or repository is None:
            return 404, {"error": "Repository not found"}
        if match[3] == "preupload":
            return self._preupload(repository, json.loads(body))
        if match[3] == "revision":
            return 200, {"_id": "1", "id": match[2], "sha": repository.commits[-1], "siblings": [], "tags": []}
        return self._commit(repository, match[2], [json.loads(line) for line in body.splitlines()])

    def _create(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        kind, name = asked.get("type") or "model", f"{asked.get('organization') or self.hub.owner}/{asked['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"
        status = 409 if (kind, name) in self.hub.repositories else 200
        private = bool(asked.get("private")) or asked.get("visibility") == "private"
        self.hub.repositories.setdefault((kind, name), Repository(private))
        return status, {"url": url, "name": name}

    def _preupload(self, repository: Repository, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        files = []
        for file in asked["files"]:
            large, there = bool(LARGE.search(file["path"])), repository.files.get(file["path"])
            files.append({
                "path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False,
                "oid": None if there is None else _oid(there, large),
            })  # fmt: skip
        return 200, {"files": files}

    def _batch(self, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        objects = []
        for item in asked["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/upload/{item['oid']}"}}
            there = item["oid"] in self.hub.blobs
            objects.append({"oid": item["oid"], "size": item["size"], **({} if there else {"actions": upload})})
        return 200, {"objects": objects, "transfer": "basic"}

    def _commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        changed = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.blobs:
                    return 400, {"error": "a large file has not arrived"}
                changed[value["path"]] = self.hub.blobs[value["oid"]]
        repository.files |= changed
        oid = hashlib.sha1(f"{name}{len(repository.commits)}".encode()).hexdigest()  # noqa: S324
        repository.commits.append(oid)
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid}


def _oid(data: bytes, large: bool) -> str:
    """The name that git, or git-lfs, gives a file's content."""
    if large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()  # noqa: S324


@contextmanager
def hub_server() -> Iterator[StandIn]:
    """A Hub with nothing in it; gone at the end of the block."""
    hub = StandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
