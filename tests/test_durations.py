"""Spans and moments as people write them."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from freezegun import freeze_time
from hypothesis import given
from hypothesis import strategies as st

from pgcron_lite.durations import MAX_DURATION, due, duration, spoken
from pgcron_lite.errors import OptionError


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("90s", 90), ("10m", 600), ("1h30m", 5400), ("2d", 172_800), ("1w", 604_800), ("500ms", 0.5), ("1.5h", 5400),
        ("0s", 0), (" 1h 30m ", 5400), ("0.1s", 0.1), ("1w1d1h1m1s1ms", 694_861.001), ("36525d", 3_155_760_000),
        (90, 90), (0, 0), (1.5, 1.5), (timedelta(minutes=2), 120), (timedelta(0), 0),
    ],
)  # fmt: skip
def test_a_duration_is_a_text_a_number_of_seconds_or_a_timedelta(written, seconds):
    assert duration(written, name="timeout") == timedelta(seconds=seconds)


@pytest.mark.row(103)
@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("", "is not a duration"), (" ", "is not a duration"), ("soon", "is not a duration"), 
        ("-5s", "is not a duration"),
        ("h1", "is not a duration"), ("1h x", "is not a duration"), ("1e3s", "the unit 'e'"),
        ("nan", "is not a duration"),
        ("10", "no unit after 10; \"10s\" would be seconds"), ("1h30", "no unit after 30"), ("10min", "the unit 'min'"),
        ("5M", "the unit 'M'"), ("1h1h", "names the unit 'h' twice"), ("٣s", "is not a duration"),
        ("36526d", "longer than 100 years"), ("9" * 5_000 + "ms", "longer than 100 years"),
        (-1, "is negative"), (-0.001, "is negative"), (-math.inf, "is negative"), (-1e-9, "is negative"),
        (timedelta(seconds=-1), "is negative"),
        (math.nan, "is not a number"), (math.inf, "longer than 100 years"), (10**400, "longer than 100 years"),
        pytest.param(10**5_000, "longer than 100 years", id="5 000 digits"),
        pytest.param(-(10**5_000), "is negative", id="minus 5 000 digits"),
        ("5µs", "the unit 'µs'"),
        (1e300, "longer than 100 years"), (timedelta.max, "longer than 100 years"),
        (True, "is of type bool"), (None, "is of type NoneType"), ([], "is of type list"),
        (datetime(2026, 3, 1, tzinfo=UTC), "is of type datetime"),
    ],
)  # fmt: skip
def test_what_is_no_duration_is_refused_with_the_forms_there_are(written, problem):
    with pytest.raises(OptionError) as refused:
        duration(written, name="timeout")

    assert str(refused.value).startswith("timeout=")
    assert problem in str(refused.value)
    assert '"1h30m"' in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_refused_option_is_a_value_error():
    with pytest.raises(ValueError, match=r"^first='1 fortnight' has the unit 'fortnight'"):
        duration("1 fortnight", name="first")


def test_a_job_is_due_after_a_span_or_at_a_moment():
    berlin = datetime(2026, 3, 1, 9, tzinfo=ZoneInfo("Europe/Berlin"))

    assert due("10m") == timedelta(minutes=10)
    assert due(0) == timedelta(0)
    assert due(berlin) == berlin
    assert due(berlin).tzinfo is UTC


def test_a_moment_in_the_past_is_due_now():
    assert due(datetime(1969, 7, 20, tzinfo=UTC)) == datetime(1969, 7, 20, tzinfo=UTC)


@pytest.mark.row(121)
def test_a_moment_without_a_time_zone_is_refused():
    with pytest.raises(OptionError, match=r"^execute_after=datetime.* has no time zone.*Write datetime\.now\(UTC\)"):
        due(datetime(2026, 3, 1, 9))


@pytest.mark.row(120)
@pytest.mark.parametrize("year", [1, 9001, 9999])
def test_a_moment_outside_the_calendar_is_refused(year):
    with pytest.raises(OptionError, match="from 2 to 9000"):
        due(datetime(year, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("moment", [datetime(2, 1, 1), datetime(9000, 12, 31, 23)])
@pytest.mark.parametrize("zone", ["Pacific/Kiritimati", "Pacific/Midway"])
def test_the_first_and_the_last_moment_reach_utc(moment, zone):
    due(moment.replace(tzinfo=ZoneInfo(zone)))


def test_a_day_is_no_moment():
    with pytest.raises(OptionError, match="no time of day"):
        due(date(2026, 3, 1))


def test_a_unix_timestamp_is_not_taken_for_a_delay_of_decades():
    with pytest.raises(OptionError, match=r"^at=1790000000 .* looks like a Unix timestamp.*fromtimestamp"):
        due(1_790_000_000, name="at")


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1, "yesterday", "", None, True, [10**5_000]])
def test_what_is_neither_span_nor_moment_is_refused(wrong):
    with pytest.raises(OptionError, match=r"^execute_after="):
        due(wrong)


def test_frozen_time_is_time():
    with freeze_time("2026-03-01 12:00"):
        assert due(datetime.now(UTC)) == datetime(2026, 3, 1, 12, tzinfo=UTC)
        with pytest.raises(OptionError, match="no time of day"):
            due(date.today())
        with pytest.raises(OptionError, match="no time zone"):
            due(datetime.now())


@pytest.mark.parametrize(
    ("span", "words"),
    [
        (timedelta(0), "0s"), (timedelta(seconds=90), "1m 30s"), (timedelta(hours=1, minutes=30), "1h 30m"),
        (timedelta(milliseconds=250), "250ms"), (timedelta(days=8), "8d"), (timedelta(seconds=-5), "-5s"),
        (timedelta(microseconds=1500), "1.5ms"), (timedelta(seconds=1.5), "1s 500ms"),
    ],
)  # fmt: skip
def test_a_span_is_spoken_in_its_units(span, words):
    assert spoken(span) == words


@given(st.timedeltas(timedelta(0), MAX_DURATION))
def test_what_is_spoken_can_be_read(span):
    assert duration(spoken(span), name="span") == span


@given(st.text() | st.text(st.sampled_from("0123456789.smhdw -e")) | st.floats() | st.integers() | st.timedeltas())
def test_anything_is_a_duration_or_an_option_error(written):
    try:
        found = duration(written, name="span")
    except OptionError:
        return

    assert timedelta(0) <= found <= MAX_DURATION
