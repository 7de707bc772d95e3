"""Log lines: their content in each format, safety against forged lines, and a heartbeat that never waits for them."""

import io
import json
import logging
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from support import eventually

import pgcron_lite
from pgcron_lite import PgCron
from pgcron_lite.context import Running, running
from pgcron_lite.job import Job
from pgcron_lite.worker import logs
from pgcron_lite.worker.reporting import fields

NASTY = 'first\n2026-01-01T00:00:00Z at=info msg="forged"\r\x1b[31mred\x1b[0m "quoted" back\\slash \udcff \x85 \u2028'


def a_job(**changes: object) -> Job:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    given = {
        "id": 7, "task": "mail.send", "queue": "mail", "priority": 0, "state": "running", "args": "{}", "headers": {},
        "tags": (), "execute_after": now, "attempt": 2, "max_attempts": 5, "crashes": 0, "max_crashes": 3,
        "alone": False, "claim": uuid.uuid4(), "worker": uuid.uuid4(), "created_at": now, "claimed_at": now,
    }
    return Job(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture
def root():
    """The root logger, restored after the test."""
    logger = logging.getLogger()
    handlers, level = list(logger.handlers), logger.level
    yield logger
    logger.handlers[:], logger.level = handlers, level


def lines(format: logs.Format, root: logging.Logger, *calls: tuple[str, dict]) -> list[str]:
    """Log each message with its extra fields. Return the output."""
    stream = io.StringIO()
    logs.set_up(format, "info", stream)
    for message, extra in calls:
        logging.getLogger("test").info("%s", message, extra=extra)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("format", logs.FORMATS)
@pytest.mark.row("S22")
def test_no_text_in_a_message_starts_a_line_or_controls_a_terminal(root, format):
    written = lines(format, root, (NASTY, {"task": NASTY, "job_id": 1}))

    begun = [line for line in written if not line.startswith("    ")]
    assert len(begun) == 1
    assert all(c.isprintable() for line in written for c in line)


def test_json_contains_the_unchanged_message(root):
    (line,) = lines("json", root, (NASTY, {}))

    assert json.loads(line)["msg"] == NASTY


def test_a_jobs_record_has_the_fields_that_dashboards_use(root):
    extra = fields(a_job(), "done", 0.25)

    (as_json,) = lines("json", root, ("it is done", extra))
    (as_logfmt,) = lines("logfmt", root, ("it is done", extra))

    assert {name: json.loads(as_json)[name] for name in logs.FIELDS} == {
        "event": "job", "job_id": 7, "task": "mail.send", "queue": "mail", "attempt": 2, "outcome": "done",
        "duration_s": 0.25, "wait_s": 0.0,
    }
    assert as_logfmt.endswith(
        'msg="it is done" event=job job_id=7 task=mail.send queue=mail attempt=2 outcome=done duration_s=0.25'
        " wait_s=0.0"
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [("plain", "plain"), ("", '""'), ("two words", '"two words"'), ("a=b", '"a=b"'), ('say "hi"', r'"say \"hi\""'),
     ("back\\slash", r'"back\\slash"'), ("line\nbreak", r'"line\nbreak"'), (True, "true"), (1.5, "1.5")],
)
def test_logfmt_quotes_what_is_not_one_plain_word(value, written):
    assert logs.quoted(value) == written


def test_a_line_that_a_task_logs_names_its_job(root):
    token = running.set(Running(PgCron("x"), a_job(), lambda: False))
    try:
        (as_text,) = lines("text", root, ("sending", {}))
        (as_json,) = lines("json", root, ("sending", {}))
    finally:
        running.reset(token)

    assert as_text.endswith("mail.send#7: sending")
    assert json.loads(as_json) | {"ts": None} == {
        "ts": None, "at": "info", "logger": "test", "msg": "sending", "job_id": 7, "task": "mail.send",
        "queue": "mail", "attempt": 2,
    }


def test_a_traceback_stays_with_its_entry(root):
    stream = io.StringIO()
    logs.set_up("text", "info", stream)

    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("test").exception("failed")

    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("error   failed")
    assert all(line.startswith("    ") for line in rest)
    assert any("ValueError: two" in line for line in rest)


def test_on_heroku_lines_have_no_times(root, monkeypatch):
    monkeypatch.setenv("DYNO", "worker.1")

    (as_text,) = lines("text", root, ("hello", {}))
    (as_logfmt,) = lines("logfmt", root, ("hello", {}))

    assert as_text == "info    hello"
    assert as_logfmt == "at=info logger=test msg=hello"


def test_the_apps_own_logging_is_unchanged_unless_a_format_is_given(root):
    own = logging.NullHandler()
    root.handlers[:] = [own]

    logs.set_up(None)
    untouched = list(root.handlers)
    logs.set_up("json", stream=io.StringIO())

    assert untouched == [own]
    assert own not in root.handlers


def test_only_terminals_get_colours_and_no_color_disables_them(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    record = logging.LogRecord("test", logging.ERROR, __file__, 1, "red", None, None)

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = logs.formatter("text", Terminal()).format(record)
    monkeypatch.setenv("NO_COLOR", "1")
    plain = logs.formatter("text", Terminal()).format(record)
    elsewhere = logs.formatter("text", io.StringIO()).format(record)

    assert "\x1b[31m" in coloured
    assert "\x1b" not in plain + elsewhere
    assert logs.default_format(Terminal()) == "text"
    assert logs.default_format(io.StringIO()) == "logfmt"


CHATTER = """
import logging
from pgcron_lite import PgCron

app = PgCron("chatter")

@app.task
def talk() -> None:
    for n in range(20_000):
        logging.getLogger("talk").info("line %s of many, and nobody reads them", n)
"""


@pytest.mark.row(140)
@pytest.mark.parametrize("how", [[], ["--gevent"]], ids=["threads", "gevent"])
def test_a_blocked_log_pipe_does_not_stop_the_heartbeat(tmp_path: Path, pg_url: str, how: list[str]):
    (tmp_path / "chatter.py").write_text(CHATTER)
    env = {
        **os.environ, "DATABASE_URL": pg_url, "PGCRON_LEASE": "1.5s", "PGCRON_GRACE": "0",
        "PYTHONPATH": str(Path(pgcron_lite.__file__).parents[1]),
    }
    command = [sys.executable, "-m", "pgcron_lite", "--app", "chatter", "worker", *how]
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("select pgcron.enqueue('chatter.talk')")
        with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE) as worker:
            try:
                query = "select beat, running, idle_loop from pgcron.workers"
                # The loop may block too, behind the job that writes. Then no outcome is written any more.
                eventually(lambda: (row := conn.execute(query).fetchone()) and row[1] == 1, within=30)
                first = conn.execute(query).fetchone()[0]
                eventually(lambda: conn.execute(query).fetchone()[0] >= first + 6, within=30)

                state = conn.execute("select state from pgcron.jobs").fetchall()
                assert state == [("running",)]
                assert worker.poll() is None
            finally:
                worker.kill()
                worker.stdout.close()
