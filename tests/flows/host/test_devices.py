"""A GPU that is not there is missed before a run is begun."""

from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from flows.host.devices import check_devices
from flows.registry.recipes import parse_recipe
from pipeline.errors import ConfigError
from pipeline.model.devices import check_device
from storage.log.store import Store
from support.finished_run import finished_run
from support.recipes import TINY


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.parametrize("part", ["trainer", "sampler"])
def test_a_run_is_not_begun(tmp_path: Path, part: str) -> None:
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    Store.open(tmp_path / "root")
    change = f"devices.{part}=cuda"
    done = CliRunner().invoke(app, ["run", str(recipe), "--root", str(tmp_path / "root"), "--set", change])
    assert str(done.exception) == f"devices.{part} is 'cuda', and torch finds no GPU here: set it to cpu"
    assert Store.open(tmp_path / "root").run_names() == []


def test_what_runs_elsewhere_or_not_at_all_is_not_looked_for() -> None:
    check_devices(parse_recipe(TINY, ["devices.judge=cuda"]))  # its judge counts words
    replicas = ["sampling.engine=vllm", "cluster.sampler.replicas=1", "cluster.sampler.gpus=1", "devices.sampler=cuda"]
    check_devices(parse_recipe(TINY, replicas))


@pytest.mark.parametrize(
    "judge",
    [
        "{kind: reward_model, path: my/model}",
        "{kind: implicit}",
        "{kind: noisy, judge: {kind: reward_model, path: my/model}}",
    ],
)
def test_the_device_of_a_judge_that_is_a_model(judge: str) -> None:
    """An implicit reward is that of policies, which are not there before the run has paid for answers."""
    recipe = parse_recipe(TINY, [f"evaluation.judges=[{judge}]", "devices.judge=cuda"])
    with pytest.raises(ConfigError, match=r"devices\.judge is 'cuda', and torch finds no GPU here"):
        check_devices(recipe)


def test_a_gpu_beyond_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("--device", "cuda:1")
    with pytest.raises(ConfigError, match="--device is 'cuda:2', and the last GPU that torch finds here is cuda:1"):
        check_device("--device", "cuda:2")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["devices.sampler=cuda:0,cuda:2"], r"devices\.sampler is 'cuda:2', and the last GPU that"),
        (["devices.sampler=cuda", "sampling.tensor_parallel=3"], "tensor_parallel is 'cuda:2', and the last GPU"),
    ],
)
def test_each_engine_has_its_gpus(monkeypatch: pytest.MonkeyPatch, changes: list[str], words: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(parse_recipe(TINY, ["sampling.engine=vllm", "devices.sampler=cuda:0,cuda:1"]))
    with pytest.raises(ConfigError, match=words):
        check_devices(parse_recipe(TINY, ["sampling.engine=vllm", *changes]))


def test_a_reward_model_is_not_begun(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "root")
    finished_run(store)
    arguments = ["train-judge", "small", "--to", str(tmp_path / "to"), "--root", store.root]
    done = CliRunner().invoke(app, [*arguments, "--device", "cuda"])
    assert isinstance(done.exception, ConfigError)
    assert "--device is 'cuda', and torch finds no GPU here" in str(done.exception)
    assert not (tmp_path / "to").exists()
