"""`pgcron cron`: what an expression means and when it is due, for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timedelta
from inspect import signature
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from freezegun import freeze_time

from pgcron_lite.cli import pgcron


def run(*words: str) -> Result:
    # Before click 8.2, standard error is mixed into standard output unless this is asked for.
    separate = {"mix_stderr": False} if "mix_stderr" in signature(CliRunner).parameters else {}
    return CliRunner(**separate).invoke(pgcron, ["cron", *words])


def lines(answer: Result) -> list[str]:
    assert answer.exit_code == 0, answer.output
    return answer.stdout.splitlines()


def test_an_expression_is_explained_with_its_next_ticks():
    answer = run("30 2 * * *", "--tz", "Europe/Berlin", "--from", "2026-03-28", "--count", "3")

    assert lines(answer) == [
        "At 02:30 every day, in Europe/Berlin.",
        "",
        "LOCAL                    OFFSET  UTC                   NOTE",
        "Sat 2026-03-28 02:30:00  +01:00  2026-03-28T01:30:00Z",
        "Sun 2026-03-29 03:00:00  +02:00  2026-03-29T01:00:00Z"
        "  the clock skips 02:30; this is the first instant after the gap",
        "Mon 2026-03-30 02:30:00  +02:00  2026-03-30T00:30:00Z",
    ]


def test_ticks_are_json_for_programs():
    answer = run("*/30 * * * *", "--tz", "Australia/Lord_Howe", "--from", "2020-04-05T01:30", "--count", "3", "--json")

    ticks = [json.loads(line) for line in lines(answer)]
    assert [(tick["local"], tick["tick"]) for tick in ticks] == [
        ("2020-04-05T01:30:00+11:00", "2020-04-04T14:30:00Z"),
        ("2020-04-05T01:30:00+10:30", "2020-04-04T15:00:00Z"),
        ("2020-04-05T02:00:00+10:30", "2020-04-04T15:30:00Z"),
    ]
    assert [bool(tick["note"]) for tick in ticks] == [True, True, False]
    assert {(tick["expression"], tick["tz"], tick["words"]) for tick in ticks} == {
        ("*/30 * * * *", "Australia/Lord_Howe", "every 30 minutes")
    }


def test_an_interval_is_explained_too():
    answer = run("every 90s", "--from", "2026-01-01T00:00:01Z", "--count", "2")

    assert lines(answer)[0] == "Every 1m 30s, on a grid that the name of the schedule decides."
    assert [line.split()[2] for line in lines(answer)[3:]] == ["00:01:30", "00:03:00"]


def test_without_a_start_it_starts_now():
    with freeze_time("2026-03-01 12:00"):
        first = json.loads(lines(run("@hourly", "--json"))[0])

    assert first["tick"] == "2026-03-01T13:00:00Z"


def test_there_are_as_many_ticks_as_asked_for():
    answer = run("@daily", "--count", "400", "--json")

    ticks = [datetime.fromisoformat(json.loads(line)["tick"]) for line in lines(answer)]
    assert ticks == [ticks[0] + timedelta(days=n) for n in range(400)]


@pytest.mark.parametrize(
    ("start", "first"),
    [
        ("2026-07-01", "2026-06-30T15:00:00Z"), ("2026-07-01T12:00", "2026-07-01T03:00:00Z"),
        ("2026-07-01T12:00Z", "2026-07-01T12:00:00Z"), ("2026-07-01T12:00:00.5+02:00", "2026-07-01T11:00:00Z"),
    ],
)  # fmt: skip
def test_ticks_begin_at_a_time_with_a_zone_or_in_that_of_the_expression(start, first):
    assert json.loads(lines(run("@hourly", "--tz", "Asia/Tokyo", "--from", start, "--json"))[0])["tick"] == first


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["60 * * * *"], "Error: '60 * * * *': there is no minute 60; did you mean 0?"),
        (["@dayly"], "did you mean '@daily'?"),
        (["0 */5 * * * *"], "it looks as if they came first, every 5 minutes: write '*/5 * * * *'"),
        (["@daily", "--tz", "Berlin"], "did you mean 'Europe/Berlin'?"),
        (["every 10ms"], "every='10ms' is less than a second"),
        (["every 90s", "--tz", "Berlin"], "did you mean 'Europe/Berlin'?"),
        (["@daily", "--from", "soon"], "'soon' is not a time from 1970 on"),
        (["@daily", "--from", "1066-10-14"], "is not a time from 1970 on"),
        (["@daily", "--count", "0"], "0 is not in the range"),
        ([], "Missing argument 'EXPRESSION...'"),
    ],
)
def test_what_cannot_be_is_refused(words, says):
    answer = run(*words)

    assert answer.exit_code == 2
    assert answer.stdout == ""
    assert says in " ".join(answer.stderr.split())


def test_an_expression_that_the_shell_has_expanded_is_noticed(tmp_path: Path):
    answer = subprocess.run(
        f"touch some file; '{sys.executable}' -m pgcron_lite cron 5 * * * *",
        shell=True, cwd=tmp_path, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert answer.returncode == 2
    assert "the shell has replaced a star with names of files; quote the expression" in answer.stderr


def test_an_expression_may_come_in_several_words():
    assert lines(run("30", "2", "*", "*", "mon-fri"))[0] == "At 02:30, Monday to Friday, in UTC."
    assert lines(run("every", "90s"))[0].startswith("Every 1m 30s")
