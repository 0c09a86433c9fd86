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

HANGS = 300.0
BOUND = 40.0
"""10 s that others are waited for, some of the workers' own, and room for a busy machine; it was more than 300 s."""
UNTOLD = "the Prefect server was not told of the end of run 'cut'"
LET_GO = "Prefect has not let go of the run"


@dataclass(frozen=True)
class Cut:
    """A run that is stopped while the proxy does not answer."""

    forks: ForkServer
    proxy: PrefectProxy
    recipe: Path
    root: Path

    def begin(self, *command: str) -> Command:
        """Begins a command that sees the proxy."""
        where = {"directory": self.root, "environment": {"PREFECT_API_URL": self.proxy.url}}
        return self.forks.start(*command, "--root", str(self.root), **where)

    def run(self, at: str | None = None) -> Command:
        """Begins the run; it is held at a stage if one is given, see ``support.killed``."""
        module = ["support.killed", at] if at else ["flows.cli.main"]
        run = self.begin(*module, "run", str(self.recipe), "--name", "cut")
        if at:
            until(lambda: "held" in run.output())
        return run

    def stop(self, run: Command, number: signal.Signals) -> str:
        """Signals the run, and returns what it says of Prefect; its processes are gone within the bound."""
        session = Store.open(self.root).run("cut").session
        assert session is not None
        process = psutil.Process(session.meta["pid"])
        family = [process, *process.children(recursive=True)]
        began = time.monotonic()
        process.send_signal(number)
        done = run.wait(HANGS)
        took = time.monotonic() - began
        assert done.returncode == INTERRUPTED, done.stderr
        assert took < BOUND, done.stderr
        assert not [word for word in ("Traceback", "Error", "Exception") if word in done.stderr], done.stderr
        psutil.wait_procs(family, timeout=5)  # those that were killed are gone as soon as somebody has asked
        assert [member for member in family if lives(member)] == []
        by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        *before, last = done.stderr.splitlines()
        assert last.startswith(f"interrupted by {by}: what is committed stays, and 'rondo resume cut' goes on")
        of_prefect = [line for line in (*before, last) if UNTOLD in line or LET_GO in line]
        assert len(of_prefect) == 1, done.stderr
        return of_prefect[0]

    @property
    def log_is_closed(self) -> bool:
        newest = sorted(self.root.glob("runs/cut/log/*"))[-1]
        return '"kind":"close"' in newest.read_text().replace(" ", "")


@pytest.fixture
def cut(forks: ForkServer, environment: dict[str, str], tiny_recipe: Path, tmp_path: Path) -> Iterator[Cut]:
    for name in ("proxy", "root"):
        (tmp_path / name).mkdir()
    with prefect_proxy(environment["PREFECT_API_URL"], tmp_path / "proxy") as proxy:
        yield Cut(forks, proxy, tiny_recipe, tmp_path / "root")


def until(found: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANGS
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_ctrl_c_while_the_server_answers_nothing_but_that_it_is_well(cut: Cut) -> None:
    run = cut.run("prepare_policy:0:held")
    cut.proxy.hangs()
    assert "no answer within 6 s): its page may show that as running" in cut.stop(run, signal.SIGINT)
    assert any(path.endswith("/set_state") for path in cut.proxy.requests("held")), "Prefect was to be told"
    assert cut.log_is_closed, "the run is free for a writer on any machine"


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_was_stopped_beside_such_a_server_ends_as_any_other(
    cut: Cut, whole: Path, number: signal.Signals
) -> None:
    run = cut.run("finish_update:1:held")
    cut.proxy.hangs()
    cut.stop(run, number)
    assert cut.log_is_closed
    cut.proxy.passes()
    done = cut.begin("flows.cli.main", "resume", "cut").wait(HANGS)
    assert done.returncode == 0, done.stderr
    assert_same(whole, "whole", cut.root, "cut", range(3))


# What Prefect asks when a flow begins. Where results are kept it asks in a way that holds up the thread and the loop;
# the second time it has SIGTERM for itself.
BEGINNING = {
    "create": ("^POST .*/flow_runs/$", 0),
    "storage": ("/admin/storage$", 0),
    "name": ("^PATCH .*/flow_runs/", 0),
    "state": ("/set_state$", 0),
    "read": ("^GET .*/flow_runs/[-0-9a-f]{36}$", 0),
    "storage again": ("/admin/storage$", 1),
}


@pytest.mark.nightly
@pytest.mark.parametrize("question", BEGINNING)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_stops_to_answer_while_a_flow_begins(cut: Cut, question: str, number: signal.Signals) -> None:
    pattern, after = BEGINNING[question]
    cut.proxy.hangs(pattern, after=after)
    run = cut.run()
    cut.proxy.wait_for("held", pattern)
    cut.proxy.hangs()
    cut.stop(run, number)
    assert cut.log_is_closed


@pytest.mark.nightly
def test_a_server_that_goes_away_before_the_flow_has_begun(cut: Cut, whole: Path) -> None:
    cut.proxy.hangs(BEGINNING["create"][0])
    run = cut.run()
    cut.proxy.wait_for("held", BEGINNING["create"][0])
    cut.proxy.vanishes()
    time.sleep(1)  # Prefect's client has seen the end of its connection, and waits before it tries again
    cut.stop(run, signal.SIGTERM)
    assert cut.log_is_closed
    cut.proxy.passes()
    done = cut.begin("flows.cli.main", "resume", "cut").wait(HANGS)
    assert done.returncode == 0, done.stderr
    assert_same(whole, "whole", cut.root, "cut", range(3))
