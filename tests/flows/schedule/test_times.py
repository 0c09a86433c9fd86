"""When scheduled runs start: what is refused, and the dates over both changes of the clock."""

import datetime
import time
import zoneinfo

import pytest

import flows.prefect_api  # noqa: F401  before Prefect
from flows.schedule.times import describe, next_dates, schedule_of
from pipeline.errors import ConfigError

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("cron", "interval", "rrule", "words"),
    [
        ("0 3 * * *", None, None, "by cron '0 3 * * *' (UTC)"),
        (None, 90, None, "every 90 s"),
        (None, None, "FREQ=WEEKLY;BYDAY=SA;BYHOUR=3", "by rule 'FREQ=WEEKLY;BYDAY=SA;BYHOUR=3' (UTC)"),
    ],
)
def test_schedules_in_words(cron: str | None, interval: int | None, rrule: str | None, words: str) -> None:
    schedule = schedule_of(cron, interval, rrule)
    assert schedule is not None
    assert describe(schedule) == words


def test_no_schedule_is_none() -> None:
    assert schedule_of(None, None, None) is None


@pytest.mark.parametrize(
    ("cron", "interval", "rrule", "sentence"),
    [
        ("0 3 * *", None, None, "'0 3 * *' is no cron expression: give minute"),
        ("0 3 * * *", 5, None, "one of --cron, --interval and --rrule"),
        (None, 5, "FREQ=DAILY", "one of --cron, --interval and --rrule"),
        (None, None, "often", "'often' is no recurrence rule"),
        (None, None, "FREQ=DAILY;COUNT=3", "never comes again: if it has COUNT, say from when"),
        (None, None, "FREQ=DAILY;UNTIL=20210101T000000", "never comes again"),
    ],
)
def test_what_is_no_schedule(cron: str | None, interval: int | None, rrule: str | None, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        schedule_of(cron, interval, rrule)
    assert sentence in str(refused.value)


def test_a_rule_that_counts_from_a_later_day() -> None:
    assert schedule_of(None, None, "DTSTART:20990101T030000Z\nRRULE:FREQ=DAILY;COUNT=2") is not None


@pytest.mark.parametrize(
    ("cron", "rrule", "sentence"),
    [
        ("0 0 30 2 *", None, "never comes: give a day that its months have"),
        ("0 0 31 4,6,9,11 *", None, "never comes"),
        ("* * * * * *", None, "is no cron expression"),
        (None, "FREQ=SECONDLY", "comes too often for a rule (SECONDLY): give its seconds as --interval"),
        (None, "RRULE:INTERVAL=5;FREQ=MINUTELY", "(MINUTELY)"),
        # A fast machine has looked through all years before the time is over, and says "never comes again".
        (None, "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30", "never comes"),
        (None, "FREQ=HOURLY;BYMINUTE=" + ",".join(map(str, range(60))), "takes more than 4 s to compute"),
        (None, "FREQ=DAILY;BYHOUR=25", "is no recurrence rule"),
        (None, "DTSTART;TZID=Mars/Olympus:20300101T030000\nRRULE:FREQ=DAILY", "'Mars/Olympus' is no time zone"),
    ],
)
def test_what_never_comes_or_too_often_is_refused_at_once(cron: str | None, rrule: str | None, sentence: str) -> None:
    """At once: in processor time, which a busy machine does not stretch."""
    began = time.process_time()
    with pytest.raises(ConfigError) as refused:
        schedule_of(cron, None, rrule)
    assert sentence in str(refused.value)
    assert time.process_time() - began < 10


def test_a_time_zone_that_fits_nothing() -> None:
    with pytest.raises(ConfigError, match="'Europe/Berln' is no time zone: give such as Europe/Berlin"):
        schedule_of("0 3 * * *", None, None, "Europe/Berln")
    with pytest.raises(ConfigError, match=r"several time zones \(America/New_York, Europe/Berlin\)"):
        schedule_of(None, None, "DTSTART;TZID=Europe/Berlin:20300101T030000\nRRULE:FREQ=DAILY", "America/New_York")
    with pytest.raises(ConfigError, match="--timezone is for the times of --cron and --rrule"):
        schedule_of(None, 60, None, "Europe/Berlin")


@pytest.mark.parametrize("hour", [3, 9])
@pytest.mark.parametrize(
    ("cron", "rrule", "timezone"),
    [
        ("0 {hour} * * *", None, "Europe/Berlin"),
        (None, "FREQ=DAILY;BYHOUR={hour};BYMINUTE=0;BYSECOND=0", "Europe/Berlin"),
        (None, "DTSTART;TZID=Europe/Berlin:20260101T{hour:02}0000\nRRULE:FREQ=DAILY", None),
        (None, "DTSTART:20260101T{utc:02}0000Z\nRRULE:FREQ=DAILY;UNTIL=20280101T000000Z", "Europe/Berlin"),
    ],
)
@pytest.mark.parametrize("change", [datetime.date(2027, 3, 28), datetime.date(2027, 10, 31)])
def test_dates_over_both_changes_of_the_clock(
    change: datetime.date, cron: str | None, rrule: str | None, timezone: str | None, hour: int
) -> None:
    """In Berlin clocks go from 2 to 3 on 2027-03-28, and from 3 to 2 on 2027-10-31: it stays the local hour."""
    words = {"hour": hour, "utc": hour - 1}  # on the first of January Berlin is an hour ahead
    schedule = schedule_of(cron and cron.format(**words), None, rrule and rrule.format(**words), timezone)
    assert schedule is not None
    days = [change + datetime.timedelta(days) for days in (-2, -1, 0, 1, 2)]
    expected = [datetime.datetime(day.year, day.month, day.day, hour, tzinfo=BERLIN) for day in days]
    start = datetime.datetime(days[0].year, days[0].month, days[0].day, tzinfo=datetime.UTC)
    found = next_dates(schedule, 5, start)
    utc = datetime.UTC
    assert [date.astimezone(utc) for date in found] == [date.astimezone(utc) for date in expected]


def test_the_end_of_a_local_rule_is_a_moment() -> None:
    """UNTIL is in UTC, as iCalendar has it beside a local start: 02:30 UTC lets the run of 03:00 in Berlin happen."""
    until = "DTSTART;TZID=Europe/Berlin:20300101T030000\nRRULE:FREQ=DAILY;UNTIL=20300103T{time}Z"
    last = {"020000": 3, "015959": 2}
    for time_, dates in last.items():
        schedule = schedule_of(None, None, until.format(time=time_))
        assert schedule is not None
        found = next_dates(schedule, 9, datetime.datetime(2029, 12, 31, tzinfo=datetime.UTC))
        assert len(found) == dates


def test_the_hour_that_is_not_there_and_the_one_that_is_twice() -> None:
    """A run at 02:30 happens once a day on these days, too."""
    for day in (datetime.date(2027, 3, 28), datetime.date(2027, 10, 31)):
        schedule = schedule_of("30 2 * * *", None, None, "Europe/Berlin")
        assert schedule is not None
        midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=BERLIN)
        found = next_dates(schedule, 3, midnight - datetime.timedelta(hours=12))
        days = [date.astimezone(BERLIN).date() for date in found]
        assert days == [day + datetime.timedelta(after) for after in range(3)]
