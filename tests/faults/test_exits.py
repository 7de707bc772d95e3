"""Each way out of a worker process: its exit code, what it says, and that the interpreter exits in the ordinary way."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import eventually
from workers import PATIENCE, QUICK, SLOW, Queue, WorkerProcess, Workers

from pgcron_lite.worker.maintenance import MIN_FILES

both_kinds = pytest.mark.parametrize("gevent", [False, True], ids=["threads", "gevent"])


class Commands:
    """Starts `pgcron worker` on the app of the fault tests, and knows which processes have run their exit handlers."""

    def __init__(self, workers: Workers, folder: Path) -> None:
        self.workers = workers
        self._folder = folder

    def start(self, *words: object, gevent: bool = False, url: str | None = None, **env: str) -> WorkerProcess:
        given = self.workers.environment(url)
        paths = os.pathsep.join([str(Path(__file__).parent), given["PYTHONPATH"]])
        worker = WorkerProcess(
            ["-m", "pgcron_lite", "--app", "fault_tasks:app", "worker", *words, *["--gevent"] * gevent],
            {**given, **SLOW, "PYTHONPATH": paths, "FAULTS_EXITS": str(self._exits), **env},
            self._folder / f"command-{len(self.workers.all)}.log",
        )
        self.workers.all.append(worker)
        return worker

    def until_ready(self, worker: WorkerProcess) -> WorkerProcess:
        self.workers.until_ready(worker)
        return worker

    @property
    def _exits(self) -> Path:
        return self._folder / "exits"

    @property
    def exited(self) -> list[int]:
        return [int(line) for line in self._exits.read_text().split()] if self._exits.exists() else []


@pytest.fixture
def commands(workers: Workers, tmp_path: Path) -> Commands:
    return Commands(workers, tmp_path)


def use_the_slots(queue: Queue) -> None:
    jobs = [queue.enqueue("nap", seconds=0.05) for _ in range(12)]
    for job in jobs:
        queue.until(job, "done")


@both_kinds
@pytest.mark.usefixtures("sighup_stops_children")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)
def test_a_worker_that_is_told_to_stop_exits_in_the_ordinary_way(
    queue: Queue, commands: Commands, number: signal.Signals, gevent: bool
) -> None:
    worker = commands.until_ready(commands.start("--slots", 6, gevent=gevent))
    use_the_slots(queue)

    worker.send(number)

    assert worker.exit_code() == 0
    assert f"stopping ({number.name})" in worker.log
    assert commands.exited == [worker.pid]
    assert queue.workers() == {}


@both_kinds
@pytest.mark.parametrize("words", [("--drain",), ("--max-seconds", 1.5)], ids=["drain", "max-seconds"])
def test_a_worker_that_ends_by_itself_exits_in_the_ordinary_way(
    queue: Queue, commands: Commands, words: tuple[object, ...], gevent: bool
) -> None:
    jobs = [queue.enqueue("nap", seconds=0.05) for _ in range(12)]

    worker = commands.start("--slots", 6, *words, gevent=gevent)

    assert worker.exit_code() == 0
    assert commands.exited == [worker.pid]
    assert {queue.state(job) for job in jobs} == {"done"}


@pytest.mark.row(152)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("count", [1, 5, 40], ids=["one", "more than slots", "more than are kept"])
def test_a_drain_ends_and_fails_when_outcomes_cannot_be_stored(
    queue: Queue, commands: Commands, count: int, processes: int
) -> None:
    queue.rows(REFUSE_HISTORY)
    jobs = [queue.enqueue("nap") for _ in range(count)]

    worker = commands.start("--slots", 2, "--drain", "--processes", processes)

    assert worker.exit_code() == 1
    assert "the drain ends, but the outcomes of" in worker.log
    assert f"fault_tasks.nap#{jobs[0]}" in worker.log
    assert "stopping (the database refuses outcomes)" in worker.log
    # The other process, if there is one, may have found nothing.
    assert ("nothing is due" not in worker.log) or processes == 2
    assert "did not end within the grace" not in worker.log
    assert "the next one starts" not in worker.log
    assert {queue.state(job) for job in jobs} == {"queued"}


REFUSED_CLAIMS = {
    "raises": """
        create or replace function pgcron.levels() returns table (queue text, priority smallint)
        language plpgsql as 'begin raise exception using errcode = ''22000'', message = ''bad row''; end'
    """,
    "missing": "drop function pgcron.levels()",
}


@pytest.mark.row(152)
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("claim", "reason"), [("raises", "bad row"), ("missing", "levels() does not exist")])
def test_a_drain_whose_claims_are_refused_ends_and_fails(
    queue: Queue, commands: Commands, claim: str, reason: str, processes: int
) -> None:
    job = queue.enqueue("nap")
    queue.rows(REFUSED_CLAIMS[claim])

    worker = commands.start("--slots", 2, "--drain", "--processes", processes)

    assert worker.exit_code() == 1
    assert "the drain ends unfinished, after 8 refusals: " in worker.log
    assert reason in worker.log
    assert "the next one starts" not in worker.log
    assert queue.state(job) == "queued"


REFUSE_HISTORY = """
create function public.refuse() returns trigger language plpgsql as $$
begin
    raise exception using errcode = '22000', message = 'not here';
end $$;
create trigger refuse before insert on pgcron.history for each row execute function public.refuse();
"""


def test_a_worker_that_cannot_start_exits_in_the_ordinary_way(
    commands: Commands, empty_pg_url: str, pg_url: str
) -> None:
    without_schema = commands.start(url=empty_pg_url)
    without_server = commands.start("--fail-fast", url="postgresql://postgres@127.0.0.1:1/postgres")
    wrong = commands.start(PGCRON_LEASE="soon")

    codes = [worker.exit_code() for worker in (without_schema, without_server, wrong)]

    assert codes == [78, 69, 78]
    assert set(commands.exited) == {without_schema.pid, without_server.pid, wrong.pid}


@pytest.mark.parametrize("files", [8, 10, 12, MIN_FILES - 1])
def test_a_worker_that_may_open_too_few_files_says_so(workers: Workers, queue: Queue, files: int) -> None:
    answer = limited(files, workers)

    assert answer.returncode == 78
    assert f"this process may have {files} open files, and a worker needs {MIN_FILES}" in answer.stderr
    assert "Traceback" not in answer.stderr


@both_kinds
def test_the_files_that_a_worker_asks_for_are_enough(workers: Workers, queue: Queue, gevent: bool) -> None:
    jobs = [queue.enqueue("pass_on") for _ in range(12)]

    answer = limited(MIN_FILES, workers, *["--gevent"] * gevent)

    assert answer.returncode == 0
    assert "Too many open files" not in answer.stderr
    assert {queue.state(job) for job in jobs} == {"done"}


def limited(files: int, workers: Workers, *words: str) -> subprocess.CompletedProcess[str]:
    """`pgcron worker --drain` in a shell with `ulimit -n`."""
    given = workers.environment()
    paths = os.pathsep.join([str(Path(__file__).parent), given["PYTHONPATH"]])
    command = [sys.executable, "-m", "pgcron_lite", "--app", "fault_tasks:app", "worker", "--drain", *words]
    return subprocess.run(
        ["/bin/sh", "-c", f'ulimit -n {files}; exec "$@"', "sh", *command], env={**given, **SLOW, "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )


def test_threads_of_an_executor_that_a_task_used_are_no_reason_for_another_exit(
    queue: Queue, commands: Commands
) -> None:
    worker = commands.until_ready(commands.start())
    queue.until(queue.enqueue("use_an_executor"), "done")

    assert worker.stop() == 0

    assert commands.exited == [worker.pid]
    assert "left threads running" not in worker.log


@both_kinds
@pytest.mark.parametrize("times", [1, 2], ids=["SIGTERM", "Ctrl-C twice"])
def test_a_job_that_does_not_stop_is_the_one_reason_to_end_at_once(
    queue: Queue, commands: Commands, gevent: bool, times: int
) -> None:
    worker = commands.until_ready(commands.start("--grace", 0.5 if times == 1 else 60, gevent=gevent))
    job = queue.enqueue("nap", seconds=60)
    queue.begun(job)

    if times == 1:
        worker.terminate()
    else:
        worker.send(signal.SIGINT)
        eventually(lambda: "Ctrl-C again hands it back now" in worker.log, PATIENCE)
        worker.send(signal.SIGINT)

    assert worker.exit_code() == (0 if times == 1 else 130)
    assert "a job did not stop: the process ends at once, and exit handlers do not run" in worker.log
    assert commands.exited == []
    assert queue.job(job).state == "queued"


@pytest.mark.row(12)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_second_sigterm_to_every_process_lets_exit_handlers_end(
    queue: Queue, commands: Commands, processes: int
) -> None:
    worker = commands.start("--processes", processes, FAULTS_EXIT_SECONDS="2")
    commands.workers.until_ready(worker, processes)
    pids = list(queue.workers())

    worker.terminate()
    eventually(lambda: not queue.workers())
    time.sleep(0.5)
    for pid in {worker.pid, *pids}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    assert worker.exit_code() == 0
    assert set(commands.exited) == {worker.pid, *pids}
    assert "died" not in worker.log


def test_a_worker_that_is_started_with_standard_output_closed_runs_jobs(
    queue: Queue, workers: Workers, tmp_path: Path
) -> None:
    command = f"exec {sys.executable} -m pgcron_lite --app fault_tasks:app worker >&-"
    env = {**workers.environment(), "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(["sh", "-c", command], env=env, start_new_session=True) as process:
        job = queue.enqueue("nap")
        try:
            queue.until(job, "done")
        finally:
            process.terminate()
    assert process.returncode == 0


def test_an_exit_handler_that_does_not_end_holds_the_process_up_for_a_limited_time(
    queue: Queue, commands: Commands
) -> None:
    worker = commands.until_ready(commands.start(FAULTS_EXIT_HANGS="1"))

    assert worker.stop() == 0

    assert "exit handlers did not end" in worker.log


@both_kinds
def test_a_job_that_ignores_the_signals_in_c_does_not_keep_its_worker_from_ending(
    queue: Queue, commands: Commands, gevent: bool
) -> None:
    worker = commands.until_ready(commands.start(gevent=gevent))
    queue.until(queue.enqueue("ignore_signals"), "done")

    assert worker.stop() == 0


@both_kinds
def test_a_job_that_closes_the_standard_streams_keeps_nobody_from_printing_and_ending(
    queue: Queue, commands: Commands, gevent: bool
) -> None:
    worker = commands.until_ready(commands.start(gevent=gevent))
    queue.until(queue.enqueue("close_the_streams"), "done")

    spoken = queue.until(queue.enqueue("speak", text="still here", max_attempts=1), "done", "failed")

    assert spoken.state == "done"
    assert worker.stop() == 0
    assert worker.log.count("still here") >= 2
    assert "stopped" in worker.log


@both_kinds
def test_a_worker_without_a_supervisor_whose_descriptors_are_taken_ends_loudly_and_its_jobs_are_rescued(
    queue: Queue, commands: Commands, gevent: bool
) -> None:
    worker = commands.until_ready(commands.start(gevent=gevent))
    job = queue.enqueue("close_descriptors")

    assert worker.exit_code() != 0

    # Under gevent the event loop may find out first, and abort.
    by_event_loop = gevent and ("invalid fd found" in worker.log or "(libev) epoll_wait" in worker.log)
    assert "closed descriptors that were not its own" in worker.log or by_event_loop
    commands.start(**QUICK)
    queue.begun(job, times=2)


# run_worker() in a program

def program(workers: Workers, text: str, *args: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    file = folder / "program.py"
    file.write_text("from fault_tasks import app\nimport sys, threading\n" + textwrap.dedent(text))
    env = workers.environment()
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, str(file), *map(str, args)], env=env, capture_output=True, text=True, timeout=60, check=False
    )


def test_run_worker_returns_its_exit_code_and_the_program_goes_on(
    queue: Queue, workers: Workers, tmp_path: Path
) -> None:
    jobs = [queue.enqueue("nap") for _ in range(8)]

    answer = program(workers, "print('code', app.run_worker(drain=True)); sys.exit(7)", folder=tmp_path)

    assert (answer.returncode, answer.stdout) == (7, "code 0\n")
    assert {queue.state(job) for job in jobs} == {"done"}
    # It logs as `pgcron worker` does, where the output of the program is not.
    assert 'msg="stopping (nothing is due): idle."' in answer.stderr


def test_run_worker_leaves_logging_alone_that_is_set_up(queue: Queue, workers: Workers, tmp_path: Path) -> None:
    own = program(
        workers,
        """
        import logging
        logging.getLogger("pgcron_lite").addHandler(logging.NullHandler())
        app.run_worker(drain=True)
        """,
        folder=tmp_path,
    )
    asked = program(
        workers,
        "import logging; logging.basicConfig(); app.run_worker(drain=True, log_format='json')",
        folder=tmp_path,
    )

    assert (own.returncode, own.stderr) == (0, "")
    assert asked.stderr.startswith('{"ts"')


def test_run_worker_in_a_thread_works_and_ends_nothing_else(queue: Queue, workers: Workers, tmp_path: Path) -> None:
    job = queue.enqueue("nap")

    answer = program(
        workers,
        """
        codes = []
        thread = threading.Thread(target=lambda: codes.append(app.run_worker(drain=True)))
        thread.start()
        thread.join()
        print(codes)
        """,
        folder=tmp_path,
    )

    assert (answer.returncode, answer.stdout) == (0, "[0]\n")
    assert queue.state(job) == "done"


def test_a_worker_in_a_thread_stops_when_the_main_thread_has_ended(workers: Workers, tmp_path: Path) -> None:
    answer = program(workers, "threading.Thread(target=app.run_worker).start()", folder=tmp_path)

    assert answer.returncode == 0
    assert "the main thread of the program has ended" in answer.stderr


def test_what_only_the_main_thread_can_do_is_refused_elsewhere(workers: Workers, tmp_path: Path) -> None:
    answer = program(
        workers,
        """
        def run(**options):
            try:
                app.run_worker(**options)
            except Exception as error:
                print(error)
        for options in ({"processes": 2}, {"gevent": True}):
            thread = threading.Thread(target=run, kwargs=options, name="side")
            thread.start()
            thread.join()
        """,
        folder=tmp_path,
    )

    several, gevent = answer.stdout.splitlines()
    assert "run_worker(processes=2) was called in the thread 'side'" in several
    assert "which only the main thread may do" in gevent


def test_a_drain_inside_pytest_does_not_hide_a_failing_test(queue: Queue, workers: Workers, tmp_path: Path) -> None:
    (tmp_path / "test_inside.py").write_text(
        textwrap.dedent(
            """
            from fault_tasks import app

            def test_drain():
                assert app.run_worker(drain=True) == 0

            def test_that_fails():
                assert False
            """
        )
    )
    use = [queue.enqueue("nap") for _ in range(8)]
    env = workers.environment()
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env["PYTHONPATH"]])

    answer = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_inside.py"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
    )

    assert answer.returncode == 1
    assert "1 failed, 1 passed" in answer.stdout
    assert {queue.state(job) for job in use} == {"done"}


@both_kinds
def test_a_worker_inside_a_job_is_refused_and_the_worker_goes_on(
    queue: Queue, commands: Commands, gevent: bool
) -> None:
    worker = commands.until_ready(commands.start(gevent=gevent))

    job = queue.enqueue("run_a_worker", max_attempts=1)

    ended = queue.until(job, "failed", "done")
    assert "a job cannot run a worker in its own process" in ended.errors[-1]["error"]
    queue.until(queue.enqueue("nap"), "done")
    assert worker.stop() == 0


def test_a_second_worker_in_one_process_is_refused(queue: Queue, workers: Workers, tmp_path: Path) -> None:
    job = queue.enqueue("nap", seconds=60)

    answer = program(
        workers,
        """
        import os, time
        from pgcron_lite import PgCron
        threading.Thread(target=app.run_worker, name="first", daemon=True, kwargs={"grace": 0}).start()
        while not app._is_running:
            time.sleep(0.01)
        try:
            PgCron("other").run_worker(drain=True)
        except Exception as error:
            print(error)
        """,
        folder=tmp_path,
    )

    assert "while a worker of the app 'faults' runs in this process, in the thread 'first'" in answer.stdout
    assert "`pgcron worker`" in answer.stdout
    assert queue.state(job) in ("queued", "running")
