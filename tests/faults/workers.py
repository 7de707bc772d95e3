"""Worker processes to kill, freeze and stop; the queue as it looks from outside; and an audit of every transition."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import namedtuple_row
from support import eventually

import pgcron_lite
from pgcron_lite.job import FINAL

TASKS = Path(__file__).with_name("fault_tasks.py")

# A lease short enough to wait for. A beat every 0.5 s, a look at the others' beats every 0.25 s.
QUICK = {"PGCRON_LEASE": "1.5s", "PGCRON_POLL": "0.5s"}
# A lease that no test waits for: what happens within it happened for another reason.
SLOW = {"PGCRON_LEASE": "60s", "PGCRON_POLL": "0.5s"}

# What a starting Python, a busy machine and a few retries may take; no promise is judged by it.
PATIENCE = 30.0


class Queue:
    """The tables, by a connection that comes back when the server does; and the journal that the tasks keep."""

    def __init__(self, url: str, journal: Path) -> None:
        self.url = url
        self._journal = journal
        self._conn: psycopg.Connection[Any] | None = None

    def rows(self, query: str, *values: object) -> list[Any]:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if self._conn is None or self._conn.closed:
                    self._conn = psycopg.connect(self.url, autocommit=True, row_factory=namedtuple_row)
                cursor = self._conn.execute(query, values)
                # Rows without a column are rows too.
                return cursor.fetchall() if cursor.description is not None else []
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                self.close()
                time.sleep(0.1)

    def enqueue(
        self,
        task: str,
        *,
        queue: str = "default",
        headers: dict[str, str] | None = None,
        max_attempts: int = 5,
        max_crashes: int = 3,
        **args: Any,
    ) -> int:
        job_id: int = self.rows(
            "select pgcron.enqueue(%s, %s, queue => %s, headers => %s, max_attempts => %s, max_crashes => %s) as id",
            f"fault_tasks.{task}", json.dumps(args), queue, json.dumps(headers or {}), max_attempts, max_crashes,
        )[0].id
        return job_id

    def job(self, job_id: int) -> Any:
        # Without the arguments, which may be what nobody can read.
        return self.rows(
            "select id, state, attempt, crashes, alone, execute_after, claimed_at, finished_at, errors,"
            " result::text as result from pgcron.all_jobs where id = %s",
            job_id,
        )[0]

    def state(self, job_id: int) -> str:
        return str(self.job(job_id).state)

    def until(self, job_id: int, *states: str, within: float = PATIENCE) -> Any:
        """The job once it is in one of `states`."""
        __tracebackhide__ = True
        try:
            eventually(lambda: self.state(job_id) in states, within)
        except pytest.fail.Exception:
            pytest.fail(f"not {' or '.join(states)} after {within:g} s: {self.job(job_id)}, {self.entries(job_id)}")
        return self.job(job_id)

    def until_all_ended(self, within: float = PATIENCE) -> None:
        __tracebackhide__ = True
        eventually(lambda: not self.rows("select id, task, state, alone, attempt from pgcron.jobs"), within)

    def workers(self) -> dict[int, Any]:
        """The rows of pgcron.workers by process id."""
        return {row.pid: row for row in self.rows("select * from pgcron.workers")}

    def entries(self, job_id: int | None = None, what: str | None = None) -> list[dict[str, Any]]:
        """What the tasks noted, oldest first."""
        if not self._journal.exists():
            return []
        noted = [json.loads(line) for line in self._journal.read_text().splitlines()]
        return [e for e in noted if job_id in (None, e["job"]) and what in (None, e["what"])]

    def begun(self, job_id: int, times: int = 1) -> list[dict[str, Any]]:
        """Wait until the job's task has been entered so many times."""
        __tracebackhide__ = True
        return eventually(lambda: len(e := self.entries(job_id, "begin")) >= times and e, PATIENCE)

    def close(self) -> None:
        if self._conn is not None:
            self._conn.close()


class WorkerProcess:
    """A Python process that runs a worker, and what one may do to it."""

    def __init__(self, command: Sequence[object], env: dict[str, str], log: Path) -> None:
        self.log_file = log
        self.options_env = env
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, command)], env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()

    def freeze(self) -> None:
        self.send(signal.SIGSTOP)

    def thaw(self) -> None:
        self.send(signal.SIGCONT)

    def terminate(self) -> None:
        self.send(signal.SIGTERM)

    def exit_code(self, within: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        __tracebackhide__ = True
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            pytest.fail(f"process {self.pid} still runs after {within:g} s. Its log:\n{self.log}")

    def stop(self) -> int:
        self.terminate()
        return self.exit_code()

    def children(self) -> list[int]:
        """Its child processes."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
                if int(parent) == self.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return sorted(found)

    def clean_up(self) -> None:
        children = self.children()
        if self.is_alive:
            self.kill()
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


class Workers:
    """Starts worker processes on one database, and sees to it that none outlives the test."""

    def __init__(self, queue: Queue, folder: Path) -> None:
        self.queue = queue
        self.all: list[WorkerProcess] = []
        self._folder = folder

    def start(
        self,
        *,
        env: dict[str, str] | None = None,
        url: str | None = None,
        program: Path = TASKS,
        ready: bool = True,
        **options: Any,
    ) -> WorkerProcess:
        """Start `program`, the fault tests' own app, with `options` for `run_worker`; returns once it is ready."""
        __tracebackhide__ = True
        worker = WorkerProcess(
            [program, json.dumps({"slots": 4, **options})],
            {**self.environment(url), **(env or QUICK)},
            self._folder / f"worker-{len(self.all)}.log",
        )
        self.all.append(worker)
        if ready:
            self.until_ready(worker, options.get("processes", 1))
        return worker

    def until_ready(self, worker: WorkerProcess, processes: int = 1) -> None:
        """Wait for its row, or for those of its children."""
        __tracebackhide__ = True

        def is_ready() -> bool:
            assert worker.is_alive, "it ended before it was ready"
            rows = self.queue.workers()
            if processes == 1:
                return worker.pid in rows
            return len([pid for pid in worker.children() if pid in rows]) >= processes

        eventually(is_ready, PATIENCE)

    def clean_up(self) -> None:
        for worker in self.all:
            worker.clean_up()

    def logs(self) -> str:
        return "\n".join(f"---- {w.log_file.name}, pid {w.pid}\n{w.log}" for w in self.all)

    def environment(self, url: str | None = None) -> dict[str, str]:
        """What a worker process of this test needs to find its database, its journal and our code."""
        # Without the variables of the test run itself: a worker of its own is not half of ours.
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PGCRON_", "DATABASE_URL", "COV_"))}
        return {
            **plain,
            "PGCRON_DATABASE_URL": url or self.queue.url,
            "FAULTS_JOURNAL": str(self._folder / "journal"),
            "PYTHONPATH": os.pathsep.join([str(Path(pgcron_lite.__file__).parents[1]), plain.get("PYTHONPATH", "")]),
            "PYTHONFAULTHANDLER": "1",
            "PYTHONUNBUFFERED": "1",
        }


# The audit: every transition of every job, as the database saw it.

AUDIT = """
create schema audit;
create table audit.moves (
    seq      bigint generated always as identity primary key,
    at       timestamptz not null default clock_timestamp(),
    tx       xid8 not null default pg_current_xact_id(),
    place    text not null,
    verb     text not null,
    job      bigint not null,
    state    text not null,
    attempt  int not null,
    claim    uuid,
    worker   uuid
);
create table audit.workers (id uuid primary key, pid int not null);
create function audit.note_worker() returns trigger language plpgsql as $$
begin
    insert into audit.workers values (new.id, new.pid)
    -- A worker that was taken out of the table as dead registers again.
    on conflict do nothing;
    return null;
end
$$;
create trigger audit after insert on pgcron.workers for each row execute function audit.note_worker();
create function audit.note() returns trigger language plpgsql as $$
declare
    changed record;
begin
    if tg_op = 'DELETE' then changed := old; else changed := new; end if;
    insert into audit.moves (place, verb, job, state, attempt, claim, worker)
    values (tg_table_name, lower(tg_op), changed.id, changed.state, changed.attempt, changed.claim, changed.worker);
    return null;
end
$$;
create trigger audit after insert or update or delete on pgcron.jobs
    for each row execute function audit.note();
create trigger audit after insert or update or delete on pgcron.history
    for each row execute function audit.note();
"""

ENQUEUED = "enqueued"

# The picture at the head of job.py, as pairs.
LEGAL = {
    (ENQUEUED, "queued"),
    ("queued", "running"),
    ("running", "queued"),
    *(("running", state) for state in FINAL),
    ("queued", "cancelled"),
    ("failed", "queued"),
    ("cancelled", "queued"),
}


@dataclass(frozen=True)
class Move:
    """What one transaction did to one job."""

    job: int
    before: str
    after: str
    attempts: tuple[int, int]
    claims: tuple[uuid.UUID | None, uuid.UUID | None]
    worker: uuid.UUID | None
    at: datetime

    def __str__(self) -> str:
        first, then = self.attempts
        return f"#{self.job} {self.before} -> {self.after}, attempt {first} -> {then} at {self.at}"


class Audit:
    """The trail and its judge."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        queue.rows(AUDIT)

    def moves(self) -> list[Move]:
        """Every transition, in order for each job: the lock of a row orders those who change it."""
        found: list[Move] = []
        last: dict[int, tuple[str, int, uuid.UUID | None]] = {}
        by_transaction: dict[tuple[int, str], list[Any]] = defaultdict(list)
        for row in self._queue.rows("select * from audit.moves order by seq"):
            by_transaction[row.job, row.tx].append(row)
        for (job, _), rows in by_transaction.items():
            # Leaving one table for the other is one move; what counts is where the job is afterwards.
            arrived = [row for row in rows if row.verb != "delete"]
            if arrived and (arrived[-1].state, arrived[-1].attempt, arrived[-1].claim) != last.get(job):
                row = arrived[-1]
                before, attempt, claim = last.get(job, (ENQUEUED, 0, None))
                found.append(
                    Move(job, before, row.state, (attempt, row.attempt), (claim, row.claim), row.worker, row.at)
                )
                last[job] = (row.state, row.attempt, row.claim)
        return found

    def pids(self) -> dict[uuid.UUID, int]:
        """The process behind each worker there ever was."""
        return {row.id: row.pid for row in self._queue.rows("select * from audit.workers")}

    def of(self, job_id: int) -> list[str]:
        """The states a job went through."""
        return [move.after for move in self.moves() if move.job == job_id]

    def check(self) -> list[Move]:
        """Fail on any illegal transition; returns all there were."""
        __tracebackhide__ = True
        moves = self.moves()
        tokens: set[uuid.UUID | None] = set()
        wrong = []
        for move in moves:
            legal = (move.before, move.after) in LEGAL
            first, then = move.attempts
            if move.after == "running":
                legal = legal and then == first + 1 and (move.claims[1], move.job) not in tokens
                tokens.add((move.claims[1], move.job))
            elif move.before == "running":
                legal = legal and then in (first, first - 1)
                # What ends a claim names it: a row in history carries the token it was running under.
                legal = legal and (move.after == "queued" or move.claims[0] == move.claims[1])
            if not legal:
                wrong.append(move)
        assert not wrong, "illegal transitions:\n" + "\n".join(map(str, wrong))
        return moves


def recovery_bound(env: dict[str, str] = QUICK) -> float:
    """Seconds until a dead worker's job runs again, as published: a lease, two looks of a reaper, a poll.

    And a few for a machine that has other things to do.
    """
    lease, poll = (float(env[name].removesuffix("s")) for name in ("PGCRON_LEASE", "PGCRON_POLL"))
    return lease + 2 * min(5.0, lease / 6) + poll + 8.0
