"""When scheduled runs start: a cron expression, an interval or a recurrence rule, in UTC or in a local time zone.

Prefect's server computes the dates. What it could not compute, or only in minutes of processor time, is refused here.
"""

import asyncio
import datetime
import difflib
import re
import signal
import zoneinfo
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.schedules import Cron, Interval, RRule, Schedule
from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

from pipeline.errors import ConfigError

UTC = "UTC"
COMPUTE_SECONDS = 4.0
"""Processor time that the next date may take; the server computes it again and again."""
_ZONE = re.compile(r";TZID=([^:;\s]+)", re.IGNORECASE)
_IN_UTC = re.compile(r"\b(\d{8}T\d{6})Z", re.IGNORECASE)
_OFTEN = re.compile(r"FREQ=(SECONDLY|MINUTELY)\b", re.IGNORECASE)


def schedule_of(
    cron: str | None, interval: int | None, rrule: str | None, timezone: str | None = None
) -> Schedule | None:
    """Returns when scheduled runs start, by one of the three; None if none is given.

    Args:
        timezone: that of the times of a cron expression or of a rule; a rule may name it itself (TZID); else UTC.

    Raises:
        ConfigError: more than one is given, or it is not valid, never comes again, or takes too long to compute.
    """
    if len([given for given in (cron, interval, rrule) if given is not None]) > 1:
        raise ConfigError("a schedule needs one of --cron, --interval and --rrule: leave the others out")
    if timezone is not None:
        if cron is None and rrule is None:
            raise ConfigError("--timezone is for the times of --cron and --rrule: leave it out")
        _check_timezone(timezone)
    if cron is not None:
        return _cron(cron, timezone or UTC)
    if rrule is not None:
        return _recurrence(rrule, timezone)
    return Interval(interval) if interval is not None else None


def next_dates(schedule: Schedule, number: int, after: datetime.datetime) -> list[datetime.datetime]:
    """Returns the first dates on or after one, as Prefect's server computes them; fewer if no more come."""
    kind: Any
    if schedule.cron is not None:
        kind = CronSchedule(cron=schedule.cron, timezone=schedule.timezone)
    elif schedule.rrule is not None:
        kind = RRuleSchedule(rrule=schedule.rrule, timezone=schedule.timezone or UTC)
    else:
        kind = IntervalSchedule(interval=schedule.interval, anchor_date=schedule.anchor_date)
    return [*asyncio.run(kind.get_dates(n=number, start=after))]


def describe(schedule: Schedule) -> str:
    """Describes a schedule in words."""
    if schedule.interval is not None:
        return f"every {schedule.interval.total_seconds():.0f} s"
    rule = f"by cron '{schedule.cron}'" if schedule.cron else f"by rule '{' '.join((schedule.rrule or '').split())}'"
    return f"{rule} ({schedule.timezone})"


def describe_next(schedule: Schedule) -> str:
    """Says when a schedule comes next, in its own time zone."""
    coming = next_dates(schedule, 1, datetime.datetime.now(datetime.UTC))
    return f"next on {coming[0]:%Y-%m-%d %H:%M %Z}" if coming else "never again"


def _check_timezone(name: str) -> None:
    known = zoneinfo.available_timezones()
    if name not in known:
        near = difflib.get_close_matches(name, sorted(known), 1)
        raise ConfigError(f"'{name}' is no time zone: give such as {near[0] if near else 'Europe/Berlin'}")


def _cron(cron: str, timezone: str) -> Schedule:
    try:
        # A sixth field would be seconds, and no round is that short.
        schedule = Cron(cron, timezone=timezone) if len(cron.split()) == 5 or cron.startswith("@") else None
    except ValueError:
        schedule = None
    if schedule is None:
        raise ConfigError(
            f"'{cron}' is no cron expression: give minute, hour, day, month and weekday, such as '0 3 * * *'"
        )
    try:
        next_dates(schedule, 1, datetime.datetime.now(datetime.UTC))
    except ValueError:  # croniter's, which has looked through fifty years
        raise ConfigError(f"the cron expression '{cron}' never comes: give a day that its months have") from None
    return schedule


def _recurrence(rrule: str, timezone: str | None) -> Schedule:
    if often := _OFTEN.search(rrule):
        raise ConfigError(
            f"'{rrule}' comes too often for a rule ({often[1].upper()}): give its seconds as --interval, such as "
            "--interval 600"
        )
    named = {zone.strip('"') for zone in _ZONE.findall(rrule)}
    zones = {*named, *([timezone] if timezone else [])}
    if len(zones) > 1:
        raise ConfigError(
            f"the recurrence rule '{rrule}' is in several time zones ({', '.join(sorted(zones))}): keep one"
        )
    zone = next(iter(zones), UTC)
    _check_timezone(zone)
    try:
        schedule = RRule(_as_local(rrule, zone), timezone=zone)
        with _limited(rrule):
            following = next_dates(schedule, 1, datetime.datetime.now(datetime.UTC))
    except ConfigError:
        raise
    except (ValueError, TypeError):  # the latter for an hour that no day has
        raise ConfigError(
            f"'{rrule}' is no recurrence rule of iCalendar: give such as 'FREQ=WEEKLY;BYDAY=SA;BYHOUR=3;BYMINUTE=0'"
        ) from None
    if not following:
        # A rule without a start counts from a day in the past, so that one with COUNT is over.
        raise ConfigError(
            f"the recurrence rule '{rrule}' never comes again: if it has COUNT, say from when, with a line such as "
            "DTSTART:20300101T030000Z before it; if it has UNTIL, give a later one"
        )
    return schedule


def _as_local(rrule: str, zone: str) -> str:
    """Rewrites a rule's times as a clock in that zone shows them: Prefect takes no zone from within the rule."""

    def local(found: re.Match[str]) -> str:
        moment = datetime.datetime.strptime(found[1].upper(), "%Y%m%dT%H%M%S").replace(tzinfo=datetime.UTC)
        return f"{moment.astimezone(zoneinfo.ZoneInfo(zone)):%Y%m%dT%H%M%S}"

    return _IN_UTC.sub(local, _ZONE.sub("", rrule))


@contextmanager
def _limited(rrule: str) -> Iterator[None]:
    """Ends the computation of a rule that would walk through thousands of years, or through each minute since 2020.

    Raises:
        ConfigError: the block takes more than ``COMPUTE_SECONDS`` of processor time.
    """

    def end(*_: object) -> None:
        raise ConfigError(
            f"the recurrence rule '{rrule}' takes more than {COMPUTE_SECONDS:.0f} s to compute: it never comes, or "
            "comes too often since it began; give days that its months have, or a later DTSTART"
        )

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, COMPUTE_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
