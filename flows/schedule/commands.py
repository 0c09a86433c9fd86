"""What the commands of operation do: up, down, serve, deploy. Prefect is imported once there is something to do."""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flows.errors import ServerError
from flows.host.text import counted
from flows.monitors.tracking import check_tracking
from flows.prefect_api.server_record import Record
from flows.registry.recipes import load_recipe
from flows.registry.resume import create_or_open, report_changes
from flows.schedule import PoolType
from pipeline.errors import ConfigError
from pipeline.recipe import Recipe
from storage.log.store import Store
from storage.objects.layout import check_run_name

Say = Callable[[str], None]
DEFAULT_PORT = 4200


class When(NamedTuple):
    """A schedule as the command line gives it: at most one of cron, interval and rule, and its time zone."""

    cron: str | None
    interval: int | None
    rrule: str | None
    timezone: str | None


@dataclass(frozen=True)
class Target:
    """Where a deployment's runs are executed: the work pool, its type and the containers' image."""

    pool: str
    kind: PoolType | None
    image: str | None


def up(port: int | None, root: str, say: Say) -> None:
    """Starts the background server and its worker, and says where they are; says so too if they ran already."""
    from flows.schedule import background_server

    record, started = background_server.up(port or DEFAULT_PORT, Store.open(root).root, say)
    if not started:
        say("it is up already" if port in (None, record.port) else "it is up at another port: 'rondo down' ends it")
    say(_where(record))
    other = os.environ.get("PREFECT_API_URL")
    if other and other.rstrip("/") != record.api:
        say(f"PREFECT_API_URL is set to {other}, and commands in this shell go there: unset it")


def down(say: Say) -> None:
    """Ends what ``up`` started."""
    from flows.prefect_api import server_record
    from flows.schedule import background_server

    record = background_server.down()
    if record is None:
        say("nothing is up")
        return
    say(f"the server at {record.ui} and its worker have ended; their history stays in {server_record.home()}")


def serve(
    path: Path, name: str | None, when: When, rounds_per_run: int, root: str, changes: Sequence[str], say: Say
) -> None:
    """Serves a deployment until it is interrupted; see ``flows/schedule/scheduled_rounds.py``."""
    from flows.schedule.serve import serve_rounds
    from flows.schedule.times import schedule_of

    schedule = schedule_of(*when)
    if schedule is None:
        raise ConfigError("a schedule needs --cron, --interval or --rrule: give one of the three")
    recipe, store, run = _prepare(path, name, root, changes, say)
    create_or_open(store, run, recipe)
    serve_rounds(recipe, run, store.root, rounds_per_run, schedule)


def deploy(
    path: Path,
    name: str | None,
    when: When,
    target: Target,
    rounds_per_run: int,
    root: str,
    changes: Sequence[str],
    say: Say,
) -> None:
    """Creates a deployment on the background server; see ``flows/schedule/deployments.py``."""
    from flows.prefect_api.server import background_api, using
    from flows.schedule.deployments import deploy_rounds, install
    from flows.schedule.times import describe, describe_next, schedule_of

    schedule = schedule_of(*when)
    api = asyncio.run(background_api(say))
    if api is None:
        raise ServerError("a deployment needs a server that stays: start one with 'rondo up', or set PREFECT_API_URL")
    recipe, store, run = _prepare(path, name, root, changes, say)
    with using(api):
        made = asyncio.run(
            deploy_rounds(
                recipe, run, store.root, rounds_per_run, schedule,
                pool=target.pool, kind=target.kind, image=target.image,
            )
        )  # fmt: skip
    create_or_open(store, run, recipe)
    say(f"'{made.name}' adds {counted(rounds_per_run, 'round')} to run '{run}' in {store.root}, each time that it runs")
    when_ = f"{describe(schedule)}, {describe_next(schedule)}" if schedule else "whenever somebody starts it"
    say(f"when:    {when_}")
    say(f"where:   {_workers(made.pool, made.kind, made.workers, install(made.kind))}")
    say(f"in UI:   {api.removesuffix('/api')}/deployments/deployment/{made.id}")
    say(f"at once: PREFECT_API_URL={api} prefect deployment run '{made.name}'")


def _prepare(path: Path, name: str | None, root: str, changes: Sequence[str], say: Say) -> tuple[Recipe, Store, str]:
    """Reads the recipe, opens the store, and returns both with the run's name.

    The run is not created yet, as Prefect may refuse the rest.

    Raises:
        ConfigError: the recipe is wrong, or the run exists and has one that gives other results.
    """
    recipe = load_recipe(path, changes)
    check_tracking(recipe.tracking)
    store, run = Store.open(root), name or recipe.name
    check_run_name(run)
    if run in store.run_names():
        report_changes(*create_or_open(store, run, recipe), say)
    return recipe, store, run


def _where(record: Record) -> str:
    return "\n".join((
        f"UI:      {record.ui}/deployments has the recipes that ship, paused: Quick run starts one",
        f"worker:  work pool '{record.pool}', processes of this machine",
        "rondo's own commands find the server; for those of Prefect:",
        f"         export PREFECT_API_URL={record.api}",
        "rondo down ends both",
    ))  # fmt: skip


def _workers(pool: str, kind: str, workers: int, needed: str) -> str:
    if workers:
        return f"work pool '{pool}' ({kind}), workers online: {workers}"
    package = "" if kind == "process" else f" (it needs: {needed})"
    return f"work pool '{pool}' ({kind}); no worker is online: prefect worker start --pool {pool}{package}"
