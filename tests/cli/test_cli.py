"""The command line: what each command prints where, with which exit code, and what it loads."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner
from commands import ROOT, Run, command, drain, environment, objects, runner
from support import eventually, free_port, python

from pgcron_lite import __version__, config
from pgcron_lite.__main__ import wants_gevent
from pgcron_lite.cli import COMMANDS, Nouns, output, pgcron
from pgcron_lite.cli.context import borrow_dev_url

SHOP = '''
import sys, time
from datetime import timedelta
from pgcron_lite import PgCron, Cancel

app = PgCron("shop")

@app.task
def add(x: int, y: int = 0) -> int:
    """Add two numbers."""
    return x + y

@app.task(queue="mail", max_attempts=1)
def send(to: str, *more: str, **options: object) -> list:
    return [to, *more, options]

@app.task(max_attempts=1)
def boom(text: str = "no") -> None:
    raise ValueError(text)

@app.task
def nap(seconds: float) -> None:
    time.sleep(seconds)

@app.task
def patched() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return bool(monkey and monkey.is_module_patched("socket"))
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def run(folder: Path, request: pytest.FixtureRequest) -> Run:
    return runner(folder, request)


# What is loaded


HELP = [
    "--help", "jobs --help", "schedules --help", "schedules add --help", "import-crontab --help", "worker --help",
    "enqueue --help", "version", "jbos",
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The modules that are loaded after each command of HELP, run one after the other in one process."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(SHOP)
    program = """
        import json, sys
        from pgcron_lite.cli import pgcron

        loaded = {}
        for words in sys.argv[1:]:
            try:
                pgcron.main(words.split())
            except SystemExit:
                loaded[words] = [*sys.modules]
        print(json.dumps(loaded))
    """
    answer = python(program, *HELP, cwd=folder, env=environment(None))
    found: dict[str, list[str]] = json.loads(answer.splitlines()[-1])
    return found


@pytest.mark.parametrize("words", HELP)
def test_help_loads_nothing_that_is_heavy(loaded, words):
    assert "pgcron_lite.cli" in loaded[words]
    assert not {"psycopg", "gevent", "croniter", "flask", "shop"} & {*loaded[words]}


def test_help_shows_every_command_that_is_not_hidden():
    answer = CliRunner().invoke(pgcron, ["--help"])

    shown = re.findall(r"^  (\S+) ", answer.output.partition("Commands:")[2], re.MULTILINE)
    assert shown == [name for name in COMMANDS if name != "dev-worker"]
    assert "..." not in answer.output.partition("Commands:")[2], "a first sentence is too long for the list"


def test_the_version_is_an_option_as_well():
    answer = CliRunner().invoke(pgcron, ["--version"])

    assert answer.output == f"pgcron_lite {__version__}\n"
    assert answer.exit_code == 0


@pytest.mark.parametrize(
    ("words", "environ", "wanted"),
    [
        ("worker --gevent", {}, True),
        ("scheduler", {"PGCRON_GEVENT": "1"}, False),
        ("--app shop worker -q mail --gevent", {}, True),
        ("-A worker worker --gevent", {}, True),
        ("worker", {"PGCRON_GEVENT": "1"}, True),
        ("worker", {"PGCRON_GEVENT": "0"}, False),
        ("worker", {}, False),
        ("--app worker jobs list --gevent", {}, False),
        ("enqueue shop.send worker --gevent", {}, False),
        ("jobs list", {"PGCRON_GEVENT": "1"}, False),
        ("", {}, False),
    ],
)
def test_only_a_worker_that_is_to_run_greenlets_is_patched(words, environ, wanted):
    assert wants_gevent(words.split(), environ) is wanted


# Near misses and usage


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ("jbos list", "there is no command 'jbos'; did you mean 'jobs'?"),
        ("jobs lst", "there is no command 'lst'; did you mean 'list'?"),
        ("beat", "there is no command 'beat'; here it is `pgcron worker`, which keeps the schedules as well"),
        ("rqworker", "here it is `pgcron worker`"),
        ("consumer", "here it is `pgcron worker`"),
        ("purge", "here it is `pgcron queues clear`, which cancels"),
        ("inspect", "here it is `pgcron workers list`"),
        ("flower", "here it is `pgcron jobs list`, beside `workers list` and `queues list`: there is no dashboard"),
        ("requeue", "here it is `pgcron jobs retry`"),
        ("jobs purge", "there is no command 'purge'. The commands are: list, show"),
        ("zzz", "The commands are: dev, worker, scheduler, migrate"),
        ("jobs list --stat done", "--state"),
        ("jobs list --state dona", "'dona' is not one of"),
        ("jobs list --since soon", "'soon' is not a duration"),
        ("jobs show many", "'many' is not a job's id; expected 12, #12 or mail.send#12"),
        ("jobs retry", "which jobs? Either ids (pgcron jobs retry 12 13), or a filter"),
        ("jobs retry 1 --task x", "which jobs?"),
        ("jobs cancel --state done", "done jobs cannot be cancelled; only queued ones"),
        ("worker --slots 0", "0 is not in the range"),
        ("worker --grace soon", "'soon' is not a duration"),
        ("worker --log-level loud", "'loud' is not one of"),
        ("migrate --check --sql", "exclude one another"),
        ("enqueue shop.add 1 --timeout 3", "--timeout goes with --wait"),
        ("queues pause *", "queue='*'"),
        ("--app nowhere tasks list", "there is no module 'nowhere'"),
        ("enqueue shop.ad 1", "no task named 'shop.ad' on app 'shop'; did you mean 'shop.add'?"),
        ("enqueue nothing.like.it", "no task named 'nothing.like.it' on app 'shop'."),
        ("enqueue shop.add", "missing a required argument: 'x'"),
        ("enqueue shop.add z=1", "shop.add has no parameter 'z'."),
        ("enqueue shop.add 1 --at 2030-01-01T10:00", "has no time zone; write 2030-01-01T10:00Z"),
        ("enqueue shop.add 1 --at tomorrow", "is not a time such as"),
        ("enqueue shop.add 1 --in 1h --at 2030-01-01T10:00Z", "exclude one another"),
        ("enqueue shop.add x=1 2", "has no name, and follows one that has"),
        ("enqueue shop.add --json 3", "expected an object of arguments by name, or an array"),
        ("enqueue shop.add 1 --json [1]", "--json gives all the arguments"),
    ],
)
def test_what_is_used_wrongly_is_answered_in_a_sentence_and_with_2(run, pg_url, words, answer):
    result = run(*words.split())

    assert result.returncode == 2, result.stderr
    assert answer in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_a_noun_may_be_said_in_the_singular(run, pg_url):
    assert run("job", "list", "--json").returncode == 0
    assert run("queue", "list").returncode == 0


# Exit codes


def test_an_unreachable_database_is_69_in_one_sentence(run):
    nowhere = f"postgresql://user:secret@127.0.0.1:{free_port()}/db"

    for words in ("jobs list", "migrate", "health", "enqueue shop.add 1", "worker --fail-fast", "queues list",
                  "schedules list", "scheduler --fail-fast"):  # fmt: skip
        answer = run(*words.split(), url=nowhere)

        assert answer.returncode == 69, words
        said = [line for line in answer.stderr.splitlines() if line.startswith("Error:")]
        assert len(said) == 1
        assert re.search(r"cannot connect to 127\.0\.0\.1:\d+/db \(from (PGCRON_)?DATABASE_URL\): ", said[0])
        assert "Is the server running, and is that URL right? `pgcron dev` starts a local database." in said[0]
        assert "Traceback" not in answer.stderr + answer.stdout
        assert "secret" not in answer.stderr + answer.stdout


def test_no_database_a_wrong_url_and_memory_are_78(run):
    wrong = {None: "no database given", "mysql://u:secret@h/d": "not a PostgreSQL URL", "memory://": "memory"}
    for url, words in wrong.items():
        for noun in ("jobs", "schedules"):
            answer = run(noun, "list", url=url)

            assert answer.returncode == 78
            assert words in answer.stderr
            assert "secret" not in answer.stderr


def test_a_missing_schema_is_78_with_the_command_that_helps(run, empty_pg_url):
    for words in ("jobs list", "health", "enqueue shop.add 1", "worker --drain", "schedules list", "scheduler"):
        answer = run(*words.split(), url=empty_pg_url)

        assert answer.returncode == 78, answer.stderr
        assert "Run: pgcron migrate" in answer.stderr


def test_a_setting_that_cannot_be_right_is_78(run, pg_url):
    answer = run("worker", "--drain", PGCRON_SLOTS="many")

    assert answer.returncode == 78
    assert "PGCRON_SLOTS='many': expected a whole number" in answer.stderr


# migrate


def test_migrate_creates_the_tables_and_may_be_repeated(run, empty_pg_url):
    behind = run("migrate", "--check", url=empty_pg_url)
    first = run("migrate", url=empty_pg_url)
    second = run("migrate", url=empty_pg_url)
    current = run("migrate", "--check", url=empty_pg_url)

    assert (behind.returncode, first.returncode, second.returncode, current.returncode) == (1, 0, 0, 0)
    assert "not there yet" in behind.stderr
    assert "applied 0001 jobs" in first.stdout
    assert "nothing to do" in second.stdout
    assert "up to date" in current.stdout


def test_migrate_to_a_number_stops_there_and_check_says_behind(run, empty_pg_url):
    run("migrate", "--to", 1, url=empty_pg_url)

    behind = run("migrate", "--check", url=empty_pg_url)

    assert behind.returncode == 1
    assert "is at 1, this version needs" in behind.stderr


def test_the_sql_is_printed_without_a_database_and_makes_the_same_schema(run, empty_pg_url):
    script = run("migrate", "--sql", url=None)
    with psycopg.connect(empty_pg_url, autocommit=True) as conn:
        conn.execute(script.stdout)

    assert script.returncode == 0
    assert run("migrate", "--check", url=empty_pg_url).returncode == 0


def test_the_sql_since_a_number_leaves_out_what_is_there(run, empty_pg_url):
    run("migrate", "--to", 1, url=empty_pg_url)

    rest = run("migrate", "--sql", "--since", 1, url=None)
    with psycopg.connect(empty_pg_url, autocommit=True) as conn:
        conn.execute(rest.stdout)

    assert run("migrate", "--check", url=empty_pg_url).returncode == 0


def test_an_environment_is_written_down_and_held_against_workers(run, pg_url):
    noted = run("migrate", "--environment", "production")
    stranger = run("worker", "--drain")
    own = run("worker", "--drain", PGCRON_ENVIRONMENT="production")

    assert noted.returncode == 0
    assert stranger.returncode == 78
    assert "belongs to the environment 'production'" in stranger.stderr
    assert own.returncode == 0


@pytest.mark.parametrize("name", ["", " ", " production"])
def test_an_environment_that_no_setting_can_name_is_refused(run, pg_url, name):
    noted = run("migrate", "--environment", name)

    assert noted.returncode == 2
    assert "expected a name" in noted.stderr
    assert run("jobs", "list").returncode == 0


# enqueue


def job_of(run: Run, answer: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert answer.returncode == 0, answer.stderr
    (job,) = objects(run("jobs", "show", answer.stdout.strip(), "--json"))
    return job


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["shop.add", "1", "2"], {"x": 1, "y": 2}),
        (["shop.add", "-1", "y=-2.5"], {"x": -1, "y": -2.5}),
        (["shop.add", "x=[1, 2]"], {"x": [1, 2]}),
        (["shop.add", "word"], {"x": "word"}),
        (["shop.add", "NaN"], {"x": "NaN"}),
        (["shop.send", "12"], {"to": "12"}),
        (["shop.send", "-1"], {"to": "-1"}),
        (["shop.send", "a", "b", "copies=2", "when=soon"],
         {"to": "a", "*more": ["b"], "**options": {"copies": 2, "when": "soon"}}),
        (["shop.send", "--json", '{"to": "a=b"}'], {"to": "a=b"}),
        (["shop.send", "--json", '["a", "b"]'], {"to": "a", "*more": ["b"]}),
        (["shop.send", "--", "--weird"], {"to": "--weird"}),
    ],
)
def test_arguments_are_json_where_they_are_json_and_text_where_text_is_wanted(run, pg_url, words, args):
    assert job_of(run, run("enqueue", *words))["args"] == args


def test_a_call_may_have_its_own_queue_priority_tags_and_time(run, pg_url):
    job = job_of(
        run, run("enqueue", "shop.add", 1, "-q", "slow", "--priority", -5, "--tag", "a", "--tag", "b", "--in", "10m")
    )
    at = job_of(run, run("enqueue", "shop.add", 1, "--at", "2035-06-01T10:00+02:00"))

    assert (job["queue"], job["priority"], job["tags"]) == ("slow", -5, ["a", "b"])
    wait = datetime.fromisoformat(job["execute_after"]) - datetime.fromisoformat(job["created_at"])
    assert 599 < wait.total_seconds() < 601
    assert at["execute_after"] == "2035-06-01T08:00:00Z"


def test_waiting_prints_the_result_and_nothing_else_on_stdout(run, pg_url, folder):
    with subprocess.Popen(command("worker"), cwd=folder, env=environment(pg_url), stdout=subprocess.DEVNULL) as worker:
        done = run("enqueue", "shop.add", 1, 2, "--wait", "--timeout", "30s")
        failed = run("enqueue", "shop.boom", "bad luck", "--wait", "--timeout", "30s")
        worker.terminate()
        code = worker.wait(timeout=30)

    assert (done.returncode, done.stdout) == (0, "3\n")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "failed: ValueError: bad luck. See: pgcron jobs show" in failed.stderr
    assert code == 0


def test_waiting_in_vain_ends_with_1_and_the_job_goes_on(run, pg_url):
    answer = run("enqueue", "shop.add", 1, "--wait", "--timeout", "0.2")

    assert answer.returncode == 1
    assert "is still queued after 0.2 s; it goes on" in answer.stderr


# jobs


@pytest.fixture
def some_jobs(folder: Path, pg_url: str) -> None:
    """Job 1 is done, 2 has failed, 3 is queued, 4 is deferred and tagged."""
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("select pgcron.enqueue('shop.add', '[1, 2]')")
        conn.execute("select pgcron.enqueue('shop.boom', '[\"first\\u001b[31m\\nsecond\"]', max_attempts => 1)")
        drain(folder, pg_url)
        conn.execute("select pgcron.enqueue('shop.add', '{\"x\": 5}')")
        conn.execute(
            "select pgcron.enqueue('shop.send', '[\"ada\"]', 'mail', tags => '{import}',"
            " execute_after => now() + interval '1 hour')"
        )


def ids(answer: subprocess.CompletedProcess[str]) -> list[int]:
    return [job["id"] for job in objects(answer)]


@pytest.mark.usefixtures("some_jobs")
def test_jobs_are_listed_newest_first_and_filtered(run, pg_url):
    assert ids(run("jobs", "list", "--json")) == [4, 3, 2, 1]
    assert ids(run("jobs", "list", "--json", "--limit", 2)) == [4, 3]
    assert ids(run("jobs", "list", "--json", "--state", "done", "--state", "failed")) == [2, 1]
    assert ids(run("jobs", "list", "--json", "--task", "shop.add")) == [3, 1]
    assert ids(run("jobs", "list", "--json", "-q", "mail")) == [4]
    assert ids(run("jobs", "list", "--json", "--tag", "import")) == [4]
    assert ids(run("jobs", "list", "--json", "--since", "1h")) == [4, 3, 2, 1]
    assert ids(run("jobs", "list", "--json", "--since", "0s")) == []


@pytest.mark.usefixtures("some_jobs")
def test_the_table_has_aligned_columns_and_a_note_for_each_state(run, pg_url):
    answer = run("jobs", "list")

    heading, *rows = answer.stdout.splitlines()
    assert heading.split() == ["ID", "STATE", "TASK", "QUEUE", "ATTEMPT", "ENQUEUED", "NOTE"]
    start = heading.index("NOTE")
    notes = [row[start:] for row in rows]
    assert re.fullmatch(r"in (59 m \d+ s|1 h)", notes[0])
    assert notes[1] == "due"
    assert notes[2] == r"ValueError: first\x1b[31m"
    assert notes[3].startswith("took ")
    assert all(row[start - 1] == " " for row in rows)


@pytest.mark.usefixtures("some_jobs")
def test_show_says_everything_and_what_comes_next(run, pg_url):
    done, failed, queued, later = (run("jobs", "show", n).stdout for n in (1, "#2", "shop.add#3", 4))

    assert re.search(r"next +leaves the history in (6 d 23 h|7 d)\n", done)
    assert re.search(r"result +3\n", done)
    assert "to run it again: pgcron jobs retry 2" in failed
    assert "Traceback (most recent call last)" in failed
    assert "\x1b" not in failed
    assert "due; no worker serves the queue 'default'. Start one: pgcron worker" in queued
    assert re.search(r"next +attempt 1 of 5 in (59 m.*|1 h)\n", later)
    assert re.search(r"tags +import\n", later)


@pytest.mark.usefixtures("some_jobs")
def test_show_of_a_job_that_is_not_there_is_1_and_the_others_are_shown(run, pg_url):
    answer = run("jobs", "show", 1, 99, "--json")

    assert answer.returncode == 1
    assert json.loads(answer.stdout)["id"] == 1
    assert "there is no job #99" in answer.stderr


@pytest.mark.usefixtures("some_jobs")
def test_jobs_are_retried_cancelled_and_deleted_by_id(run, pg_url):
    retried = run("jobs", "retry", 2)
    cancelled = run("jobs", "cancel", 3, 4)
    deleted = run("jobs", "delete", 1, "--yes")

    assert (retried.stdout, retried.returncode) == ("#2 queued again\n", 0)
    assert (cancelled.stdout, cancelled.returncode) == ("#3 cancelled\n#4 cancelled\n", 0)
    assert (deleted.stdout, deleted.returncode) == ("#1 deleted\n", 0)
    assert {j["id"]: j["state"] for j in objects(run("jobs", "list", "--json"))} == {
        4: "cancelled", 3: "cancelled", 2: "queued",
    }


@pytest.mark.row("S24")
@pytest.mark.usefixtures("some_jobs")
def test_deleting_by_id_asks(run, pg_url):
    refused = run("jobs", "delete", 1, stdin="n\n")
    unanswered = run("jobs", "delete", 1, 2)
    kept = ids(run("jobs", "list", "--json"))
    agreed = run("jobs", "delete", 1, 2, stdin="y\n")

    assert (refused.returncode, unanswered.returncode, agreed.returncode) == (1, 1, 0)
    assert "Delete job #1? [y/N]" in refused.stderr
    assert "Delete 2 jobs? [y/N]" in unanswered.stderr
    assert "nothing was changed; --yes answers for you" in unanswered.stderr
    assert kept == [4, 3, 2, 1]
    assert ids(run("jobs", "list", "--json")) == [4, 3]


@pytest.mark.usefixtures("some_jobs")
def test_what_cannot_be_done_is_explained_and_ends_with_1(run, pg_url):
    answers = [run("jobs", "cancel", 1), run("jobs", "retry", 3), run("jobs", "delete", 99, "-y")]

    assert [a.returncode for a in answers] == [1, 1, 1]
    assert "shop.add#1 is done; only queued jobs can be cancelled" in answers[0].stderr
    assert "shop.add#3 is queued; only failed or cancelled jobs can be queued again" in answers[1].stderr
    assert "there is no job #99" in answers[2].stderr


def test_a_running_job_is_not_cancelled_and_the_answer_says_why(run, pg_url, folder):
    run("enqueue", "shop.nap", 30)
    with subprocess.Popen(
        command("worker", "--grace", "0"), cwd=folder, env=environment(pg_url), stdout=subprocess.DEVNULL
    ) as worker:
        eventually(lambda: ids(run("jobs", "list", "--state", "running", "--json")) == [1], within=30)

        cancelled, deleted, shown = run("jobs", "cancel", 1), run("jobs", "delete", 1, "-y"), run("jobs", "show", 1)

        worker.terminate()
        assert worker.wait(timeout=30) == 0
    assert cancelled.returncode == deleted.returncode == 1
    assert f"pid {worker.pid} and cannot be cancelled: a task is never interrupted" in cancelled.stderr
    assert f"pid {worker.pid} and cannot be deleted" in deleted.stderr
    assert re.search(rf"next +runs for .* on \S+ pid {worker.pid}\n", shown.stdout)


@pytest.mark.usefixtures("some_jobs")
def test_bulk_work_says_how_many_and_asks(run, pg_url):
    refused = run("jobs", "cancel", "--task", "shop.add", stdin="n\n")
    unanswered = run("jobs", "cancel", "--task", "shop.add")
    agreed = run("jobs", "cancel", "--task", "shop.add", stdin="y\n")
    unasked = run("jobs", "retry", "--state", "failed", "--state", "cancelled", "--yes")
    none_fit = run("jobs", "retry", "--since", "1h", "--yes")

    assert (refused.returncode, unanswered.returncode) == (1, 1)
    assert "Cancel 1 job? [y/N]" in refused.stderr
    assert "nothing was changed; --yes answers for you" in unanswered.stderr
    # Older releases of click put the blank after the question on this stream.
    assert agreed.stdout.strip() == "1 job cancelled"
    assert unasked.stdout == "2 jobs queued again\n"
    assert (none_fit.returncode, none_fit.stdout) == (0, "")
    assert set(ids(run("jobs", "list", "--json", "--state", "queued"))) == {2, 3, 4}


def test_code_that_is_too_old_does_not_report_its_schema_as_done(run, pg_url):
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("insert into pgcron.migrations (number, name, oldest_code) values (999, 'next', 999)")

    for words in (["migrate"], ["migrate", "--check"], ["migrate", "--environment", "production"], ["health"]):
        answer = run(*words)

        assert (answer.returncode, answer.stdout) == (78, "")
        assert "is at 999 and no longer works with this version" in answer.stderr
        assert "Run: pip install --upgrade pgcron_lite" in answer.stderr


@pytest.mark.parametrize("given", [["-q", ""], ["-q", "mail", "-q", ""], ["-q", ","], ["-q", " "]])
def test_a_queue_without_a_name_is_not_every_queue(run, pg_url, given):
    for command_of in (["worker", "--drain"], ["dev-worker"]):
        answer = run(*command_of, *given, PGCRON_APP="shop:app")

        assert answer.returncode == 78, answer.stdout + answer.stderr
        assert "expected names such as mail,reports, or * for every queue" in answer.stderr


def test_health_of_a_queue_without_a_name_is_refused(run, pg_url):
    answer = run("health", "--max-age", "10m", "-q", "")

    assert (answer.returncode, answer.stdout) == (2, "")
    assert "queue='': expected a name" in answer.stderr


def test_bulk_work_meets_more_jobs_than_fit_on_a_page(run, pg_url):
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("select pgcron.enqueue('shop.add') from generate_series(1, 1203)")

    some = run("jobs", "cancel", "--state", "queued", "--limit", 601, "--yes")
    rest = run("jobs", "delete", "--task", "shop.add", "--yes")

    assert some.stdout == "601 jobs cancelled\n"
    assert rest.stdout == "1,203 jobs deleted\n"
    assert ids(run("jobs", "list", "--json")) == []


# queues, tasks, workers, health


@pytest.mark.usefixtures("some_jobs")
def test_queues_are_listed_paused_resumed_and_cleared(run, pg_url):
    listed = {q["queue"]: q for q in objects(run("queues", "list", "--json"))}
    paused = run("queues", "pause", "default")
    waits = run("jobs", "show", 3)
    while_paused = {q["queue"]: q["state"] for q in objects(run("queues", "list", "--json"))}
    resumed, again = run("queues", "resume", "default"), run("queues", "resume", "default")
    unanswered = run("queues", "clear", "default")
    cleared, empty = run("queues", "clear", "default", "--yes"), run("queues", "clear", "default", "--yes")

    assert (listed["default"]["due"], listed["mail"]["deferred"]) == (1, 1)
    assert "queue 'default' is paused, 1 job waiting. To go on: pgcron queues resume default" in paused.stdout
    assert "waits until the queue is resumed: pgcron queues resume default" in waits.stdout
    assert while_paused == {"default": "paused", "mail": "open"}
    assert "is open again" in resumed.stdout
    assert "it was not paused" in again.stdout
    assert unanswered.returncode == 1
    assert "Cancel 1 waiting job of queue 'default'?" in unanswered.stderr
    assert cleared.stdout == "1 job cancelled\n"
    assert (empty.returncode, empty.stdout) == (0, "")


def test_tasks_are_listed_without_a_database(run):
    found = {t["task"]: t for t in objects(run("tasks", "list", "--json"))}
    table = run("tasks", "list").stdout

    assert set(found) == {"shop.add", "shop.send", "shop.boom", "shop.nap", "shop.patched"}
    assert found["shop.send"] | {"doc": ""} == {
        "task": "shop.send", "signature": "(to: str, *more: str, **options: object) -> list", "queue": "mail",
        "priority": 0, "max_attempts": 1, "max_crashes": 3, "keep_result": True, "doc": "",
    }
    assert found["shop.add"]["doc"] == "Add two numbers."
    assert "(x: int, y: int = 0) -> int" in table


def test_health_follows_the_workers(run, pg_url, folder):
    without = run("health")
    with subprocess.Popen(command("worker"), cwd=folder, env=environment(pg_url), stdout=subprocess.DEVNULL) as worker:
        eventually(lambda: objects(run("workers", "list", "--json")), within=30)
        (listed,) = objects(run("workers", "list", "--json"))
        alive = run("health", "--json")
        worker.terminate()
        worker.wait(timeout=30)

    assert without.returncode == 1
    assert re.search(r"FAIL +workers +no worker is alive; start one with: pgcron worker", without.stdout)
    assert [finding["ok"] for finding in objects(alive)] == [True, True, True]
    assert (listed["state"], listed["pid"], listed["queues"], listed["mode"]) == ("ok", worker.pid, ["*"], "threads")


@pytest.mark.parametrize(
    ("silent", "idle_loop", "state", "code"),
    [(0, 0, "ok", 0), (50, 0, "ok", 0), (70, 0, "silent", 1), (0, 70, "stuck", 1)],
)
def test_a_silent_or_a_stuck_worker_is_not_healthy(run, pg_url, silent, idle_loop, state, code):
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            "insert into pgcron.workers (id, host, pid, version, queues, slots, mode, beat_at, idle_loop)"
            " values (%s, 'h', 1, '0', '{*}', 1, 'threads', now() - make_interval(secs => %s), %s)",
            [uuid.uuid4(), silent, idle_loop],
        )

    health = run("health")
    (worker,) = objects(run("workers", "list", "--json"))

    assert (worker["state"], health.returncode) == (state, code)


@pytest.mark.usefixtures("some_jobs")
def test_health_can_ask_how_long_jobs_wait(run, pg_url):
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("update pgcron.jobs set execute_after = now() - interval '5 minutes' where id = 3")

    checks = {
        words: json.loads(run("health", "--json", *words.split()).stdout.splitlines()[-1])
        for words in ("--max-age 1m", "--max-age 10m", "--max-age 1m -q mail")
    }
    run("queues", "pause", "default")
    paused = json.loads(run("health", "--json", "--max-age", "1m").stdout.splitlines()[-1])

    assert [check["ok"] for check in checks.values()] == [False, True, True]
    assert checks["--max-age 1m"]["detail"].startswith("a job of queue default for 5 m")
    assert paused["ok"]


# worker


def test_a_worker_drains_and_ends_with_0(run, pg_url):
    run("enqueue", "shop.add", 1, 2)

    answer = run("worker", "--drain", "--log-format", "json")

    entries = [json.loads(line) for line in answer.stdout.splitlines()]
    (job,) = [entry for entry in entries if entry.get("event") == "job"]
    assert answer.returncode == 0
    assert (job["task"], job["outcome"], job["job_id"]) == ("shop.add", "done", 1)
    assert answer.stderr == ""


def test_a_worker_serves_the_queues_it_is_given(run, pg_url):
    for queue in ("a", "b", "c", "d"):
        run("enqueue", "shop.add", 1, "-q", queue)

    answer = run("worker", "--drain", "-q", "a,b", "-q", "c")

    assert answer.returncode == 0
    states = {job["queue"]: job["state"] for job in objects(run("jobs", "list", "--json"))}
    assert states == {"a": "done", "b": "done", "c": "done", "d": "queued"}


@pytest.mark.parametrize(("more", "patched"), [([], False), (["--gevent"], True)])
def test_gevent_is_patched_before_the_app_is_imported(run, pg_url, folder, more, patched):
    (folder / "shop.py").write_text("import psycopg\n" + SHOP)
    run("enqueue", "shop.patched")

    answer = run("worker", "--drain", *more)

    assert answer.returncode == 0, answer.stderr
    assert objects(run("jobs", "show", 1, "--json"))[0]["result"] is patched


def test_the_environment_may_ask_for_gevent(run, pg_url):
    run("enqueue", "shop.patched")

    run("worker", "--drain", PGCRON_GEVENT="1")

    assert objects(run("jobs", "show", 1, "--json"))[0]["result"] is True



@pytest.mark.parametrize("way", ["script", "module"])
@pytest.mark.parametrize("more", [[], ["--gevent"]], ids=["threads", "gevent"])
def test_several_processes_are_started_alike_from_the_script_and_the_module(pg_url, folder, run, way, more):
    script = folder / "pgcron"
    script.write_text("import sys\nfrom pgcron_lite.__main__ import main\nsys.exit(main())\n")
    start = [sys.executable, "-m", "pgcron_lite"] if way == "module" else [sys.executable, str(script)]
    words = ["--app", "shop", "worker", "--processes", "2", "--slots", "3", *more]

    with subprocess.Popen([*start, *words], cwd=folder, env=environment(pg_url), stdout=subprocess.DEVNULL) as parent:
        eventually(lambda: len(objects(run("workers", "list", "--json"))) == 2, within=40)
        workers = objects(run("workers", "list", "--json"))
        parent.send_signal(signal.SIGTERM)
        code = parent.wait(timeout=40)

    assert code == 0
    assert {w["slots"] for w in workers} == {3}
    assert parent.pid not in {w["pid"] for w in workers}
    assert objects(run("workers", "list", "--json")) == []


def test_a_worker_ends_by_itself_after_max_seconds(run, pg_url):
    answer = run("worker", "--max-seconds", "0.5", "--log-format", "text")

    assert answer.returncode == 0
    assert "stopping (0.5 s are over): idle." in answer.stdout


@pytest.mark.parametrize("words", [(), ("--drain",)], ids=["worker", "drain"])
def test_max_seconds_bounds_the_wait_for_a_database_too(run, words):
    nowhere = "postgresql://nobody@127.0.0.1:1/nowhere"

    answer = run("worker", "--max-seconds", "0.5", *words, url=nowhere)

    assert answer.returncode == 69
    assert "the database was not available within 0.5 s" in answer.stdout


def test_interrupting_a_wait_is_130(run, pg_url, folder):
    with subprocess.Popen(
        command("enqueue", "shop.add", 1, "--wait"), cwd=folder, env=environment(pg_url), stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert "waiting for it" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        code = waiting.wait(timeout=30)
        said = waiting.stderr.read()

    assert code == 130
    assert said == "Error: stopped by Ctrl-C\n"


# Output


@pytest.mark.usefixtures("some_jobs")
def test_every_reading_command_prints_objects_with_times_in_utc(run, pg_url):
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(
            "insert into pgcron.workers (id, host, pid, version, queues, slots, mode)"
            " values (gen_random_uuid(), 'h', 1, '0', '{*}', 1, 'threads')"
        )
        conn.execute("alter database " + conn.info.dbname + " set timezone to 'Asia/Tokyo'")

    for words in ("jobs list", "jobs show 1", "queues list", "tasks list", "workers list", "health", "version"):
        found = objects(run(*words.split(), "--json"))

        assert found, words
        times = [value for item in found for name, value in item.items() if name.endswith(("_at", "_after")) and value]
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", time) for time in times)


def reading_commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    ctx = click.Context(group)
    found = []
    for name in group.list_commands(ctx):
        inner = group.get_command(ctx, name)
        if isinstance(inner, click.Group):
            found += reading_commands(inner, (*path, name))
        elif name in ("list", "show", "next", "history", "health", "cron", "import-crontab", "version"):
            found.append((*path, name))
    return found


def test_every_command_that_shows_something_takes_json():
    for path in reading_commands(pgcron):
        answer = CliRunner().invoke(pgcron, [*path, "--help"])
        assert "--json" in answer.output, " ".join(path)


@pytest.mark.usefixtures("some_jobs")
def test_colours_are_for_terminals_and_not_for_those_who_refuse_them(run, pg_url, folder):
    env = environment(pg_url, TERM="xterm", COLUMNS="200", NO_COLOR="")

    on_terminal = on_a_terminal(command("jobs", "list"), folder, env)
    refused = on_a_terminal(command("jobs", "list"), folder, {**env, "NO_COLOR": "1"})
    piped = subprocess.run(command("jobs", "list"), cwd=folder, env=env, capture_output=True, text=True, check=True)

    assert "\x1b[31mfailed" in on_terminal
    assert "\x1b" not in refused
    assert "\x1b" not in piped.stdout


def on_a_terminal(words: list[str], folder: Path, env: dict[str, str]) -> str:
    program = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    return python(program, *words, cwd=folder, env=env, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 ms"), (0.25, "250 ms"), (1.4, "1 s"), (59.6, "1 m"), (61, "1 m 1 s"), (3725, "1 h 2 m"), (3605, "1 h"),
        (90061, "1 d 1 h"), (464 * 86400 + 40 * 60, "464 d"), (-5, "0 ms"),
    ],
)  # fmt: skip
def test_a_span_is_said_in_its_largest_unit_and_the_next(seconds, words):
    assert output.span(seconds) == words


# Completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(run, shell):
    answer = run("completion", shell)

    assert answer.returncode == 0
    assert "_PGCRON_COMPLETE" in answer.stdout


def test_tasks_are_completed_from_the_app_without_a_database(run):
    answer = run(_PGCRON_COMPLETE="bash_complete", COMP_WORDS="pgcron enqueue shop.", COMP_CWORD="2")

    assert answer.stdout.split() == ["plain,shop.add", "plain,shop.boom", "plain,shop.nap", "plain,shop.patched",
                                     "plain,shop.send"]


# Whose database


@pytest.fixture
def lent(folder: Path, pg_url: str) -> Path:
    """The file in which `pgcron dev` writes down its database."""
    file = folder / ".pgcron" / "url"
    file.parent.mkdir()
    file.write_text(f"{pg_url}\n")
    file.chmod(0o600)
    return file


def test_the_database_of_dev_is_found_by_the_other_commands_which_say_so(run, lent):
    answer = run("jobs", "list", "--json", url=None)
    worked = run("enqueue", "shop.add", 1, url=None)

    assert (answer.returncode, answer.stdout) == (0, "")
    assert worked.stdout == "shop.add#1\n"
    for each in (answer, worked):
        assert "(database of `pgcron dev` in .pgcron/, as DATABASE_URL is not set)" in each.stderr


def test_a_url_that_is_set_wins_over_the_database_of_dev(run, lent):
    answer = run("jobs", "list", url=f"postgresql://u@127.0.0.1:{free_port()}/db")

    assert answer.returncode == 69
    assert ".pgcron" not in answer.stderr


def test_a_file_that_others_may_write_or_read_is_not_believed(lent, folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.delenv("PGCRON_DATABASE_URL", raising=False)
    lent.chmod(0o644)

    assert borrow_dev_url() is None
    assert "DATABASE_URL" not in os.environ


def test_a_database_of_dev_that_is_down_is_named(run, lent):
    lent.write_text(f"postgresql://u@127.0.0.1:{free_port()}/db\n")

    answer = run("jobs", "list", url=None)

    assert answer.returncode == 69
    assert "the development database in .pgcron/ is not running; `pgcron dev` starts it" in answer.stderr


def test_operators_need_no_code(run, pg_url, folder):
    (folder / "shop.py").unlink()
    bare = run("jobs", "list", "--json")
    (folder / "app.py").write_text("raise RuntimeError('half of it is missing here')")
    broken = run("jobs", "list", "--json")
    needed = run("tasks", "list")

    assert (bare.returncode, bare.stderr) == (0, "")
    assert broken.returncode == 0
    assert "(settings from the environment alone: importing 'app' failed: RuntimeError: half" in broken.stderr
    assert needed.returncode == 2


# The pages


def test_the_table_of_settings_is_current():
    page = (ROOT / "docs" / "settings.md").read_text("utf-8")

    assert settings_table() in page, f"put this into docs/settings.md:\n{settings_table()}"


def settings_table() -> str:
    """The settings in the order of `config.Settings`, with their defaults as one would write them."""
    defaults = config.Settings()
    rows = [(f"`{config.variable(name)}`", f"`{name}`", written(getattr(defaults, name))) for name in config.READERS]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def written(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "total_seconds"):
        return f"`{config.durations.spoken(value).replace(' ', '')}`"
    if isinstance(value, bool):
        return "`yes`" if value else "`no`"
    return f"`{','.join(value) if isinstance(value, tuple) else value}`"


def test_every_command_and_option_is_on_the_operating_page():
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")

    missing = [words for words in spelled_out(pgcron, "pgcron") if f"`{words}" not in page and words not in page]

    assert not missing


def spelled_out(group: click.Group, path: str) -> list[str]:
    assert isinstance(group, Nouns)
    ctx = click.Context(group)
    found: list[str] = []
    for name in group.list_commands(ctx):
        inner = group.get_command(ctx, name)
        assert inner is not None
        if isinstance(inner, click.Group):
            found += spelled_out(inner, f"{path} {name}")
        elif not inner.hidden:
            found.append(f"{path} {name}")
            options = [p for p in inner.params if isinstance(p, click.Option)]
            found += [max(option.opts, key=len) for option in options if option.opts]
    return found


def test_the_exit_codes_are_on_the_operating_page():
    page = (ROOT / "docs" / "operating.md").read_text("utf-8")

    codes = re.findall(r"^\| (\d+) \|", page, re.MULTILINE)

    assert codes == ["0", "1", "2", "69", "70", "78", "130"]
