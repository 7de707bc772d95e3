"""Procrastinate, on psycopg.

A worker runs 10 coroutines at once over a pool of up to 10 connections: 1 is a tenth slower and 30 no faster, because
each job is fetched and finished by separate statements. LISTEN is on and finished jobs are kept, both its defaults.
Producers use its synchronous connector, as an ordinary web application would.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from typing import Any

import procrastinate

from benchmarks.contestants import kit

CONCURRENCY = 10
POOL = 10
# It warns that the names of tasks in a main program cannot be imported elsewhere. Ours have explicit names.
logging.getLogger("procrastinate.blueprints").setLevel(logging.ERROR)

# `batch_defer` builds one statement with all jobs in it.
BATCH = 1_000

REMAINING = "select count(*) from procrastinate_jobs where status in ('todo', 'doing')"

# The triggers would notify the workers a million times. Their other effect, a row for each event, is done here.
DEEPEN = """
    set local session_replication_role = replica;
    with job as (
        insert into procrastinate_jobs (queue_name, task_name, priority, status, scheduled_at, attempts)
        select 'default', 'noop', {priority}, {status}, now() + {delay}::interval, {attempts}
        from generate_series(1, {count})
        returning id
    )
    insert into procrastinate_events (job_id, type)
    select id, type::procrastinate_job_event_type
    from job, unnest({events}::text[]) as type
    """


def setup(request: kit.Request) -> kit.Answer:
    app = opened(request)
    with app.open():
        app.schema_manager.apply_schema()
    names = ["procrastinate", "psycopg"]
    return {"versions": {name: importlib.metadata.version(name) for name in names}, "remaining_sql": REMAINING}


def enqueue(request: kit.Request) -> kit.Answer:
    app = opened(request)
    with app.open():
        return kit.produce(app.tasks["noop"].defer, request)


def bulk(request: kit.Request) -> kit.Answer:
    app = opened(request)
    with app.open():
        app.check_connection()
        kit.wait_for_start()
        began = kit.now()
        defer_many(app, "noop", request.count)
        return {"began": began, "ended": kit.now(), "jobs": request.count}


def fill(request: kit.Request) -> None:
    app = opened(request)
    with app.open():
        defer_many(app, request.task, request.count)


def deepen(request: kit.Request) -> None:
    import psycopg
    from psycopg import sql

    is_over, is_future = request.case == "history", request.case in ("future", "urgent")
    statement = sql.SQL(DEEPEN).format(
        # Higher numbers go first.
        priority=int(request.case == "urgent"),
        status="succeeded" if is_over else "todo",
        delay="1 day" if is_future else "0",
        attempts=int(is_over),
        count=request.count,
        events=["deferred", *(["started", "succeeded"] if is_over else []), *(["scheduled"] if is_future else [])],
    )
    with psycopg.connect(request.url) as conn:
        conn.execute(statement)


def trickle(request: kit.Request) -> kit.Answer:
    app = opened(request)
    task = app.tasks[request.task]
    with app.open():
        app.check_connection()
        if request.task == "noop":
            return kit.trickle(lambda sent: task.defer(), request)
        return kit.trickle(lambda sent: task.defer(sent=sent), request)


def work(request: kit.Request) -> None:
    asyncio.run(serve(request))


async def serve(request: kit.Request) -> None:
    connector = procrastinate.PsycopgConnector(conninfo=request.url, min_size=1, max_size=POOL)
    app = with_tasks(procrastinate.App(connector=connector))
    async with app.open_async():
        await app.run_worker_async(concurrency=request.slots or CONCURRENCY)


def defer_many(app: procrastinate.App, task: str, count: int) -> None:
    for done in range(0, count, BATCH):
        app.tasks[task].batch_defer(*[{}] * min(BATCH, count - done))


def opened(request: kit.Request) -> procrastinate.App:
    """Return an application for one producer, which needs one connection."""
    connector = procrastinate.SyncPsycopgConnector(conninfo=request.url, min_size=1, max_size=1)
    return with_tasks(procrastinate.App(connector=connector))


def with_tasks(app: procrastinate.App) -> Any:
    @app.task(name="noop")
    async def noop() -> None:
        kit.noop()

    @app.task(name="sleep")
    async def sleep() -> None:
        await kit.nap_async()

    @app.task(name="stamp")
    async def stamp(sent: int) -> None:
        kit.stamp(sent)

    return app


if __name__ == "__main__":
    kit.main(
        {
            "setup": setup,
            "enqueue": enqueue,
            "bulk": bulk,
            "fill": fill,
            "deepen": deepen,
            "work": work,
            "trickle": trickle,
        }
    )
