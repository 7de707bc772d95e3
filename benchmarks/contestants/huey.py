"""huey, with its storage in PostgreSQL.

A consumer has 10 greenlet workers: each takes one task by one statement, so several of them keep the database busy
while one waits for its commit. Results are off, as no task has one. A task is deleted when it is taken: at most once.
huey_redis.py is the same in Redis.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from benchmarks.contestants import kit

# A running task is already deleted, so this does not count it.
REMAINING = "select (select count(*) from huey_task) + (select count(*) from huey_schedule)"


def setup(request: kit.Request) -> kit.Answer:
    application(request).storage.close()
    names = ["huey", "psycopg", "gevent"]
    return {"versions": {name: importlib.metadata.version(name) for name in names}, "remaining_sql": REMAINING}


def enqueue(request: kit.Request) -> kit.Answer:
    return kit.produce(application(request).noop, request)


def fill(request: kit.Request) -> None:
    task = getattr(application(request), request.task)
    for _ in range(request.count):
        task()


def trickle(request: kit.Request) -> kit.Answer:
    app = application(request)
    app.pending_count()
    if request.task == "noop":
        return kit.trickle(lambda sent: app.noop(), request)
    return kit.trickle(app.stamp, request)


def work(request: kit.Request) -> None:
    worker_type = request.options["worker_type"]
    if worker_type == "greenlet":
        # As huey_consumer.py does, before anything else is imported.
        from gevent import monkey

        monkey.patch_all()
    workers = request.slots or request.options["workers"]
    application(request).create_consumer(workers=workers, worker_type=worker_type).run()


def application(request: kit.Request) -> Any:
    """Return the application, with its tasks as attributes."""
    import huey

    if request.redis:
        # The client's own limit is 100 connections, and each worker holds one.
        app = huey.RedisHuey("contest", url=f"{request.redis}?max_connections=200", results=False)
    else:
        app = huey.PostgresHuey("contest", dsn=request.url, results=False)
    app.noop = app.task(name="noop")(kit.noop)
    app.sleep = app.task(name="sleep")(kit.nap)
    app.stamp = app.task(name="stamp")(kit.stamp)
    return app


VERBS: dict[str, kit.Verb] = {
    "setup": setup,
    "enqueue": enqueue,
    "fill": fill,
    "work": work,
    "trickle": trickle,
}

if __name__ == "__main__":
    kit.main(VERBS)
