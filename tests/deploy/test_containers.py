"""Dockerfiles and the compose file: their form, what they copy and install, and that nothing is open or written out."""

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from flows.schedule.pool_worker import GRACE_SECONDS, RUN_GRACE_SECONDS

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("Dockerfile.*"))
COMPOSE = ROOT / "deploy" / "compose" / "compose.yaml"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", path.read_text(), flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfile(path: Path) -> None:
    steps = instructions(path)
    assert {word for word, _ in steps} <= {
        "FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    assert re.search("(Not built|Built with podman .*) on the machine that it was written on", path.read_text())
    assert [rest for word, rest in steps if word == "USER"] == ["rondo"]
    last = max(place for place, (word, _) in enumerate(steps) if word in ("RUN", "COPY"))
    assert steps.index(("USER", "rondo")) > last, "nothing is installed as the user that runs"
    assert not re.search(r"(?i)password|secret|token", path.read_text())
    for form in ("HEALTHCHECK", "ENTRYPOINT", "CMD"):
        (rest,) = (rest for word, rest in steps if word == form)
        assert isinstance(yaml.safe_load(rest[rest.index("[") :]), list), "the exec form: signals reach the process"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_is_there_and_not_ignored(path: Path) -> None:
    kept = [line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"]
    for word, rest in instructions(path):
        if word == "COPY" and not rest.startswith("--from"):
            *sources, _ = shlex.split(rest)
            for source in sources:
                assert (ROOT / source).exists(), source
                assert source in kept, source


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_installs_is_what_the_project_says(path: Path) -> None:
    commands = [part.strip() for word, rest in instructions(path) if word == "RUN" for part in rest.split("&&")]
    installs = [shlex.split(command) for command in commands if command.startswith("pip install")]
    named = [word for install in installs for word in install if re.search(r"\[|==", word)]
    assert installs
    makefile = (ROOT / "Makefile").read_text()
    for word in named:
        if extras := re.fullmatch(r"\.\[([a-z,]+)\]", word):
            assert set(extras[1].split(",")) <= set(EXTRAS)
        else:
            assert f'"{word}"' in makefile, "the same torch as in the Makefile"
    arguments = [rest for word, rest in instructions(path) if word == "ARG"]
    for argument in arguments:
        name, _, value = argument.partition("=")
        assert f"{name} ?= {value}\n" in makefile


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


def test_compose_fits_the_specification(compose: dict[str, Any]) -> None:
    parsed = PyCompose.from_yaml(COMPOSE.read_text())
    assert set(parsed.service_names()) == set(compose["services"])
    assert {"prefect", "postgres", "minio", "worker"} <= set(compose["services"])
    with pytest.raises(ValueError, match="port"):
        PyCompose.from_yaml("services: {a: {image: b, ports: [{}]}}")
    assert "with podman-compose and podman 4.3, not with Docker" in COMPOSE.read_text()


def test_a_worker_has_the_time_that_it_gives_its_runs(compose: dict[str, Any]) -> None:
    for name in ("worker", "gpu-worker"):
        worker = compose["services"][name]
        assert worker["command"][:3] == ["python", "-m", "flows.schedule.pool_worker"]
        assert int(worker["stop_grace_period"].removesuffix("s")) > RUN_GRACE_SECONDS + GRACE_SECONDS


def test_nothing_is_open_to_other_machines(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_passwords_come_from_the_environment(compose: dict[str, Any]) -> None:
    examples = [
        line.partition("=") for line in (COMPOSE.parent / "env.example").read_text().splitlines() if line[:1] != "#"
    ]
    assert all(value == "" for _, _, value in examples)
    used = set(re.findall(r"\$\{([A-Z_]+)", COMPOSE.read_text()))
    assert used == {name for name, _, _ in examples}
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|ACCESS_KEY|MC_HOST", name):
                assert "${" in value, name


def test_services_wait_for_what_is_there(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed], f"{name} waits for {needed}"
            assert needed in services
        if "build" in service:
            assert (COMPOSE.parent / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]) in DOCKERFILES
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in compose["volumes"]
    worker, bucket = services["worker"]["environment"], services["bucket"]["command"][-1]
    assert worker["RONDO_ROOT"].startswith(f"s3://{bucket.partition('/')[2]}/")
