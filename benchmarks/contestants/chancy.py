"""Chancy, on psycopg.

A worker runs 100 coroutines at once in its asyncio executor, the default of that executor, where the default of a queue
would be a process pool. Eager polling fetches again as soon as a job is done, which is what its documentation offers
for queues that always have work; LISTEN and the default plugins are on. It writes completions once a second, so the
last ones of a drain take up to a second to be recorded. Producers use its synchronous calls.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
from typing import Any

import chancy
from chancy.worker import Worker

from benchmarks.contestants import kit

CONCURRENCY = 100

# Its own logger writes at INFO what each worker does.
logger = logging.getLogger("chancy-in-a-contest")

REMAINING = "select count(*) from chancy_jobs where state in ('pending', 'running', 'retrying')"


async def noop() -> None:
    kit.noop()


async def sleep() -> None:
    await kit.nap_async()


async def stamp(sent: int) -> None:
    kit.stamp(sent)


def setup(request: kit.Request) -> kit.Answer:
    async def install() -> None:
        async with application(request) as app:
            await app.migrate()

    asyncio.run(install())
    names = ["chancy", "psycopg"]
    return {"versions": {name: importlib.metadata.version(name) for name in names}, "remaining_sql": REMAINING}


def enqueue(request: kit.Request) -> kit.Answer:
    with application(request) as app:
        return kit.produce(lambda: app.sync_push(job("noop")), request)


def bulk(request: kit.Request) -> kit.Answer:
    with application(request) as app:
        app.sync_pool.wait()
        kit.wait_for_start()
        began = kit.now()
        push_many(app, "noop", request.count)
        return {"began": began, "ended": kit.now(), "jobs": request.count}


def fill(request: kit.Request) -> None:
    with application(request) as app:
        push_many(app, request.task, request.count)


def trickle(request: kit.Request) -> kit.Answer:
    with application(request) as app:
        app.sync_pool.wait()
        if request.task == "noop":
            return kit.trickle(lambda sent: app.sync_push(job("noop")), request)
        return kit.trickle(lambda sent: app.sync_push(job(request.task, sent=sent)), request)


def work(request: kit.Request) -> None:
    asyncio.run(serve(request))


async def serve(request: kit.Request) -> None:
    queue = chancy.Queue(
        "default",
        executor=chancy.Chancy.Executor.Async,
        concurrency=request.slots or CONCURRENCY,
        eager_polling=True,
        polling_interval=1,
    )
    async with application(request) as app:
        await app.declare(queue, upsert=True)
        async with Worker(app) as worker:
            await worker.wait_for_shutdown()


def push_many(app: chancy.Chancy, task: str, count: int) -> None:
    for _ in app.sync_push_many([job(task) for _ in range(count)]):
        pass


def job(task: str, **arguments: Any) -> chancy.Job:
    return chancy.Job(func=f"benchmarks.contestants.chancy.{task}", kwargs=arguments)


def application(request: kit.Request) -> chancy.Chancy:
    return chancy.Chancy(request.url, log=logger)


if __name__ == "__main__":
    kit.main(
        {
            "setup": setup,
            "enqueue": enqueue,
            "bulk": bulk,
            "fill": fill,
            "work": work,
            "trickle": trickle,
        }
    )
