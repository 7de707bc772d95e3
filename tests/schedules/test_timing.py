"""Time: which ticks an expression has, held against a brute-force oracle, croniter, and a file that never changes."""

from __future__ import annotations

import copy
import io
import itertools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from zoneinfo import ZoneInfo

import oracle
import pytest
import ticks as golden
from croniter import croniter
from freezegun import freeze_time
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from oracle import DAY, HOUR, MINUTE, RULES, RULES_OF_SECONDS, SECOND, Change, Rule, Wall

from pgcron_lite.errors import OptionError
from pgcron_lite.schedules.cron import parser
from pgcron_lite.schedules.timing import MICROSECOND, Cron, Every, Timing, jitter_of, read_timing

LONG = bool(os.environ.get("PGCRON_TEST_LONG"))
YEAR_2026 = datetime(2026, 1, 1, tzinfo=UTC)


def local(timing: Timing, day: str, zone: str, hours: float = 24) -> list[str]:
    """The ticks of a day, as the clock shows them."""
    start = datetime.fromisoformat(day).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)
    found = timing.between(start - MICROSECOND, start + timedelta(hours=hours) - MICROSECOND)
    return [tick.astimezone(ZoneInfo(zone)).strftime("%H:%M%z") for tick in found]


# The promise.


def test_nothing_moves_a_tick() -> None:
    assert golden.made() == json.loads(golden.FILE.read_text("utf-8"))


# Changes of the clocks, each kind there has been or will be: by how much, and at what time.


@pytest.fixture(scope="module")
def changes() -> list[Change]:
    """One or two changes of each kind there is in the years 2000 to 2037; all of them with PGCRON_TEST_LONG=1."""
    if LONG:
        return [change for history in oracle.distinct(*oracle.YEARS, 6 * HOUR) for change in history]
    kinds: dict[object, list[Change]] = defaultdict(list)
    for history in oracle.distinct(*oracle.YEARS, 5 * DAY):
        for change in history:
            kinds[change.kind].append(change)
    return [change for alike in kinds.values() for change in {alike[0], alike[-1]}]


@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.row(94, 95, 96)
def test_around_every_change_of_the_clocks_the_ticks_are_those_of_the_oracle(changes: list[Change]) -> None:
    assert len({change.kind for change in changes}) > 40
    for change in changes:
        wall = Wall(ZoneInfo(change.zone), change.instant - 50 * HOUR, change.instant + 27 * HOUR, MINUTE)
        for rule in RULES:
            check(rule, change, wall, change.instant - 26 * HOUR, change.instant + 27 * HOUR)


@pytest.mark.timeout(3600 if LONG else 120)
def test_the_seconds_around_changes_of_the_clocks_are_those_of_the_oracle(changes: list[Change]) -> None:
    for change in changes[::7]:
        wall = Wall(ZoneInfo(change.zone), change.instant - 4 * HOUR, change.instant + 3 * HOUR, SECOND)
        for rule in RULES_OF_SECONDS:
            check(rule, change, wall, change.instant - HOUR, change.instant + 3 * HOUR)


def check(rule: Rule, change: Change, wall: Wall, start: datetime, end: datetime) -> None:
    timing = Cron(rule.expression, change.zone)

    expected = [tick for tick in wall.ticks(rule) if start < tick <= end]
    found = list(timing.between(start, end))

    assert found == expected, f"{rule.expression} in {change}"
    assert list(backwards(timing, end + MICROSECOND, start)) == expected[::-1], f"{rule.expression} back in {change}"
    # Asked at any moment, among them those that the clock shows a second time.
    for minutes in range(-200, 200, 19):
        moment = change.instant + minutes * MINUTE + minutes * MICROSECOND
        place = bisect_right(expected, moment)
        if start < moment < end and 0 < place < len(expected):
            assert timing.next(moment) == expected[place], f"{rule.expression} after {moment} in {change}"
            place = bisect_left(expected, moment) - 1
            assert timing.previous(moment) == expected[place], f"{rule.expression} before {moment} in {change}"


def backwards(timing: Timing, before: datetime, after: datetime) -> Iterator[datetime]:
    while (tick := timing.previous(before)) is not None and tick > after:
        yield tick
        before = tick


@pytest.mark.row(94)
@pytest.mark.parametrize(
    ("expression", "zone", "day", "shown"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-03-29", ["03:00+0200"]),
        ("0,20,40 2 * * *", "Europe/Berlin", "2026-03-29", ["03:00+0200"]),
        ("0 2,3 * * *", "Europe/Berlin", "2026-03-29", ["03:00+0200"]),
        ("30 2,3 * * *", "Europe/Berlin", "2026-03-29", ["03:00+0200", "03:30+0200"]),
        ("*/30 1-3 * * *", "Europe/Berlin", "2026-03-29", ["01:00+0100", "01:30+0100", "03:00+0200", "03:30+0200"]),
        ("30 2 * * *", "Antarctica/Troll", "2015-03-29", ["03:00+0200"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2020-10-04", ["02:30+1100"]),
        ("0 0 * * *", "America/Sao_Paulo", "2018-11-04", ["01:00-0200"]),
        ("0 0 * * *", "Asia/Beirut", "2022-03-27", ["01:00+0300"]),
    ],
)
def test_a_time_that_is_left_out_is_due_once_after_the_gap(expression, zone, day, shown):
    assert local(Cron(expression, zone), day, zone, 23) == shown


@pytest.mark.row(95, 96)
@pytest.mark.parametrize(
    ("expression", "zone", "day", "shown"),
    [
        ("30 2 * * *", "Europe/Berlin", "2026-10-25", ["02:30+0200"]),
        ("*/30 2,3 * * *", "Europe/Berlin", "2026-10-25", ["02:00+0200", "02:30+0200", "03:00+0100", "03:30+0100"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2020-04-05", ["01:45+1100"]),
        ("30 23 * * *", "America/Sao_Paulo", "2018-02-17", ["23:30-0200"]),
        ("0 0 * * *", "America/Havana", "2010-10-31", ["00:00-0400"]),
        ("0 0 * * *", "Atlantic/Azores", "2010-10-31", ["00:00+0000"]),
        ("0 0 * * *", "Asia/Amman", "2015-10-30", ["00:00+0300"]),
    ],
)
def test_a_time_that_comes_twice_is_due_the_first_time(expression, zone, day, shown):
    assert local(Cron(expression, zone), day, zone, 25) == shown


def test_every_hour_is_every_hour_that_passes():
    berlin = Cron("@hourly", "Europe/Berlin")

    assert len(local(berlin, "2026-03-29", "Europe/Berlin", 23)) == 23
    assert len(local(berlin, "2026-10-25", "Europe/Berlin", 25)) == 25
    assert {b - a for a, b in itertools.pairwise(berlin.between(YEAR_2026, YEAR_2026 + 365 * DAY))} == {HOUR}


@pytest.mark.parametrize("hour", ["*", "0-23", "*/1", "0/1"])
def test_the_whole_of_the_hours_is_a_wildcard_however_it_is_written(hour):
    assert len(local(Cron(f"30 {hour} * * *", "Europe/Berlin"), "2026-10-25", "Europe/Berlin", 25)) == 25


def test_a_step_in_the_hour_follows_the_clock_and_makes_nothing_up():
    even = Cron("0 */2 * * *", "Europe/Berlin")

    assert local(even, "2026-03-29", "Europe/Berlin", 6) == ["00:00+0100", "04:00+0200", "06:00+0200"]
    assert local(even, "2026-10-25", "Europe/Berlin", 6) == ["00:00+0200", "02:00+0200", "02:00+0100", "04:00+0100"]


def test_a_day_that_never_was_is_made_up_for_once():
    daily = Cron("0 9,12 * * *", "Pacific/Apia").between(
        datetime(2011, 12, 29, 12, tzinfo=UTC), datetime(2011, 12, 31, 9, tzinfo=UTC)
    )

    shown = [tick.astimezone(ZoneInfo("Pacific/Apia")).isoformat() for tick in daily]
    assert shown == [f"2011-12-{t}" for t in ("29T09:00:00-10:00", "29T12:00:00-10:00", "31T00:00:00+14:00",
                                              "31T09:00:00+14:00", "31T12:00:00+14:00")]  # fmt: skip


def test_a_tick_says_what_a_change_of_the_clocks_did_to_it():
    def notes(expression: str, start: str) -> list[str | None]:
        timing = Cron(expression, "Europe/Berlin")
        ticks = timing.between(datetime.fromisoformat(start), YEAR_2026 + 999 * DAY)
        return [timing.note(tick) for tick in islice(ticks, 3)]

    skips, twice = "the clock skips 02:30; this is the first instant after the gap", "the clock shows this twice;"
    assert notes("30 2 * * *", "2026-03-28T00:00Z") == [None, skips, None]
    assert notes("30 2 * * *", "2026-10-24T00:00Z") == [None, f"{twice} runs the first time only", None]
    assert notes("30 * * * *", "2026-10-25T00:00Z") == [
        f"{twice} this is the first time", f"{twice} this is the second time", None
    ]  # fmt: skip


def test_the_table_of_the_manual_is_true():
    page = (Path(__file__).parents[2] / "docs" / "cron-expressions.md").read_text("utf-8")
    place, checked = "", 0
    for row in page.partition("| Zone and day |")[2].partition("\n\n")[0].splitlines()[2:]:
        day, _, expression, due = (cell.strip() for cell in row.strip("|").split("|"))
        place = day or place
        zone, date = place.split(", ")
        wanted = re.findall(r"(\d\d:\d\d)(?: \(([+-]\d\d):(\d\d)\))?", due)
        # The table begins somewhere in the day, and a day that never was begins a day early.
        ticks = [(tick[:5], tick[5:]) for tick in local(Cron(expression.strip("`"), zone), date, zone, 30)]
        begin = next(n for n, (time, _) in enumerate(ticks) if time == wanted[0][0])
        for (time, offset), (shown, hours, minutes) in zip(ticks[begin:], wanted, strict=False):
            assert (time, offset if hours else "") == (shown, hours + minutes), row
            checked += 1
    assert checked > 20


# Ticks in general, of expressions made at random.

ZONES = [
    "UTC", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Africa/Casablanca", "Asia/Gaza", "Pacific/Apia"
]  # fmt: skip


def of_field(low: int, high: int, names: str = "") -> st.SearchStrategy[str]:
    values = st.integers(low, high)
    single = values.map(str) | (st.sampled_from(names.split()) if names else st.nothing())
    spans = st.tuples(values, values).filter(lambda span: span[0] < span[1])
    ranges = spans.map(lambda span: f"{span[0]}-{span[1]}")
    steps = st.integers(1, (high - low) // 2)
    stepped = st.builds(lambda step: f"*/{step}", steps)
    return st.just("*") | st.lists(single | ranges, min_size=1, max_size=3).map(",".join) | stepped


MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"
WEEKDAYS = "SUN MON TUE WED THU FRI SAT"
TIMES = st.tuples(of_field(0, 59), of_field(0, 23))
DATES = (
    st.tuples(of_field(1, 28) | st.just("L"), of_field(1, 12, MONTHS), st.just("*"))
    | st.tuples(st.just("*"), of_field(1, 12, MONTHS), of_field(0, 6, WEEKDAYS))
    | st.tuples(st.just("*"), of_field(1, 12, MONTHS), st.sampled_from(["L5", "1#3", "FRI#1", "MON#2,L0"]))
    | st.tuples(st.integers(1, 31).map(str), st.just("*"), st.sampled_from(WEEKDAYS.split()))
)
EXPRESSIONS = st.builds(lambda time, date: " ".join([*time, *date]), TIMES, DATES)
MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2037, 12, 31), timezones=st.just(UTC))
GRIDS = st.builds(
    lambda span, name: Every(span, name=name), st.timedeltas(SECOND, 400 * DAY), st.sampled_from(["", "a", "shop.b"])
)
TIMINGS = st.builds(Cron, EXPRESSIONS, st.sampled_from(ZONES)) | GRIDS


@given(TIMINGS, MOMENTS)
def test_a_next_tick_is_later_and_a_previous_one_earlier(timing, moment):
    later, earlier = timing.next(moment), timing.previous(moment)

    assert later is not None
    assert earlier is not None
    assert earlier < moment < later
    assert later.tzinfo is earlier.tzinfo is UTC


@given(TIMINGS, MOMENTS)
def test_next_and_previous_are_inverse(timing, moment):
    tick = timing.next(moment)
    following = timing.next(tick)

    assert timing.previous(following) == tick
    assert timing.next(timing.previous(tick)) == tick
    assert timing.next(tick - MICROSECOND) == timing.previous(tick + MICROSECOND) == tick


@given(TIMINGS, MOMENTS, st.floats(0, 1))
def test_between_two_ticks_there_is_none(timing, moment, share):
    tick = timing.next(moment)
    following = timing.next(tick)
    meanwhile = tick + share * (following - tick)

    assume(tick <= meanwhile < following)
    assert timing.next(meanwhile) == following
    assert list(timing.between(tick, following)) == [following]


@given(EXPRESSIONS, MOMENTS)
@example("0 0 29 2 *", datetime(2000, 3, 1, tzinfo=UTC))
@example("0 0 * 2 5#5", datetime(2008, 3, 1, tzinfo=UTC))
def test_where_no_clock_is_changed_croniter_has_the_same_ticks(expression, moment):
    theirs = croniter(expression, moment, ret_type=datetime)

    ours = islice(Cron(expression).between(moment, moment + 60_000 * DAY), 3)
    assert list(ours) == [theirs.get_next() for _ in range(3)]


# Expressions.


@pytest.mark.parametrize(
    ("written", "same"),
    [
        ("@daily", "0 0 * * *"), ("@Midnight", "0 0 * * *"), ("@hourly", "0 * * * *"), ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"), ("@yearly", "0 0 1 1 *"), ("@annually", "0 0 1 1 *"), ("0 0 * * 7", "0 0 * * SUN"),
        ("0 0 ? * MON", "0 0 * * 1"), ("0 0 1 ? *".replace("?", "jan"), "0 0 1 1 *"), ("  0\t0 1 *  * ", "0 0 1 * *"),
        ("0 0 * * 5-7", "0 0 * * 0,5,6"), ("0 22-1 * * *", "0 22,23,0,1 * * *"), ("05 04 * * *", "5 4 * * *"),
        ("0 0 1-31 * *", "0 0 * * *"), ("0 0 * * 1-7", "0 0 * * *"), ("0 9 * * * 0", "0 9 * * *"),
        ("10/20 * * * *", "10,30,50 * * * *"), ("* * 28-L 1 *", "* * 28,29,30,31 1 *"), ("0 0 * 1-12 *", "0 0 * * *"),
        ("*/10 * * * * 0-59", "*/10 * * * * 00-59"), ("5,5,5 * * * *", "5 * * * *"),
    ],
)  # fmt: skip
def test_an_expression_can_be_written_in_several_ways(written, same):
    assert Cron(written).pattern == Cron(same).pattern


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "it has 0 fields; expected five"), ("* * * *", "it has 4 fields; expected five"), ("5", "it has 1 field;"),
        ("0 0 1 1 * 0 2030", "it has 7 fields; .* bound the schedule with start and end"),
        ("60 * * * *", "there is no minute 60; did you mean 0[?] Minutes are 0 to 59"),
        ("* 24 * * *", "no hour 24; did you mean 0"), ("0 0 0 * *", "no day 0[.] Days are 1 to 31"),
        ("0 0 32 * *", "no day 32"), ("0 0 * 13 *", "no month 13[.] Months are 1 to 12, or JAN to DEC"),
        ("0 0 * * 8", "no weekday 8"), ("9999999999999 * * * *", "no minute 99999"),
        ("@dayly", "did you mean '@daily'"), ("@reboot", "names no moment"),
        ("@every 5m", "write @app.every[(]'5m'[)], or 'every 5m'"),
        ("every 5m", "write @app.every[(]'5m'[)]"), ("* * * * MONN", "'MONN' is no weekday; did you mean 'MON'"),
        ("* * * * Monday", "did you mean 'MON'"), ("0 0 1 sept *", "did you mean 'SEP'"),
        ("0 0 x * *", "'X' is no day"),
        ("jan * * * *", "'JAN' is no minute"), ("-5 * * * *", "has a sign"), ("+5 * * * *", "has a sign"),
        ("1,,2 * * * *", "'' is no minute"), ("1-2-3 * * * *", "'1-2-3' is no minute"), ("é * * * *", "character 'é'"),
        ("0 0\xa01 * *", "character"), ("* * * * *\0", "character"), ("? * * * *", "stands alone"),
        ("0 0 ?/2 * *", "stands alone"), ("*-5 * * * *", "is no range"), ("*/0 * * * *", "a step of 0"),
        ("*,5 * * * *", "write '[*]'"),
        ("0 0 ?,5 * *", "write '[*]'"), ("5- * * * *", "is no minute"), ("/5 * * * *", "is no minute"),
        ("1.5 * * * *", "is no minute"), ("1_0 * * * *", "is no minute"), ("٣ * * * *", "character"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_what_to_type(written, says):
    with pytest.raises(OptionError, match=says):
        Cron(written)


@pytest.mark.row(98)
@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("0 0 30 2 *", "would never run: there is no day 30 in Feb"),
        ("0 0 31 4,6,9,11 *", "no day 31 in Apr or Jun or Sep or Nov"),
        ("0 0 30,31 2 *", "no day 30 in Feb"), ("0 0 30 2 1", "no day 30 in Feb"),
    ],
)  # fmt: skip
def test_a_date_that_never_comes_is_refused(written, says):
    with pytest.raises(OptionError, match=says):
        Cron(written)


def test_a_date_that_comes_seldom_is_waited_for():
    leap, fifth = Cron("0 0 29 2 *"), Cron("0 0 * 2 5#5")

    assert leap.next(datetime(2096, 3, 1, tzinfo=UTC)) == datetime(2104, 2, 29, tzinfo=UTC)
    assert leap.previous(datetime(2104, 1, 1, tzinfo=UTC)) == datetime(2096, 2, 29, tzinfo=UTC)
    assert fifth.next(datetime(2064, 3, 1, tzinfo=UTC)) == datetime(2092, 2, 29, tzinfo=UTC)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("59/15 * * * *", "reaches no second minute; write '59'.* every[(]'15m'[)]"),
        ("0 23/6 * * *", "write '23'"), ("0 0 * * SAT/2", "write '6'"), ("0 0 * DEC/3 *", "write '12'"),
        ("*/70 * * * *", "every[(]'70m'[)]"), ("0 */24 * * *", "write '0'"), ("10-20/15 * * * *", "write '10'"),
        ("0 0 * JAN-JAN *", "begins and ends with one month"), ("0 0 * * 0-7", "begins and ends"),
        ("5-5 * * * *", "write '5', or '[*]' for all"), ("0 22-4/2 * * *", "steps around the end"),
        ("0 0 * * FRI-MON/2", "steps around"), ("0 0 1-31 * 1", "'1-31', every day, could mean every day"),
        ("0 0 13 * 0-6", "'0-6', every weekday"), ("0 0 */2 * 1", "cron requires a day to match both fields"),
        ("0 0 13 * */2", "If you mean either, write '0,2,4,6'"), ("0 0 13 * 5#2", "cannot be combined"),
        ("0 0 * * 1,5#2", "make it two schedules"),
        ("0 0 15W * *", "not supported"), ("0 0 LW * *", "not supported"), ("0 0 L-3 * *", "not supported"),
        ("0 0 * * 5L", "is 'L5'"), ("0 0 * * L", "is 'L5'"), ("0 0 * * 5#L", "is 'L5'"), ("0 0 * * 5#6", "'FRI#2'"),
        ("0 0 * * 1-3#2", "'FRI#2'"), ("0 0 L/2 * *", "is no day"),
    ],
)  # fmt: skip
def test_what_has_or_had_another_meaning_elsewhere_is_refused(written, says):
    with pytest.raises(OptionError, match=says):
        Cron(written)


@pytest.mark.row(100)
@pytest.mark.parametrize("written", ["H * * * *", "0 R * * *", "h/15 * * * *", "R(0-9) * * * *", "0 0 * * H"])
def test_a_hashed_or_random_expression_is_refused(written):
    with pytest.raises(OptionError, match="hashed or random"):
        Cron(written)


@pytest.mark.row(99)
@pytest.mark.row("S12")
def test_an_expression_that_is_made_to_be_slow_is_refused_by_its_length():
    with pytest.raises(OptionError, match="a cron expression of 70008 characters; it may have 256"):
        Cron(",".join(["1"] * 35_000) + "1 * * * *")


def test_what_is_no_text_is_refused():
    with pytest.raises(OptionError, match="expected a cron expression as text"):
        Cron(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("*/10 * * * * *", "* * * * * */10"), ("0 */5 * * * *", "*/5 * * * *"), ("0 0 2 * * *", "0 2 * * *"),
        ("0 30 2 * * 1-5", "30 2 * * 1-5"), ("0 0 12 * * ?", "0 12 * * ?"), ("0 15 10 * * 1", "15 10 * * 1"),
        ("0 15 10 ? * MON-FRI", "15 10 ? * MON-FRI"), ("0 0 4 * * 0", "0 4 * * 0"), ("30 0 4 1 1 *", "0 4 1 1 * 30"),
        ("*/5 * * * * 0,3", "* * * * 0,3 */5"), ("0 10 * * ? *", "0 10 * * ?"), ("0,30 9 * * 1-5 *", "0,30 9 * * 1-5"),
        ("0 0 0 * * *", "0 0 * * *"), ("0 0 0 1 1 *", "0 0 1 1 *"), ("0 0 9-17 * * MON-FRI", "0 9-17 * * MON-FRI"),
    ],
)  # fmt: skip
def test_seconds_that_seem_to_come_first_are_refused_with_what_seems_meant(written, meant):
    with pytest.raises(OptionError) as refused:
        Cron(written)

    assert "the last of six fields is the seconds here" in str(refused.value)
    assert repr(meant) in str(refused.value)
    Cron(meant)


@pytest.mark.parametrize(
    ("written", "confirmed"),
    [
        ("*/10 * * * * *", "*/10 * * * * 0-59"), ("0 15 10 * * 1", "0 15 10 * * 01"), ("0 0 4 * * 0", "0 0 4 * * 00"),
        ("*/5 * * * * 0,3", "*/5 * * * * 00,03"), ("0 15 10 * * 1-5", "0 15 10 * * 01-05"),
    ],
)  # fmt: skip
def test_seconds_that_are_meant_to_come_last_can_be_confirmed(written, confirmed):
    with pytest.raises(OptionError) as refused:
        Cron(written)

    assert f"If it is meant as it stands, write {confirmed!r}" in str(refused.value)
    assert len(Cron(confirmed).pattern.seconds) in (1, 2, 5, 60)


@pytest.mark.parametrize(
    "written",
    [
        "* * * * * *", "* * * * * */10", "* * * * * 30", "0 * * * * */15", "*/5 * * * * 15", "0 9 * * * 30",
        "0 2 * * * 0", "0 2 1 * * 30", "30 2 1 * * 0", "* 9-17 * * 1-5 */20", "0 9 * * 1-5 0,30",
    ],
)  # fmt: skip
def test_six_fields_that_make_sense_as_they_stand_are_taken(written):
    assert Cron(written).next(YEAR_2026) is not None


def test_an_expression_that_the_installed_croniter_reads_otherwise_is_refused(monkeypatch):
    parser._read.cache_clear()
    monkeypatch.setattr(croniter, "expand", lambda text, strict: ([[30], [3], ["*"], ["*"], ["*"]], {}))

    with pytest.raises(OptionError, match=r"'30 2 \* \* \*': the installed croniter [0-9.]+ reads it differently"):
        Cron("30 2 * * *")

    assert Cron("30 3 * * *")
    parser._read.cache_clear()


def test_an_expression_that_the_installed_croniter_refuses_is_refused(monkeypatch):
    def expand(text: str, strict: bool) -> None:
        raise ValueError("not today")

    parser._read.cache_clear()
    monkeypatch.setattr(croniter, "expand", expand)

    with pytest.raises(OptionError, match=r"croniter [0-9.]+ refuses it: not today"):
        Cron("30 2 * * *")


# Words.


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("30 2 * * *", "at 02:30 every day"), ("* * * * *", "every minute"),
        ("*/5 9-17 * * 1-5", "every 5 minutes from 09:00 to 17:55, Monday to Friday"),
        ("*/5 * * * *", "every 5 minutes"), ("0 * * * *", "every hour"),
        ("15 * * * *", "at minute 15 of every hour"), ("15 9-17 * * *", "every hour from 09:15 to 17:15, every day"),
        ("0 */2 * * *", "every 2 hours from 00:00 to 22:00, every day"),
        ("0 9,17 * * *", "at 09:00 and 17:00 every day"),
        ("*/7 * * * *", "at minutes 0 to 56 in steps of 7 of every hour"), ("@weekly", "at 00:00 on Sundays"),
        ("* 3 * * *", "every minute from 03:00 to 03:59, every day"), ("@yearly", "at 00:00 on day 1 of January"),
        ("0 0 L * *", "at 00:00 on the last day of the month"),
        ("0 9 * * L5", "at 09:00 on the last Friday of the month"),
        ("0 9 * 1,7 1#2", "at 09:00 on the second Monday of January and July"),
        ("0 0 13 * 5", "at 00:00 on day 13 of the month, and also on Fridays"),
        ("0 0 1,15,L 6-8 *", "at 00:00 on days 1 and 15 and the last day of June to August"),
        ("* * * * * *", "every second"), ("* * * * * */10", "every 10 seconds"),
        ("0 9 * * * 30", "at 09:00:30 every day"),
        ("* 9-17 * * * */20", "every 20 seconds from 09:00:00 to 17:59:40, every day"),
        ("0 0 * * SAT,SUN", "at 00:00 on Saturdays and Sundays"), ("0 0 * 1 *", "at 00:00 every day in January"),
        ("5 1,3,8-10 * 5 1-3", "at minute 5 of hours 1, 3 and 8 to 10, Monday to Wednesday in May"),
    ],
)  # fmt: skip
def test_an_expression_in_words(expression, words):
    assert Cron(expression).words == words


def test_different_schedules_have_different_words():
    minutes = ["*", "*/5", "*/7", "0", "15", "0,30", "5-50", "0-9,45", "1-59/2", "50-59", "0,20,40,59"]
    hours = ["*", "*/2", "1/2", "3", "0,12", "9-17", "9-16", "9-17/2", "22-2", "1,3,8-10", "1-5,7", "9,10"]
    days = ["* * *", "1 * *", "L * *", "1,L * *", "*/2 * *", "1-7 * *", "13 * 5", "13 1 5", "29 2 *", "* 1 *"]
    days += ["* 1-3 *", "* 1,3 *", "* * 1-5", "* * 1-2", "* * 0,6", "* * 5-7", "* * L5", "* * 5#2", "* 2 5#2,L5"]
    days += ["* 1 1-5"]
    seconds = ["", " 30", " */10", " 10-20", " 0,30", " */7"]
    texts = ["{} {} {}{}".format(*parts).lower() for parts in itertools.product(minutes, hours, days, seconds)]

    words = {parser.describe(parser._pattern(text.split())) for text in texts}

    assert len(words) == len(texts)


# Time zones.


@pytest.mark.parametrize(
    ("zone", "says"),
    [
        ("Europe/Berln", "did you mean 'Europe/Berlin'"), ("europe/berlin", "did you mean 'Europe/Berlin'"),
        ("Berlin", "did you mean 'Europe/Berlin'"), ("", "there is no time zone tz=''"),
        ("../etc/passwd", "no time zone"), ("/etc/localtime", "no time zone"), ("Europe", "no time zone"),
        ("a\0b", "no time zone"), (None, "expected the name"), (UTC, "expected the name"),
        ("+02:00", "no time zone"), ("Europe/" + "x" * 300, "no time zone"),
    ],
)  # fmt: skip
def test_a_time_zone_that_is_none_is_refused(zone, says):
    with pytest.raises(OptionError, match=says):
        Cron("@daily", zone)


def test_a_time_zone_may_be_a_zone_info_and_stands_for_its_name():
    cron = Cron("30 2 * * *", ZoneInfo("Europe/Berlin"))

    assert cron == Cron("30 2 * * *", "Europe/Berlin")
    assert cron.tz == "Europe/Berlin"


def test_a_zone_info_without_a_name_is_refused():
    header = b"TZif" + bytes(16) + struct.pack(">6l", 0, 0, 0, 0, 1, 4)

    with pytest.raises(OptionError, match="has no name to store; expected one with a key"):
        Cron("@daily", ZoneInfo.from_file(io.BytesIO(header + bytes(6) + b"UTC\0")))


@pytest.mark.row(97)
def test_a_python_without_time_zones_says_so():
    program = (
        "import sys; sys.modules['tzdata'] = None\n"
        "from pgcron_lite.schedules.timing import Cron\nCron('@daily', 'Asia/Tokyo')"
    )

    answer = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONTZPATH": "", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert answer.returncode == 1
    assert "this Python finds no time zones at all. Install the package tzdata" in answer.stderr


# Every.


def test_every_has_a_grid_that_depends_on_its_name_alone():
    grid = Every("90s", name="shop.sweep")
    first = grid.next(YEAR_2026)

    ticks = list(islice(grid.between(YEAR_2026, YEAR_2026 + DAY), 3))
    assert ticks == [first, first + 90 * SECOND, first + 180 * SECOND]
    assert Every(timedelta(seconds=90), name="shop.sweep").next(first - SECOND) == first
    assert Every(90, name="shop.sweep") == grid


def test_many_schedules_of_one_interval_are_spread_over_it():
    firsts = [Every("1h", name=f"task{n}").next(YEAR_2026 - MICROSECOND) - YEAR_2026 for n in range(600)]

    assert {first // (10 * MINUTE) for first in firsts} == set(range(6))
    assert len(set(firsts)) > 500
    assert all(first % SECOND == timedelta(0) for first in firsts)


def test_without_a_name_the_grid_is_that_of_the_clock():
    assert Every("15m").next(YEAR_2026) == YEAR_2026 + 15 * MINUTE
    assert Every("15m").previous(YEAR_2026) == YEAR_2026 - 15 * MINUTE


def test_with_a_start_the_grid_begins_there():
    start = datetime(2026, 1, 1, 9, 30, 0, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    daily = Every("1d", name="ignored", start=start)

    assert daily.next(YEAR_2026 - 99 * DAY) == start
    assert daily.next(start) == start + DAY
    assert daily.previous(start) is None


@pytest.mark.row(103)
@pytest.mark.parametrize(
    ("interval", "says"),
    [
        ("10ms", "less than a second"), (0, "less than a second"), (0.01, "less than a second"), (-1, "is negative"),
        ("soon", "not a duration"), (float("nan"), "not a number"), (timedelta.max, "100 years"), (None, "NoneType"),
    ],
)  # fmt: skip
def test_an_interval_that_is_none_is_refused(interval, says):
    with pytest.raises(OptionError, match=f"^every=.*{says}"):
        Every(interval)


# Bounds, and the ends of time.


@given(TIMINGS, MOMENTS, MOMENTS, MOMENTS)
@settings(max_examples=200)
def test_ticks_keep_within_their_bounds(timing, moment, one, other):
    start, end = sorted([one, other])
    assume(isinstance(timing, Cron))
    bounded = Cron(timing.expression, timing.tz, start=start, end=end)

    later, earlier = bounded.next(moment), bounded.previous(moment)

    free = timing.next(max(moment, start - MICROSECOND))
    assert later == (free if free <= end else None)
    free = timing.previous(min(moment, end + MICROSECOND))
    assert earlier == (free if free >= start else None)


def test_bounds_belong_to_what_they_bound():
    day = Cron("@daily", start=YEAR_2026, end=YEAR_2026 + 2 * DAY)

    assert list(day.between(YEAR_2026 - DAY, YEAR_2026 + 9 * DAY)) == [YEAR_2026 + n * DAY for n in range(3)]
    assert list(backwards(day, YEAR_2026 + 9 * DAY, YEAR_2026 - 9 * DAY)) == [YEAR_2026 + n * DAY for n in (2, 1, 0)]


@pytest.mark.parametrize(
    ("bounds", "says"),
    [
        ({"start": datetime(2026, 1, 1)}, "start=.* has no time zone"),
        ({"end": "2026"}, "end='2026': expected a datetime"),
        ({"start": timedelta(1)}, "expected a datetime"),
        ({"start": YEAR_2026, "end": YEAR_2026 - DAY}, "no tick at all"),
    ],
)
@pytest.mark.parametrize("kind", [lambda **b: Cron("@daily", **b), lambda **b: Every("1d", **b)], ids=["cron", "every"])
def test_bounds_that_cannot_be_right_are_refused(kind, bounds, says):
    with pytest.raises(OptionError, match=says):
        kind(**bounds)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
@pytest.mark.parametrize("written", ["@daily", "@hourly", "every 1d", "@yearly"])
def test_time_ends_somewhere(written, zone):
    timing = read_timing(written, zone)
    first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)

    assert timing.next(last) is None
    assert timing.previous(first) is None
    assert timing.next(first).year in (1900, 1901)
    assert timing.previous(last).year in (8998, 8999)
    assert timing.next(timing.previous(last)) is None
    assert timing.previous(timing.next(first)) is None


def test_a_moment_without_a_time_zone_is_refused():
    with pytest.raises(TypeError, match="offset-naive"):
        Cron("@daily").next(datetime(2026, 1, 1))


# Values.


@pytest.mark.parametrize("timing", [Cron("30 2 * * *", "Europe/Berlin", end=YEAR_2026), Every("90s", name="a")])
def test_a_timing_is_a_value(timing):
    for other in (copy.deepcopy(timing), pickle.loads(pickle.dumps(timing))):
        assert other == timing
        assert hash(other) == hash(timing)
        assert other.next(YEAR_2026 - DAY) == timing.next(YEAR_2026 - DAY)
    with pytest.raises(AttributeError):
        timing.start = None


def test_a_timing_can_be_written_down_and_read_back():
    assert read_timing(str(Cron(" @daily "))) == Cron("@daily")
    assert read_timing("EVERY  1h30m", name="a") == Every("90m", name="a")
    assert read_timing(str(Every(timedelta(days=1, milliseconds=1500)))) == Every(timedelta(days=1, milliseconds=1500))
    assert str(Every("90s")) == "every 1m30s"
    assert Every("90s").words == "every 1m 30s"


def test_jitter_is_the_same_for_a_tick_and_spread_over_ticks():
    most = timedelta(seconds=30)
    found = [jitter_of("a", YEAR_2026 + n * DAY, most) for n in range(300)]

    assert found == [jitter_of("a", YEAR_2026 + n * DAY, most) for n in range(300)]
    assert all(timedelta(0) <= late < most for late in found)
    assert {int(late.total_seconds()) // 5 for late in found} == set(range(6))
    assert jitter_of("a", YEAR_2026, most) != jitter_of("b", YEAR_2026, most)
    assert jitter_of("a", YEAR_2026.astimezone(ZoneInfo("Asia/Tokyo")), most) == jitter_of("a", YEAR_2026, most)
    assert jitter_of("a", YEAR_2026, timedelta(0)) == timedelta(0)


def test_frozen_time_changes_nothing():
    with freeze_time("2026-03-28 12:00"):
        frozen = datetime.now(UTC)

        assert Cron("30 2 * * *", "Europe/Berlin", start=frozen).next(frozen) == datetime(2026, 3, 29, 1, tzinfo=UTC)
        assert Every("1h").next(frozen) == frozen + HOUR
