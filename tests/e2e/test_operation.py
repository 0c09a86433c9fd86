"""``rondo up``, ``deploy`` and ``down`` with the real server and worker of Prefect, all tests with one of each."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli.main import app
from flows.host.processes import lives
from flows.prefect_api import HEARTBEAT_VARIABLE, limits
from flows.prefect_api.server_record import HOME_VARIABLE, Record, read
from flows.schedule.crash_automation import crashed_runs
from storage.log import lease
from storage.log.store import Store
from support.recipes import TINY

PATIENCE_SECONDS = 400  # for what hangs; a scheduled run takes 10 to 20 s on a quiet machine
REPOSITORY = Path(__file__).parents[2]


class Machine:
    """A user's machine: a home of its own, commands, and what they have started."""

    def __init__(self, home: Path, temporary: Path) -> None:
        temporary.mkdir()
        tests = REPOSITORY / "tests"
        self.temporary = temporary
        self.environment = {
            **os.environ,
            HOME_VARIABLE: str(home),
            "PREFECT_HOME": str(home / "user"),
            "PYTHONPATH": f"{tests}{os.pathsep}{REPOSITORY}",
            "TMPDIR": str(temporary),
            "COLUMNS": "200",
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # in place of 10
        }
        self.environment.pop("PREFECT_API_URL", None)

    def call(self, *command: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", *command], env=self.environment | more, cwd=REPOSITORY,
            capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def rondo(self, *arguments: str, check: bool = True) -> str:
        done = self.call("flows.cli.main", *arguments, check=check)
        return done.stdout + done.stderr

    def rondo_here(self, *arguments: str) -> str:
        """As above, in this process, which has loaded all that takes seconds."""
        done = CliRunner().invoke(app, arguments)
        return done.output + str(done.exception or "")

    def ask(self, question: Callable[[Any], Awaitable[Any]]) -> Any:
        """The answer of the server to what is asked with Prefect's own client."""
        from prefect.client.orchestration import get_client

        from flows.prefect_api.server import using

        async def answer() -> Any:
            async with get_client() as client:
                return await question(client)

        with using(self.record.api):
            return asyncio.run(answer())

    @property
    def record(self) -> Record:
        record = read()
        assert record is not None
        return record

    def family(self) -> list[psutil.Process]:
        """The processes that ``rondo up`` has started, with all that these have."""
        members = []
        for started in (self.record.server, self.record.worker):
            assert started is not None
            assert started.process is not None
            members += [started.process, *started.process.children(recursive=True)]
        return members


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    home = tmp_path_factory.mktemp("operation")
    with pytest.MonkeyPatch.context() as patch, socket.socket() as probe:
        patch.setenv(HOME_VARIABLE, str(home))
        patch.delenv("PREFECT_API_URL", raising=False)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        made = Machine(home, home / "tmp")
        made.rondo("up", "--port", str(port))
        try:
            yield made
        finally:
            made.rondo("down")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("operation-recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


@pytest.fixture
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for a slot asks twice a second, not once in three: these tests would sleep most of their time."""
    monkeypatch.setattr(limits, "ASK_SECONDS", 0.5)


def wait_until(found: Callable[[], Any], what: str) -> Any:
    until = time.monotonic() + PATIENCE_SECONDS
    while not (answer := found()):
        assert time.monotonic() < until, f"no {what} within {PATIENCE_SECONDS} s"
        time.sleep(0.5)
    return answer


def flow_runs(machine: Machine, deployment: UUID) -> list[Any]:
    """The deployment's flow runs that have started, first started first."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId

    which = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
    found = machine.ask(lambda client: client.read_flow_runs(flow_run_filter=which))
    return sorted((run for run in found if run.start_time), key=lambda run: run.start_time)


def deployment_of(machine: Machine, run: str) -> Any:
    return machine.ask(lambda client: client.read_deployment_by_name(f"rondo-schedule/{run}"))


def test_up_says_where_and_says_so_again(machine: Machine) -> None:
    before = machine.record
    said = machine.rondo("up")
    assert machine.record == before
    assert "it is up already" in said
    assert f"PREFECT_API_URL={before.api}" in said
    killed = machine.ask(lambda client: client.read_automations_by_name(crashed_runs().name))
    assert [automation.enabled for automation in killed] == [True]
    rows = json.loads(machine.call("flows.cli.main", "doctor", "--json").stdout)
    (prefect,) = (row for row in rows if row["what"] == "Prefect")
    assert prefect["verdict"] == "ok"
    assert before.ui in prefect["found"]


def test_the_shipped_recipes_are_there_as_paused_deployments(machine: Machine) -> None:
    from flows.registry.recipes import load_recipe
    from flows.registry.shipped_files import shipped_recipes

    assert set(shipped_recipes()) >= {"sentiment", "arithmetic"}
    for name, path in shipped_recipes().items():
        deployment = deployment_of(machine, name)
        assert deployment.paused
        assert len(deployment.schedules) == 1
        assert deployment.work_pool_name == "rondo"
        assert deployment.description.startswith(load_recipe(path).description)
        fields = deployment.parameter_openapi_schema["properties"]
        assert len(fields) + len(fields["overrides"]["properties"]) <= 15


def test_its_port_is_taken_for_another_home(machine: Machine, tmp_path: Path) -> None:
    done = machine.call(
        "flows.cli.main", "up", "--port", str(machine.record.port), check=False, **{HOME_VARIABLE: str(tmp_path)}
    )
    assert done.returncode == 1
    assert f"port {machine.record.port} is taken: a Prefect server answers there" in done.stderr


def test_pages_from_elsewhere_can_neither_read_nor_write(machine: Machine) -> None:
    """What a browser sends for a page of another origin without asking first: a POST of plain text, and any GET."""
    import httpx

    api, stranger = machine.record.api, {"Origin": "http://elsewhere.example"}
    written = httpx.post(
        f"{api}/work_pools/", headers=stranger | {"Content-Type": "text/plain"}, content='{"name":"x"}'
    )
    assert written.status_code == 403
    assert "access-control-allow-origin" not in httpx.get(f"{api}/health", headers=stranger).headers


@pytest.mark.nightly
def test_a_scheduled_run_adds_a_round_and_the_next_one_waits_for_it(
    machine: Machine, recipe: Path, tmp_path: Path
) -> None:
    said = machine.rondo("deploy", str(recipe), "--interval", "12", "--name", "steady", "--root", str(tmp_path))
    assert "every 12 s" in said
    deployment = deployment_of(machine, "steady")
    assert deployment.work_pool_name == "rondo"
    wait_until(lambda: flow_runs(machine, deployment.id), "scheduled run")
    # Deployed again without a schedule, it has none: at once, for each run that starts until then takes its time.
    assert "whenever" in machine.rondo_here("deploy", str(recipe), "--name", "steady", "--root", str(tmp_path))
    assert deployment_of(machine, "steady").schedules == []
    machine.ask(lambda client: client.create_flow_run_from_deployment(deployment.id))

    def ended() -> list[Any]:
        found = flow_runs(machine, deployment.id)
        by_hand = [run for run in found if not run.auto_scheduled]
        return found if by_hand and all(run.state.is_final() for run in found) else []

    found = wait_until(ended, "end of all runs")
    done = sorted((run for run in found if run.state_name == "Completed"), key=lambda run: run.end_time)
    assert {run.state_name for run in found} <= {"Completed", "Skipped"}
    # The second (the one by hand, or a scheduled one that waited in its place) had started while the first went on, and
    # both have added their round.
    assert done[0].auto_scheduled
    assert done[1].start_time < done[0].end_time < done[1].end_time
    assert len(Store.open(tmp_path).run("steady").rounds()) == len(done) + 1


def test_a_scheduled_run_leaves_where_another_waits(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect.concurrency.asyncio import concurrency

    from flows.host.progress import Display
    from flows.registry.recipes import parse_recipe

    root = str(tmp_path)

    async def third(_client: Any) -> bool:
        await limits.ensure_run_limits("e", root)
        async with (
            concurrency(limits.run_limit("e", root), strict=True),
            concurrency(limits.waiting_limit("e", root), strict=True),
            limits.alone("e", root, parse_recipe(TINY), Display()) as turn,
        ):
            return turn is not None

    monkeypatch.setattr(limits, "_scheduled", lambda: object())
    assert machine.ask(third) is False


def test_what_the_form_asks_is_checked_when_it_is_sent(machine: Machine, recipe: Path, tmp_path: Path) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    machine.rondo_here("deploy", str(recipe), "--name", "asked", "--root", str(tmp_path))
    deployment = deployment_of(machine, "asked")

    def start(**changed: Any) -> Any:
        return machine.ask(
            lambda client: client.create_flow_run_from_deployment(
                deployment.id, parameters={**deployment.parameters, **changed}
            )
        )

    for wrong, field in (
        ({"rounds": 0}, "rounds"),
        ({"run": "other"}, "run"),
        ({"overrides": {"mode": "quick"}}, "mode"),
        ({"overrides": {"devices.sampler": "gpu"}}, "devices.sampler"),
        ({"overrides": {"devices.samplr": "cpu"}}, "devices.samplr"),
        ({"overrides": {"update.beta": 0.3}}, "'update.beta' does not match '^(devices|cluster|store|mode|"),
    ):
        with pytest.raises(PrefectHTTPStatusError) as refused:
            start(**wrong)
        assert refused.value.response.status_code == 409
        assert field in refused.value.response.json()["detail"]
    assert flow_runs(machine, deployment.id) == [], "there is no flow run of what was refused"
    assert Store.open(tmp_path).run("asked").rounds() == []


def test_a_pool_of_containers_is_made_with_its_image(machine: Machine, recipe: Path, tmp_path: Path) -> None:
    arguments = ("deploy", str(recipe), "--name", "boxed", "--root", str(tmp_path), "--pool", "boxes")
    assert "give --image" in machine.rondo_here(*arguments, "--type", "docker")
    assert Store.open(tmp_path).run_names() == [], "what was refused leaves no run"
    said = machine.rondo_here(*arguments, "--type", "docker", "--image", "rondo:cpu")
    assert "no worker is online: prefect worker start --pool boxes (it needs: pip install prefect-docker " in said
    deployment = deployment_of(machine, "boxed")
    shared, env = [f"{tmp_path}:{tmp_path}"], {HEARTBEAT_VARIABLE: "30", "HOME": "/tmp"}  # noqa: S108
    itself = {"user": f"{os.getuid()}:{os.getgid()}"}
    expected = {"image": "rondo:cpu", "volumes": shared, "env": env, "container_create_kwargs": itself}
    assert deployment.job_variables == expected
    pool = machine.ask(lambda client: client.read_work_pool("boxes"))
    assert pool.type == "docker"
    settings = pool.base_job_template["variables"]["properties"]
    assert {"image", "volumes"} <= settings.keys()
    assert settings["auto_remove"]["default"] is True, "else each run leaves its container"

    from prefect.client.schemas.actions import WorkPoolUpdate

    assert pool.base_job_template["job_configuration"]["container_create_kwargs"] == "{{ container_create_kwargs }}"
    settings["container_create_kwargs"]["default"] = {"shm_size": "1g", "user": "0"}
    changed = WorkPoolUpdate(base_job_template=pool.base_job_template)
    machine.ask(lambda client: client.update_work_pool("boxes", changed))
    machine.rondo_here(*arguments, "--image", "rondo:cpu")
    own = deployment_of(machine, "boxed").job_variables["container_create_kwargs"]
    assert own == {"shm_size": "1g", "user": "0"}, "what the pool says, stays"
    assert "is of type docker, not process" in machine.rondo_here(*arguments, "--type", "process")
    elsewhere = (*arguments[:5], str(tmp_path / "other"), "--image", "rondo:cpu", "--pool", "boxes")
    assert f"under {tmp_path}, which this one would replace" in machine.rondo_here(*elsewhere)


def test_the_shipped_prefect_file_deploys_all_recipes(machine: Machine, tmp_path: Path) -> None:
    from flows.registry.recipes import load_recipe
    from flows.schedule.scheduled_rounds import add_rounds, wanted_recipe

    command = ("prefect", "--no-prompt", "deploy", "--all", "--prefect-file", "deploy/prefect.yaml")
    said = machine.call(*command, PREFECT_API_URL=machine.record.api, RONDO_ROOT=str(tmp_path)).stdout
    shipped = {path.stem: load_recipe(path) for path in (REPOSITORY / "deploy" / "recipes").glob("*.yaml")}
    assert said.count("successfully created") == len(shipped)
    for name, recipe in shipped.items():
        deployment = deployment_of(machine, name)
        given = add_rounds.validate_parameters(deployment.parameters)
        assert given == {"run": name, "rounds": 1, "recipe": name, "overrides": {}, "root": str(tmp_path)}
        assert wanted_recipe(Store.open(tmp_path), name, given["recipe"], {}) == recipe
        assert deployment.work_pool_name == "rondo"
        assert deployment.entrypoint == "flows.schedule.add_rounds"
        assert [schedule.active for schedule in deployment.schedules] == [False]
        assert deployment.job_variables == {"env": {HEARTBEAT_VARIABLE: "30"}}


def test_runs_of_other_names_wait_for_the_gpu(machine: Machine, asks_often: None, tmp_path: Path) -> None:
    """Runs of one name wait for each other, those on GPUs for all on GPUs, and those on CPUs for nobody else."""
    from flows.host.progress import Display
    from flows.prefect_api.limits import GPU_LIMIT, alone
    from flows.registry.recipes import parse_recipe

    on_cpu, on_gpu = parse_recipe(TINY), parse_recipe(TINY, ["devices.trainer=cuda"])
    busy: list[str] = []
    said: list[list[str]] = []

    async def one(run: str, recipe: Any, seconds: float) -> None:
        async with alone(run, str(tmp_path), recipe, Display()) as mine:
            assert mine
            busy.append(run)
            said.append(sorted(busy))
            await asyncio.sleep(seconds)
            busy.remove(run)

    async def all_at_once(_client: Any) -> None:
        await asyncio.gather(
            one("a", on_cpu, 2), one("a", on_cpu, 2), one("b", on_gpu, 2), one("c", on_gpu, 2)
        )  # fmt: skip

    machine.ask(all_at_once)
    assert len(said) == 4
    assert any(len(together) == 2 for together in said)
    assert ["a", "a"] not in said
    assert all(not {"b", "c"} <= set(together) for together in said)
    limit = machine.ask(lambda client: client.read_global_concurrency_limit_by_name(GPU_LIMIT))
    assert (limit.limit, limit.active_slots) == (1, 0)


def test_who_is_cancelled_while_it_waits_takes_no_slot(machine: Machine, asks_often: None, tmp_path: Path) -> None:
    from prefect.concurrency.asyncio import concurrency

    from flows.host.progress import Display
    from flows.registry.recipes import parse_recipe

    name = limits.run_limit("f", str(tmp_path))

    async def wait() -> None:
        async with limits.alone("f", str(tmp_path), parse_recipe(TINY), Display()):
            raise AssertionError("two at once")

    async def slots_after(client: Any) -> int:
        await limits.ensure_run_limits("f", str(tmp_path))
        async with concurrency(name, strict=True):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(limits.ASK_SECONDS)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait((waiting,))
        await asyncio.sleep(2 * limits.ASK_SECONDS)  # whoever asks still would have it by now
        limit = await client.read_global_concurrency_limit_by_name(name)
        return int(limit.active_slots)

    assert machine.ask(slots_after) == 0


def test_who_waits_for_people_leaves_the_gpu_to_others(machine: Machine, asks_often: None, tmp_path: Path) -> None:
    from flows.host.progress import Display
    from flows.prefect_api.limits import alone
    from flows.registry.recipes import parse_recipe

    on_gpu = parse_recipe(TINY, ["devices.trainer=cuda"])
    order: list[str] = []

    async def labelled(holds: asyncio.Event, others: asyncio.Event) -> None:
        async with alone("labelled", str(tmp_path), on_gpu, Display()) as turn:
            assert turn is not None
            holds.set()
            async with turn.without_gpus(Display()):
                await others.wait()
                order.append("labels are there")
            order.append("goes on")

    async def other(holds: asyncio.Event, works: asyncio.Event) -> None:
        await holds.wait()
        async with alone("other", str(tmp_path), on_gpu, Display()):
            works.set()
            await asyncio.sleep(2)
            order.append("other is done")

    async def both(_client: Any) -> None:
        holds, works = asyncio.Event(), asyncio.Event()
        await asyncio.gather(labelled(holds, works), other(holds, works))

    machine.ask(both)
    assert order == ["labels are there", "other is done", "goes on"]


def test_a_scheduled_run_is_told_by_prefect_of_a_process_elsewhere(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed on another host it is Crashed, and its run is taken over; until then it is left alone."""
    from prefect.states import Crashed, Running

    from flows.prefect_api.flow_runs import session_tag
    from flows.registry.recipes import parse_recipe
    from flows.registry.resume import create_or_open
    from flows.run.execute import run_rounds
    from flows.schedule.scheduled_rounds import writer_of

    store = Store.open(tmp_path)
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        run, _ = create_or_open(store, "far", parse_recipe(TINY))
        with run.writer() as writer:
            writer.leave()  # as one that is killed
    monkeypatch.setattr(lease, "_over", set())  # what this process knows of its own
    run = store.run("far")

    async def states(client: Any) -> list[str]:
        found = [await writer_of(run)]
        tags = [session_tag(writer.session)]
        flow_run = await client.create_flow_run(
            run_rounds, parameters={"run": "far", "rounds": 1}, state=Running(), tags=tags
        )
        for state in (None, Crashed()):
            if state is not None:
                await client.set_flow_run_state(flow_run.id, state, force=True)
            found.append(await writer_of(run))
        return found

    assert machine.ask(states) == ["unknown", "alive", "dead"]


def test_a_gpu_limit_that_somebody_deleted_is_missed(machine: Machine, tmp_path: Path) -> None:
    from flows.errors import ServerError
    from flows.host.progress import Display
    from flows.prefect_api.limits import GPU_LIMIT, alone, ensure_gpu_limit
    from flows.registry.recipes import parse_recipe

    async def enter(_client: Any) -> None:
        async with alone("d", str(tmp_path), parse_recipe(TINY, ["devices.judge=cuda:1"]), Display()):
            raise AssertionError("it went on without the limit")

    machine.ask(lambda client: client.delete_global_concurrency_limit_by_name(GPU_LIMIT))
    with pytest.raises(ServerError, match=r"no concurrency limit 'rondo-gpu'.*rondo up"):
        machine.ask(enter)
    machine.ask(lambda _client: ensure_gpu_limit())


def test_a_worker_that_died_is_started_again(machine: Machine) -> None:
    before = machine.record
    assert before.worker is not None
    assert before.worker.process is not None
    before.worker.process.send_signal(signal.SIGKILL)
    wait_until(lambda: before.worker is None or before.worker.process is None, "end of the worker")
    said = machine.rondo("up")
    assert "the worker has ended by itself" in said
    assert machine.record.server == before.server
    assert machine.record.worker != before.worker
    assert len(machine.ask(lambda client: client.read_automations())) == 1, "it is created once"


def test_down_ends_a_run_in_order_and_leaves_no_process(machine: Machine, recipe: Path, tmp_path: Path) -> None:
    """Last, as it ends what the others use: the run's log is closed, and what was committed is there."""
    long = ("--set", "policy.steps=100000", "--set", "policy.seed=1")
    machine.rondo_here("deploy", str(recipe), "--name", "long", "--root", str(tmp_path), *long)
    deployment = deployment_of(machine, "long")
    machine.ask(lambda client: client.create_flow_run_from_deployment(deployment.id))
    store = Store.open(tmp_path)

    def trains() -> bool:
        return any("trainer" in process.cmdline() for process in machine.family())

    wait_until(lambda: trains() and store.run("long").state == "running", "run that goes on")
    family, record = machine.family(), machine.record
    assert len(family) >= 5  # server, worker, flow and its workers
    said = machine.rondo("down")
    assert record.ui in said
    assert [process for process in family if lives(process)] == []
    assert read() is None
    entries = sorted(tmp_path.glob("runs/long/log/*"))
    assert '"kind":"close"' in entries[-1].read_text().replace(" ", ""), "the run was killed, and did not end in order"
    assert [path.name for path in machine.temporary.glob("rondo-*")] == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", record.port)) != 0
    assert "nothing is up" in machine.rondo("down")
