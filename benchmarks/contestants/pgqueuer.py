"""PgQueuer, over asyncpg or psycopg.

A worker process has two queue managers with a connection each, which fetch 100 jobs at a time: as good as any of
managers x batch in 1 x 100, 2 x 100, 2 x 500, 3 x 500 and 5 x 100, and twice the 5 x 10 of its own benchmark.
Autovacuum is set as its tuning guide says (`pgq autovac`), the loop is uvloop, durability is its default, `durable`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import signal
from collections.abc import AsyncIterator
from typing import Any

from benchmarks.contestants import kit

MANAGERS = 2
BATCH = 100

REMAINING = "select count(*) from pgqueuer where status in ('queued', 'picked')"

# `urgent` is one step above the priority 0 of every other job: the order is by descending priority.
QUEUED = """
    insert into pgqueuer (priority, status, entrypoint, execute_after)
    select %(priority)s, 'queued', 'noop', now() + %(delay)s::interval
    from generate_series(1, %(count)s)
    """
# The log of a job: a row when it is queued and one when it is done, both already counted into the statistics.
FINISHED = """
    insert into pgqueuer_log (job_id, status, priority, entrypoint, created, aggregated)
    select -job, status::pgqueuer_status, 0, 'noop', now() - interval '1 hour', true
    from generate_series(1, %(count)s) as job, unnest(array['queued', 'successful']) as status
    """


def setup(request: kit.Request) -> kit.Answer:
    async def install() -> None:
        async with connected(request) as queries:
            await queries.install()
            await queries.optimize_autovacuum()

    run(install())
    names = ["pgqueuer", "psycopg"] if request.options["driver"] == "psycopg" else ["pgqueuer", "asyncpg", "uvloop"]
    return {"versions": {name: importlib.metadata.version(name) for name in names}, "remaining_sql": REMAINING}


def enqueue(request: kit.Request) -> kit.Answer:
    if request.options["driver"] == "psycopg":
        with connected_in_sync(request) as queries:
            return kit.produce(lambda: queries.enqueue("noop", None), request)

    async def produce() -> kit.Answer:
        async with connected(request) as queries:
            return await kit.produce_async(lambda: queries.enqueue("noop", None), request)

    return run(produce())


def bulk(request: kit.Request) -> kit.Answer:
    async def produce() -> kit.Answer:
        async with connected(request) as queries:
            kit.wait_for_start()
            began = kit.now()
            await enqueue_many(queries, "noop", request.count)
            return {"began": began, "ended": kit.now(), "jobs": request.count}

    return run(produce())


def fill(request: kit.Request) -> None:
    async def produce() -> None:
        async with connected(request) as queries:
            await enqueue_many(queries, request.task, request.count)

    run(produce())


def deepen(request: kit.Request) -> None:
    import psycopg

    delay = "1 day" if request.case in ("future", "urgent") else "0"
    row = {"count": request.count, "priority": int(request.case == "urgent"), "delay": delay}
    with psycopg.connect(request.url) as conn:
        conn.execute(FINISHED if request.case == "history" else QUEUED, row)


def trickle(request: kit.Request) -> kit.Answer:
    async def produce() -> kit.Answer:
        async with connected(request) as queries:
            await queries.queue_size()
            return await kit.trickle_async(lambda sent: queries.enqueue(request.task, b"%d" % sent), request)

    return run(produce())


def work(request: kit.Request) -> None:
    run(serve(request))


async def serve(request: kit.Request) -> None:
    from pgqueuer import PgQueuer
    from pgqueuer.core.qm import QueueManager
    from pgqueuer.models import Job

    async def noop(job: Job) -> None:
        kit.noop()

    async def sleep(job: Job) -> None:
        await kit.nap_async()

    async def stamp(job: Job) -> None:
        kit.stamp(int(job.payload or b""))

    async with contextlib.AsyncExitStack() as stack:
        # One of them also runs the scheduler, as every `pgq run` does.
        workers: list[PgQueuer | QueueManager] = []
        for number in range(MANAGERS):
            queries = await stack.enter_async_context(connected(request))
            workers.append(QueueManager(queries) if number else PgQueuer(queries.driver))
        for worker in workers:
            for name, body in {"noop": noop, "sleep": sleep, "stamp": stamp}.items():
                worker.entrypoint(name)(body)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop, workers)
        await asyncio.gather(*(worker.run(**limits(request.slots)) for worker in workers))


def stop(workers: list[Any]) -> None:
    for worker in workers:
        worker.shutdown.set()


def limits(slots: int | None) -> dict[str, int]:
    """Return the limits of a manager. Without a limit a batch starts as soon as it is fetched."""
    if slots is None:
        return {"batch_size": BATCH}
    share = max(2, slots // MANAGERS)
    return {"batch_size": min(BATCH, share // 2), "max_concurrent_tasks": share}


async def enqueue_many(queries: Any, task: str, count: int) -> None:
    """Enqueue a list of jobs, which is one statement, 10,000 at a time."""
    for done in range(0, count, 10_000):
        size = min(10_000, count - done)
        await queries.enqueue([task] * size, [None] * size, [0] * size)


@contextlib.asynccontextmanager
async def connected(request: kit.Request) -> AsyncIterator[Any]:
    from pgqueuer.queries import Queries

    if request.options["driver"] == "psycopg":
        import psycopg

        async with await psycopg.AsyncConnection.connect(request.url, autocommit=True) as connection:
            yield Queries.from_psycopg_connection(connection)
        return

    import asyncpg

    connection = await asyncpg.connect(request.url)
    try:
        yield Queries.from_asyncpg_connection(connection)
    finally:
        await connection.close()


@contextlib.contextmanager
def connected_in_sync(request: kit.Request) -> Any:
    import psycopg
    from pgqueuer.db import SyncPsycopgDriver
    from pgqueuer.queries import SyncQueries

    with psycopg.connect(request.url, autocommit=True) as connection:
        yield SyncQueries(SyncPsycopgDriver(connection))


def run(coroutine: Any) -> Any:
    import uvloop

    return uvloop.run(coroutine)


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
