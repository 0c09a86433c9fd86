"""Ctrl-C and SIGTERM end a command within their bound, whatever Prefect's server does: a real one, behind a proxy."""

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flows.cli.main import INTERRUPTED
from flows.host.processes import lives
from storage.log.store import Store
from support.compare import assert_same
from support.forkserver import Command, ForkServer
from support.prefect_proxy import PrefectProxy, prefect_proxy

HANGS = 100.0
BOUND = 40.0  # 10 s of Prefect's, some of the workers' own, and room for a busy machine; Prefect alone took minutes
UNTOLD = "the Prefect server was not told of the end of run 'cut'"


@dataclass(frozen=True)
class Cut:
    """A run that is stopped while the proxy does not answer."""

    forks: ForkServer
    proxy: PrefectProxy
    recipe: Path
    root: Path

    def begin(self, at: str) -> Command:
        """Starts the run, which is held at a stage (see ``support.killed``)."""
        command = ["support.killed", at, "run", str(self.recipe), "--name", "cut", "--root", str(self.root)]
        return self.forks.start(
            *command, directory=self.root, environment={"PREFECT_API_URL": self.proxy.url}
        )

    @property
    def process(self) -> psutil.Process:
        session = Store.open(self.root).run("cut").session
        assert session is not None
        return psutil.Process(session.meta["pid"])

    def stop(self, run: Command, number: signal.Signals) -> str:
        """Signals the run, and returns what it says; its processes are gone within the bound."""
        process = self.process
        family = [process, *process.children(recursive=True)]
        began = time.monotonic()
        process.send_signal(number)
        done = run.wait(HANGS)
        took = time.monotonic() - began
        assert done.returncode == INTERRUPTED, done.stderr
        assert took < BOUND, done.stderr
        assert "Traceback" not in done.stderr
        assert "Error" not in done.stderr
        assert [member for member in family if lives(member)] == []
        by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"interrupted by {by}: what is committed stays, and 'rondo resume cut' goes on")
        assert (done.stderr.count(UNTOLD), done.stderr.count("interrupted by")) == (1, 1), done.stderr
        print(f"{took:.1f} s", done.stderr)
        return done.stderr


@pytest.fixture
def cut(
    forks: ForkServer, environment: dict[str, str], tiny_recipe: Path, tmp_path: Path
) -> Iterator[Cut]:
    (tmp_path / "proxy").mkdir()
    with prefect_proxy(environment["PREFECT_API_URL"], tmp_path / "proxy") as proxy:
        yield Cut(forks, proxy, tiny_recipe, tmp_path)


def is_held(run: Command) -> bool:
    return "held" in run.output()


def until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANGS
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_while_the_server_answers_nothing_but_that_it_is_well(cut: Cut) -> None:
    run = cut.begin("prepare_policy:0:held")
    until(lambda: is_held(run))
    cut.proxy.hangs()
    cut.stop(run, signal.SIGINT)
    assert any(path.endswith("/set_state") for path in cut.proxy.requests("held")), "it was tried"
    assert Store.open(cut.root).run("cut").state == "stopped", "the run is free for the next writer"
