"""The bare limit: the least SQL that is a queue, by psycopg, prepared. A bound for all others, not a competitor.

A batch of jobs is claimed by one statement and finished (deleted) by another. There is one queue with one priority, and
dead workers are not detected.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

import psycopg

from benchmarks.contestants import kit

TASKS: dict[str, Callable[..., None]] = {"noop": kit.noop, "sleep": kit.nap, "stamp": kit.stamp}


def setup(request: kit.Request) -> kit.Answer:
    with connect(request) as conn:
        conn.execute(
            """
            create table job (
                id bigint generated always as identity primary key,
                task text not null,
                payload jsonb not null default '[]',
                priority int not null default 0,
                run_at timestamptz not null default now(),
                running boolean not null default false
            );
            create index job_waiting on job (priority desc, run_at, id) where not running;
            create table finished (like job);
            """
        )
    return {"versions": {"psycopg": psycopg.__version__}, "remaining_sql": "select count(*) from job"}


def enqueue(request: kit.Request) -> kit.Answer:
    with connect(request) as conn:
        cursor = conn.cursor()
        return kit.produce(lambda: cursor.execute(_INSERT, ("noop", "[]")).fetchone(), request)


def bulk(request: kit.Request) -> kit.Answer:
    with connect(request) as conn:
        kit.wait_for_start()
        began = kit.now()
        (_copy if request.options.get("copy") else _unnest)(conn, request.count)
        return {"began": began, "ended": kit.now(), "jobs": request.count}


def _unnest(conn: psycopg.Connection[Any], count: int, chunk: int = 10_000) -> None:
    for start in range(0, count, chunk):
        number = min(chunk, count - start)
        conn.execute(
            "insert into job (task, payload) select * from unnest(%s::text[], %s::jsonb[]) returning id",
            (["noop"] * number, ["[]"] * number),
        ).fetchall()


def _copy(conn: psycopg.Connection[Any], count: int) -> None:
    with conn.cursor().copy("copy job (task, payload) from stdin") as copy:
        for _ in range(count):
            copy.write_row(("noop", "[]"))


def fill(request: kit.Request) -> None:
    with connect(request) as conn:
        conn.execute(
            "insert into job (task) select %s from generate_series(1, %s)",
            (request.task, request.count),
        )


def deepen(request: kit.Request) -> None:
    with connect(request) as conn:
        if request.case == "history":
            conn.execute(
                "insert into finished select i, 'noop', '[]', 0, now(), false from generate_series(1, %s) as i",
                (request.count,),
            )
        else:
            conn.execute(
                """
                insert into job (task, priority, run_at)
                select 'noop', %s, now() + %s::interval from generate_series(1, %s)
                """,
                (10 if request.case == "urgent" else 0, "0" if request.case == "due" else "1 day", request.count),
            )


def trickle(request: kit.Request) -> kit.Answer:
    with connect(request) as conn:
        cursor = conn.cursor()

        def send(sent: int) -> None:
            payload = f"[{sent}]" if request.task == "stamp" else "[]"
            cursor.execute(_INSERT_AND_RING, (request.task, payload)).fetchone()

        return kit.trickle(send, request)


def work(request: kit.Request) -> None:
    batch = request.options["batch"]
    with connect(request) as conn, connect(request) as bell:
        conn.prepare_threshold = 0
        bell.execute("listen job")
        cursor = conn.cursor()
        while True:
            jobs = cursor.execute(_CLAIM, (batch,)).fetchall()
            for _, task, payload in jobs:
                TASKS[task](*payload)
            if jobs:
                cursor.execute("delete from job where id = any(%s)", ([job[0] for job in jobs],))
            else:
                select.select([bell], [], [], 5.0)
                for _ in bell.notifies(timeout=0):
                    pass


def connect(request: kit.Request) -> psycopg.Connection[Any]:
    return psycopg.connect(request.url, autocommit=True)


_INSERT = "insert into job (task, payload) values (%s, %s) returning id"

_INSERT_AND_RING = """
    with added as (insert into job (task, payload) values (%s, %s) returning id)
    select id, pg_notify('job', '') from added
"""

_CLAIM = """
    update job set running = true
    where id = any(array(
        select id from job
        where not running and priority = 0 and run_at <= now()
        order by run_at, id
        limit %s
        for update skip locked
    ))
    returning id, task, payload
"""


if __name__ == "__main__":
    kit.main({verb.__name__: verb for verb in (setup, enqueue, bulk, fill, deepen, trickle, work)})
