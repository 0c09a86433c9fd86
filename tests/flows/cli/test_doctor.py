"""``rondo doctor``: what it finds on this machine, and on broken ones."""

import json
import os
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.doctor import GIB, _gpus, examine
from flows.cli.main import app
from flows.prefect_api import server_record
from flows.prefect_api.server_record import Record, Started

runner = CliRunner()


def by_name(root: Path | str) -> dict[str, tuple[str, str]]:
    return {finding.what: (finding.verdict, finding.found) for finding in examine(str(root))}


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("RONDO_HOME", str(tmp_path_factory.mktemp("home")))


def test_this_machine_is_well_and_nothing_is_left_behind(tmp_path: Path) -> None:
    done = runner.invoke(app, ["doctor", "--root", str(tmp_path / "not" / "there"), "--json"])
    assert done.exit_code == 0, done.stdout
    found = {row["what"]: row["verdict"] for row in json.loads(done.stdout)}
    assert {found[name] for name in ("Python", "vLLM", "SQLAlchemy", "companions of torch", "root", "Prefect")} == {
        "ok"
    }
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "not").exists()


def test_a_root_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file where a directory should be")
    done = runner.invoke(app, ["doctor", "--root", str(tmp_path / "file")])
    assert done.exit_code == 1
    assert by_name(tmp_path / "file")["root"][0] == "missing"
    assert by_name("ftp://somewhere/else")["root"][0] == "missing"


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    verdict, found = by_name(tmp_path)["Prefect"]
    assert verdict == "missing"
    assert f"127.0.0.1:{port}" in found


def test_versions_that_do_not_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"SQLAlchemy": "2.1.4", "torch": "2.13.0+cpu", "torchvision": "0.28.0", "prefect": "3.7.7"}
    monkeypatch.setattr("flows.cli.doctor._version", versions.get)
    found = by_name(tmp_path)
    assert found["SQLAlchemy"] == ("missing", "2.1.4")
    assert found["companions of torch"] == ("missing", "torchvision")
    assert found["vLLM"][0] == "missing"


def test_what_rondo_up_started_and_has_ended(tmp_path: Path) -> None:
    server_record.write(Record(4321, "rondo", Started(2**22, 1.0), Started(os.getpid(), 0.0)))
    verdict, found = by_name(tmp_path)["Prefect"]
    assert verdict == "missing"
    assert "http://127.0.0.1:4321: ended are server and worker" in found
    (server_record.home() / "up.json").write_text("not JSON")
    assert by_name(tmp_path)["Prefect"][0] == "missing"


def test_a_torch_that_vllm_was_not_built_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"vllm": "0.32.0", "torch": "2.12.1+cu128"}
    monkeypatch.setattr("flows.cli.doctor._version", versions.get)
    monkeypatch.setattr("flows.cli.doctor._requires", lambda _: ["numpy", "torchvision", "torch==2.13.0+cpu"])
    assert by_name(tmp_path)["vLLM"] == ("missing", "vllm 0.32.0 needs torch==2.13.0, and there is 2.12.1+cu128")
    versions["torch"] = "2.13.0+cu128"
    assert by_name(tmp_path)["vLLM"][0] == "ok"


def test_gpus_whose_memory_is_taken() -> None:
    free, taken = ("H100", 78 * GIB, 80 * GIB), ("H100", 3 * GIB, 80 * GIB)
    assert _gpus([free]).verdict == "ok"
    assert _gpus([free]).found == "1 x H100, 78 of 80 GiB free"
    noted = _gpus([free, taken])
    assert noted.verdict == "note"
    assert "memory of 1: nvidia-smi" in noted.remedy
