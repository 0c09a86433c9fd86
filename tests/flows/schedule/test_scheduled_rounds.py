"""What a deployment gives its jobs, and what its flow runs find."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch

from flows.prefect_api import HEARTBEAT_VARIABLE, heartbeat_seconds
from flows.prefect_api.limits import needs_gpu, run_limit
from flows.prefect_api.server import using
from flows.prefect_api.server_record import HOME_VARIABLE, Record, Started, write
from flows.registry.recipes import parse_recipe
from flows.schedule import scheduled_rounds
from flows.schedule.deployments import PoolType, _job_variables
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from support.recipes import TINY


@pytest.mark.parametrize(
    ("kind", "root", "image", "variables"),
    [
        ("process", "/data/runs", None, {"working_dir": os.getcwd()}),
        ("docker", "s3://bucket/runs", "rondo:gpu", {"image": "rondo:gpu"}),
        ("kubernetes", "s3://bucket/runs", "rondo:gpu", {"image": "rondo:gpu"}),
    ],
)
def test_what_jobs_are_given(kind: PoolType, root: str, image: str | None, variables: dict[str, object]) -> None:
    sign_of_life = {"env": {HEARTBEAT_VARIABLE: str(heartbeat_seconds())}}
    assert _job_variables("pool", kind, root, image) == {**sign_of_life, **variables}


def test_processes_elsewhere_are_not_sent_to_a_directory_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a root in a bucket a worker may be anywhere, as in a container; that of ``rondo up`` is here."""
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    assert "working_dir" not in _job_variables("pool", "process", "s3://bucket/runs", None)
    write(Record(4321, "rondo", Started.of(os.getpid())))
    assert "working_dir" not in _job_variables("pool", "process", "s3://bucket/runs", None)
    with using("http://127.0.0.1:4321/api"):
        assert _job_variables("pool", "process", "s3://bucket/runs", None)["working_dir"] == os.getcwd()


def test_containers_share_a_directory_and_have_a_home_that_any_user_may_write_to() -> None:
    given = _job_variables("pool", "docker", "/data/runs", "rondo:gpu")
    assert (given["image"], given["volumes"]) == ("rondo:gpu", ["/data/runs:/data/runs"])
    assert given["env"] == {HEARTBEAT_VARIABLE: str(heartbeat_seconds()), "HOME": "/tmp"}  # noqa: S108


@pytest.mark.parametrize(
    ("kind", "root", "image", "sentence"),
    [
        ("process", "/data/runs", "rondo:gpu", "leave it out"),
        ("docker", "s3://bucket/runs", None, "give --image"),
        ("kubernetes", "/data/runs", "rondo:gpu", "containers that vanish: give a bucket"),
    ],
)
def test_jobs_that_would_lack_something(kind: PoolType, root: str, image: str | None, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        _job_variables("pool", kind, root, image)
    assert sentence in str(refused.value)


@pytest.mark.parametrize("device", ["sampler", "trainer", "judge"])
def test_any_part_on_a_gpu_needs_it(device: str) -> None:
    assert not needs_gpu(parse_recipe(TINY))
    assert needs_gpu(parse_recipe(TINY, [f"devices.{device}=cuda:1"]))


def test_a_scheduled_run_misses_its_gpu_before_it_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it runs is not where it was deployed. Prefect's limits, for which there is no server here, let it pass."""

    async def nothing(*_arguments: object) -> None:
        return None

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(signal, "signal", lambda *_arguments: None)
    monkeypatch.setattr(scheduled_rounds, "alone", lambda *_arguments: contextlib.nullcontext(True))
    for name in ("skip_overdue", "writer_of", "execute"):
        monkeypatch.setattr(scheduled_rounds, name, nothing)
    recipe = parse_recipe(TINY, ["devices.sampler=cuda"]).model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"devices\.sampler is 'cuda', and torch finds no GPU here"):
        asyncio.run(scheduled_rounds.add_rounds.fn("r", 1, recipe, {}, str(tmp_path)))


def test_runs_of_one_name_under_two_roots_do_not_wait_for_each_other() -> None:
    assert run_limit("demo", "/a") == run_limit("demo", "/a")
    assert run_limit("demo", "/a") != run_limit("demo", "/b")


def test_descriptions_say_the_limits_that_a_form_does_not_show() -> None:
    fields = Recipe.model_json_schema()["$defs"]
    update, sampling = fields["UpdateConfig"]["properties"], fields["SamplingConfig"]["properties"]
    assert update["beta"]["description"].endswith("(above 0, at most 100)")
    assert update["label_smoothing"]["description"].endswith("(at least 0, below 0.5)")
    assert update["stop_at_kl"]["description"].endswith("in nats per sequence (above 0)")
    assert sampling["context"]["description"].endswith("(at least 16, at most 10,000,000)")
    assert sampling["engine"]["description"].endswith("in its place")
