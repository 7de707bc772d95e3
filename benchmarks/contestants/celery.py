"""Celery, with Redis as its broker.

A worker process runs its tasks one after the other (the solo pool), which is its fastest way for tasks that do nothing;
for many at once it takes threads. A task is acknowledged when it is done (`acks_late`), so that a worker that dies
loses none. 64 messages are prefetched. Results are off, and so is the communication between workers, which costs time.
Many jobs are sent one by one: it has no call for bulk.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from benchmarks.contestants import kit

PREFETCH = 64


def setup(request: kit.Request) -> kit.Answer:
    names = ["celery", "kombu", "redis"]
    server = client(request).info("server")["redis_version"]
    return {"versions": {**{name: importlib.metadata.version(name) for name in names}, "redis-server": server}}


def enqueue(request: kit.Request) -> kit.Answer:
    return kit.produce(application(request).tasks["noop"].delay, request)


def fill(request: kit.Request) -> None:
    task = application(request).tasks[request.task]
    for _ in range(request.count):
        task.delay()


def trickle(request: kit.Request) -> kit.Answer:
    app = application(request)
    app.connection_for_write().ensure_connection()
    task = app.tasks[request.task]
    if request.task == "noop":
        return kit.trickle(lambda sent: task.delay(), request)
    return kit.trickle(task.delay, request)


def work(request: kit.Request) -> None:
    many = request.slots not in (None, 1)
    pool = ["--pool=threads", f"--concurrency={request.slots}"] if many else ["--pool=solo"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    application(request).worker_main(["worker", *pool, *quiet])


def remaining(request: kit.Request) -> kit.Answer:
    redis = client(request)
    # A message that was delivered and not acknowledged has its own place.
    return {"remaining": redis.llen("celery") + redis.hlen("unacked")}


def application(request: kit.Request) -> Any:
    import celery

    app = celery.Celery("contest", broker=request.redis)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        # Times the number of tasks at once.
        worker_prefetch_multiplier=PREFETCH if request.slots in (None, 1) else 1,
        broker_connection_retry_on_startup=True,
    )
    app.task(name="noop")(kit.noop)
    app.task(name="sleep")(kit.nap)
    app.task(name="stamp")(kit.stamp)
    app.finalize()
    return app


def client(request: kit.Request) -> Any:
    import redis

    return redis.Redis.from_url(request.redis)


if __name__ == "__main__":
    kit.main(
        {
            "setup": setup,
            "enqueue": enqueue,
            "fill": fill,
            "work": work,
            "trickle": trickle,
            "remaining": remaining,
        }
    )
