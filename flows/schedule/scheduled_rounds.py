"""Scheduled rounds: a Prefect flow whose every run adds rounds to the same run of rondo, and when it runs."""

import datetime
import signal
from typing import Annotated, Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags
from prefect.client.schemas.objects import State
from prefect.client.schemas.schedules import RRuleSchedule
from prefect.schedules import Cron, Interval, RRule, Schedule
from prefect.states import Completed
from pydantic import Field

from flows.errors import InterruptedRunError, WaitingForLabelsError
from flows.host.devices import check_devices
from flows.host.progress import Display
from flows.host.text import counted
from flows.prefect_api.control import awaiting_labels, end_flow_run, held_back, session_tag
from flows.prefect_api.limits import SKIPPED, STOOD_FOR, alone, skip_overdue
from flows.registry.catalog import ended_early
from flows.registry.resume import check_goal, create_or_open
from flows.report.report import report
from flows.run.execute import execute
from pipeline.errors import ConfigError, RondoError
from pipeline.recipe import Recipe
from storage.errors import StoreError
from storage.log.lease import Holder, describe_holder, holder
from storage.log.run import Run
from storage.log.store import Store

RunField = Annotated[str, Field(min_length=1, description="name of the run; the first scheduled run creates it")]
RootField = Annotated[str, Field(min_length=1, description="where runs are kept: a directory, or s3://, gs://, az://")]
RoundsField = Annotated[int, Field(ge=1, le=100_000, description="rounds to add")]


@flow(name="rondo-schedule", flow_run_name="{run} scheduled")
async def add_rounds(recipe: Recipe, run: RunField, root: RootField, rounds: RoundsField) -> "State[Any] | None":
    """Adds rounds to a run, once no other run of that name goes on and, if the recipe uses GPUs, these are free.

    Args:
        recipe: the recipe; that of the run, if it exists, on these or other devices
        run: name of the run; the first scheduled run creates it
        root: where runs are kept: a directory, or s3://, gs://, az://
        rounds: rounds to add
    """
    # Ctrl-C is for the schedule, which then ends this process in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    store = Store.open(root)
    with Display() as display:
        try:
            if run in store.run_names():
                create_or_open(store, run, recipe)  # another recipe is refused before it has waited
            async with alone(run, store.root, recipe, display) as mine:
                if not mine:
                    return Completed(name=SKIPPED, message=STOOD_FOR)
                await skip_overdue()
                existing, own = create_or_open(store, run, recipe)
                writer = await writer_of(existing)
                if left_alone := busy_message(existing) if writer == "alive" else held_back(existing):
                    display.say(left_alone)
                    return Completed(name=SKIPPED, message=left_alone)
                target = max(len(existing.rounds()) - 1, 0) + rounds
                if existing.pause is not None and existing.session is not None:  # this very flow run goes on
                    target = existing.session.meta["rounds"]
                check_goal(existing, own, target)
                check_devices(own)
                await execute(store, existing, own, target, display, take_over=writer == "dead")
        except WaitingForLabelsError as waiting:  # the next scheduled run goes on, if they are there
            display.say(str(waiting))
            return awaiting_labels(str(waiting))
        except InterruptedRunError as stopped:
            display.say(str(stopped))
            return await end_flow_run(stopped)
        except (RondoError, StoreError) as error:
            display.say(f"error: {error}")
            raise
        existing.refresh()
        had = ended_early(existing, target) or f"run '{run}' has {counted(target, 'round')}"
        display.say(f"{had}; report: {report(run, root)}")
        return None


async def writer_of(run: Run) -> Holder:
    """Whether the process that has the run open still works on it; "unknown" if neither store nor Prefect says.

    Of a process on another host, as a container is, Prefect says so by the flow run that carries its session as a tag:
    killed, it is Crashed once its signs of life are missed.
    """
    session = run.session
    if session is None or run.state == "stopped":
        return "dead"
    here = holder(session)
    if here != "unknown":
        return here
    tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=[session_tag(session.session)]))
    async with get_client() as client:
        found = await client.read_flow_runs(flow_run_filter=tagged)
    if not found:
        return "unknown"
    return "dead" if all(each.state is not None and each.state.is_final() for each in found) else "alive"


def busy_message(run: Run) -> str:
    """Why a scheduled run leaves a run alone that somebody executes."""
    by = f" by {describe_holder(run.session)}" if run.session is not None else ""
    return f"run '{run.name}' is executed{by}, which adds its rounds; this one adds none"


def schedule_of(cron: str | None, interval: int | None, rrule: str | None) -> Schedule | None:
    """When scheduled runs start, by one of the three; None if none is given. Times are UTC.

    Raises:
        ConfigError: more than one is given, or the expression is none, or it never comes again.
    """
    if len([given for given in (cron, interval, rrule) if given is not None]) > 1:
        raise ConfigError("a schedule needs one of --cron, --interval and --rrule: leave the others out")
    if cron is not None:
        try:
            return Cron(cron)
        except ValueError:
            raise ConfigError(
                f"'{cron}' is no cron expression: give minute, hour, day, month and weekday, such as '0 3 * * *'"
            ) from None
    if rrule is not None:
        return _recurrence(rrule)
    return Interval(interval) if interval is not None else None


def _recurrence(rrule: str) -> Schedule:
    try:
        schedule = RRule(rrule)
        following = RRuleSchedule(rrule=rrule).to_rrule().after(datetime.datetime.now(datetime.UTC))
    except ValueError:
        raise ConfigError(
            f"'{rrule}' is no recurrence rule of iCalendar: give such as 'FREQ=WEEKLY;BYDAY=SA;BYHOUR=3;BYMINUTE=0'"
        ) from None
    if following is None:
        # A rule without a start counts from a day in the past, so that one with COUNT is over.
        raise ConfigError(
            f"the recurrence rule '{rrule}' never comes again: where it has COUNT, say from when, with a line such as "
            "DTSTART:20300101T030000Z before it; where it has UNTIL, give a later one"
        )
    return schedule


def describe(schedule: Schedule) -> str:
    """A schedule in words."""
    if schedule.interval is not None:
        return f"every {schedule.interval.total_seconds():.0f} s"
    return f"by cron '{schedule.cron}' (UTC)" if schedule.cron else f"by rule '{schedule.rrule}' (UTC)"
