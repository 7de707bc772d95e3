"""`pgcron dev`: from nothing to a job that has run, and from there to the next change.

What needs the embedded database has one of its own; the rest uses the database of the test by DATABASE_URL.
"""

import os
import pwd
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from support import eventually

import pgcron_lite
from pgcron_lite import PgCron
from pgcron_lite.cli.dev import reload
from pgcron_lite.cli.dev.child import example
from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.worker import gevent_support, watchdog

ROOT = Path(pgcron_lite.__file__).parents[1]

HELLO = """
from pgcron_lite import PgCron
app = PgCron("hello")

@app.task
def add(x: int, y: int) -> int:
    return x + y

@app.task(max_attempts=1)
def boom() -> None:
    raise ValueError("no luck")
"""


def environment(url: str | None = None) -> dict[str, str]:
    others = {"DATABASE_URL", "FLASK_APP", "DYNO"}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PGCRON_") and k not in others}
    return {**kept, "PYTHONPATH": str(ROOT), **({} if url is None else {"DATABASE_URL": url})}


def pgcron(folder: Path, *words: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pgcron_lite", *words], cwd=folder, env=environment(url), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100, check=False,
    )


class Running:
    """A `pgcron dev` and everything it has said so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    def says(self, words: str, times: int = 1) -> bool:
        return len(re.findall(words, self._log.read_text())) >= times

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


@contextmanager
def dev(folder: Path, url: str, *words: str) -> Iterator[Running]:
    """`pgcron dev`, in a session of its own, so that all of it can be killed at the end."""
    log = folder / "dev.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "pgcron_lite", "dev", *words], cwd=folder, env=environment(url),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )
    try:
        yield Running(process, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(HELLO)
    return tmp_path


# From nothing


@pytest.fixture
def nothing(tmp_path: Path, pg_server: EmbeddedPostgres) -> Iterator[Path]:
    """An empty folder; a database that is made in it is deleted afterwards. Skipped where there is no PostgreSQL."""
    yield tmp_path
    EmbeddedPostgres(tmp_path / ".pgcron").reset()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
@pytest.mark.parametrize(("file", "words"), [("hello.py", ()), ("hello.py", ("--run", "hello.add 1 2")),
                                             ("README", ("--new",))])
def test_in_a_folder_of_another_user_nothing_is_made_or_started(nothing, file, words):
    (nothing / file).write_text(HELLO)
    before = sorted(nothing.iterdir())
    os.chown(nothing, pwd.getpwnam("nobody").pw_uid, -1)

    refused = pgcron(nothing, "dev", *words)

    assert (refused.returncode, sorted(nothing.iterdir())) == (2, before), refused.stderr
    assert re.search("belongs to another user.*--app hello or PGCRON_APP=hello", refused.stderr)
    assert "PostgreSQL" not in refused.stderr


def test_one_command_goes_from_an_empty_folder_to_a_job_that_has_run(nothing):
    first = pgcron(nothing, "dev", "--new", "--run", "hello.add 1 2")

    assert (first.returncode, first.stdout) == (0, "3\n"), first.stderr
    assert "wrote hello.py" in first.stderr
    assert "PostgreSQL in .pgcron/ started in" in first.stderr
    assert re.search(r"hello\.add#1 done in \d+ m?s, result:", first.stderr)
    export = re.search(r"export DATABASE_URL=.*", first.stderr)[0]
    url = subprocess.run(
        ["sh", "-c", f'{export}; echo "$DATABASE_URL"'], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert re.fullmatch(r"postgresql://postgres:\w{32}@127\.0\.0\.1:\d+/postgres\?require_auth=scram-sha-256", url)
    assert url not in first.stdout + first.stderr

    # What it proposes works when it is typed.
    listed = pgcron(nothing, "jobs", "list", "--json")
    again = pgcron(nothing, "dev", "--run", "hello.add 3 4", url=url)
    stopped = pgcron(nothing, "dev", "--stop")
    down = pgcron(nothing, "jobs", "list")
    back = pgcron(nothing, "dev", "--run", "hello.add 5 6")
    unanswered = pgcron(nothing, "dev", "--reset")
    reset = pgcron(nothing, "dev", "--reset", "--yes")
    stopped_again = pgcron(nothing, "dev", "--stop")

    assert '"result": 3' in listed.stdout
    assert (again.returncode, again.stdout) == (0, "7\n")
    assert "is stopped; its data stays" in stopped.stdout
    assert (down.returncode, "`pgcron dev` starts it" in down.stderr) == (69, True)
    assert (back.returncode, back.stdout, "hello.add#3" in back.stderr) == (0, "11\n", True)
    assert unanswered.returncode == 1
    assert "is deleted" in reset.stdout
    assert "was not running" in stopped_again.stdout
    assert not (nothing / ".pgcron" / "url").exists()


def test_the_url_is_written_down_for_its_owner_alone(nothing):
    pgcron(nothing, "dev", "--new", "--run", "hello.add 1 2")

    assert stat.S_IMODE((nothing / ".pgcron" / "url").stat().st_mode) == 0o600


def test_a_url_that_others_can_have_written_is_not_used(tmp_path, pg_url):
    file = tmp_path / ".pgcron" / "url"
    file.parent.mkdir(mode=0o700)
    (tmp_path / "elsewhere").write_text(pg_url)
    (tmp_path / "elsewhere").chmod(0o600)

    for make in (lambda: file.symlink_to(tmp_path / "elsewhere"), lambda: os.mkfifo(file, 0o600)):
        make()
        answer = pgcron(tmp_path, "jobs", "list")
        file.unlink()

        assert (answer.returncode, "no database given" in answer.stderr) == (78, True), answer.stderr


def test_without_an_app_it_says_what_to_do_and_starts_nothing(tmp_path):
    answer = pgcron(tmp_path, "dev")

    assert answer.returncode == 2
    assert "`pgcron dev --new` writes a small one" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_there_is_nothing_to_stop_where_nothing_was_started(tmp_path):
    answer = pgcron(tmp_path, "dev", "--stop")

    assert answer.returncode == 0
    assert "there is no .pgcron/ in this folder" in answer.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_hello_that_is_there_is_not_overwritten(folder, pg_url):
    answer = pgcron(folder, "dev", "--new", "--run", "hello.add 1 2", url=pg_url)

    assert answer.returncode == 0
    assert "hello.py is there already; it stays as it is" in answer.stderr
    assert (folder / "hello.py").read_text() == HELLO


# One job


def test_the_database_that_is_given_is_used_and_gets_its_tables(folder, empty_pg_url):
    answer = pgcron(folder, "dev", "--run", "hello.add 1 y=2", url=empty_pg_url)

    assert (answer.returncode, answer.stdout) == (0, "3\n")
    assert "applied migration 0001 jobs" in answer.stderr
    assert "export DATABASE_URL" not in answer.stderr
    assert not (folder / ".pgcron").exists()


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        ("hello.boom", 1, "hello.boom#1 is failed: ValueError: no luck"),
        ("hello.ad 1 2", 2, "no task named 'hello.ad' on app 'hello'; did you mean 'hello.add'?"),
        ("hello.add 1", 2, "missing a required argument: 'y'"),
        (" ", 2, "--run expects a task and its arguments"),
    ],
)
def test_a_job_that_cannot_be_run_or_fails_is_told_by_the_exit_code(folder, pg_url, call, code, words):
    answer = pgcron(folder, "dev", "--run", call, url=pg_url)

    assert (answer.returncode, answer.stdout) == (code, "")
    assert words in answer.stderr


def test_a_task_gets_example_arguments_that_fit():
    app = PgCron("x")

    @app.task(name="a")
    def a(x: int, y: float, z: str, on: bool, *, key: str, given: int = 3, **rest: object) -> None: ...

    @app.task(name="b")
    def b(x: Path) -> None: ...

    assert example(a) == ["1", "2.5", "three", "false", "key=two"]
    assert example(b) is None


# The worker that goes on


def test_it_works_shows_results_and_reloads_what_changes(folder, pg_url):
    with dev(folder, pg_url) as running:
        eventually(lambda: running.says(r"tasks:"), within=60)
        assert running.says("pgcron_lite enqueue hello.add 1 2 --wait")

        answer = pgcron(folder, "enqueue", "hello.add", "1", "2", "--wait", "--timeout", "60", url=pg_url)
        eventually(lambda: running.says("hello.add#1 returned 3"), within=30)

        def change() -> bool:
            # Written until it is noticed: the watch may begin a moment after the worker.
            (folder / "hello.py").write_text(HELLO.replace("x + y", "x * 100 + y"))
            return running.says("hello.py changed, reloading")

        eventually(change, within=60)
        eventually(lambda: running.says("tasks:", times=2), within=60)
        changed = pgcron(folder, "enqueue", "hello.add", "1", "2", "--wait", "--timeout", "60", url=pg_url)
        code = running.stop()

    assert answer.stdout == "3\n"
    assert changed.stdout == "102\n"
    assert code == 0


def test_a_mistake_is_shown_and_the_next_change_heals_it(folder, pg_url):
    with dev(folder, pg_url) as running:
        eventually(lambda: running.says(r"tasks:"), within=60)

        def break_it() -> bool:
            (folder / "hello.py").write_text(HELLO + "\noh no(")
            return running.says("hello.py changed, reloading")

        eventually(break_it, within=60)
        eventually(lambda: running.says("SyntaxError"), within=60)
        eventually(lambda: running.says("it starts again when a file changes"), within=60)
        (folder / "hello.py").write_text(HELLO)
        eventually(lambda: running.says(r"tasks:", times=2), within=60)
        code = running.stop()

    assert code == 0


def test_a_mistake_at_the_first_start_ends_it_with_the_reason(folder, pg_url):
    (folder / "hello.py").write_text(HELLO + "\noh no(")

    answer = pgcron(folder, "dev", url=pg_url)

    assert answer.returncode == 2
    assert "SyntaxError" in answer.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_its_worker_when_it_is_told_to(folder, pg_url, number):
    with dev(folder, pg_url, "--no-reload") as running:
        eventually(lambda: running.says(r"tasks:"), within=60)

        code = running.stop(number)

    assert code == 0
    assert running.says("stopped")
    with psycopg.connect(pg_url) as conn:
        assert conn.execute("select count(*) from pgcron.workers").fetchone() == (0,)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_frozen_is_killed_after_its_grace(folder, pg_url, number):
    with dev(folder, pg_url, "--no-reload", "--grace", "0.5s") as running, psycopg.connect(pg_url) as conn:
        eventually(lambda: running.says(r"tasks:"), within=60)
        [worker] = conn.execute("select pid from pgcron.workers").fetchone()
        os.kill(worker, signal.SIGSTOP)

        code = running.stop(number)

    assert code == 1
    assert running.says("the worker did not end within its grace; killing it")


def test_a_command_runs_beside_the_worker_with_the_database_and_its_end_is_the_end(folder, empty_pg_url):
    program = (
        "import os, psycopg; conn = psycopg.connect(os.environ['DATABASE_URL']);"
        " print('beside sees', conn.execute('select count(*) from pgcron.jobs').fetchone()); raise SystemExit(7)"
    )

    answer = pgcron(folder, "dev", "--", sys.executable, "-c", program, url=empty_pg_url)

    assert answer.returncode == 7
    assert "beside sees (0,)" in answer.stdout  # it began after the tables were there
    assert "ended with 7" in answer.stderr


@pytest.mark.parametrize("signals", [1, 2], ids=["once", "twice"])
def test_a_command_that_is_frozen_is_killed(folder, pg_url, signals):
    program = "import os, time; open('beside', 'w').write(f'{os.getpid()}.'); time.sleep(600)"
    words = ["--no-reload", "--grace", "0.5s", "--", sys.executable, "-c", program]
    beside = folder / "beside"
    with dev(folder, pg_url, *words) as running:
        eventually(lambda: beside.exists() and beside.read_text().endswith("."), within=60)
        eventually(lambda: running.says(r"tasks:"), within=60)
        command = int(beside.read_text()[:-1])
        os.kill(command, signal.SIGSTOP)
        eventually(lambda: watchdog.process_state(command)[0] == "T")

        for _ in range(signals):
            running.process.send_signal(signal.SIGINT)
            eventually(lambda: running.says("stopped"), within=60)
        running.process.wait(timeout=60)

    assert running.says("did not end when it was told to; killing it")
    with pytest.raises(ProcessLookupError):
        os.kill(command, 0)


def test_a_command_that_cannot_be_run_ends_it(folder, pg_url):
    answer = pgcron(folder, "dev", "--", "no-such-program-here", url=pg_url)

    assert answer.returncode == 1
    assert "cannot run 'no-such-program-here'" in answer.stderr


# Noticing changes


@pytest.mark.parametrize("how", ["reported", "looked for"])
def test_changes_of_python_files_are_noticed_and_no_others(tmp_path, how, monkeypatch):
    if how == "looked for":
        monkeypatch.setitem(sys.modules, "watchfiles", None)
    elif gevent_support.is_patched():
        pytest.skip("watchfiles waits outside of Python; the parent of `pgcron dev`, who asks it, is never patched")
    else:
        pytest.importorskip("watchfiles")
    for name in ("app.py", "notes.txt", ".venv/lib.py", "node_modules/x.py", "inner/deep.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    rung = threading.Event()
    changes = reload.Changes([tmp_path], rung.set)
    seen: set[str] = set()

    def noticed(count: int = iter(range(2, 1000)).__next__) -> bool:  # type: ignore[assignment]
        number = count()
        for name in ("notes.txt", ".venv/lib.py", "node_modules/x.py", "inner/deep.py", "app.py"):
            (tmp_path / name).write_text("1" * number)
        seen.update(changes.take())
        return {str(tmp_path / "app.py"), str(tmp_path / "inner/deep.py")} <= seen

    changes.start()
    try:
        eventually(noticed, within=30)
    finally:
        changes.stop()

    assert rung.is_set()
    assert seen == {str(tmp_path / "app.py"), str(tmp_path / "inner/deep.py")}
