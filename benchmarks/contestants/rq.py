"""RQ, which keeps its jobs in Redis.

The worker is its SimpleWorker, which runs a job in its own process: the default one forks for each job and does a third
of that. It runs one job at a time. Results are dropped (`result_ttl=0`), as no job has one.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import redis
import rq

from benchmarks.contestants import kit

TASKS: dict[str, Callable[..., object]] = {"noop": kit.noop, "sleep": kit.nap, "stamp": kit.stamp}
BATCH = 1_000


def setup(request: kit.Request) -> kit.Answer:
    server = opened(request).connection.info("server")["redis_version"]
    return {
        "versions": {**{name: importlib.metadata.version(name) for name in ["rq", "redis"]}, "redis-server": server}
    }


def enqueue(request: kit.Request) -> kit.Answer:
    queue = opened(request)
    return kit.produce(lambda: queue.enqueue(kit.noop, result_ttl=0), request)


def bulk(request: kit.Request) -> kit.Answer:
    queue = opened(request)
    queue.connection.ping()
    kit.wait_for_start()
    began = kit.now()
    enqueue_many(queue, "noop", request.count)
    return {"began": began, "ended": kit.now(), "jobs": request.count}


def fill(request: kit.Request) -> None:
    enqueue_many(opened(request), request.task, request.count)


def trickle(request: kit.Request) -> kit.Answer:
    queue = opened(request)
    queue.connection.ping()
    task = TASKS[request.task]
    if request.task == "noop":
        return kit.trickle(lambda sent: queue.enqueue(task, result_ttl=0), request)
    return kit.trickle(lambda sent: queue.enqueue(task, sent, result_ttl=0), request)


def work(request: kit.Request) -> kit.Answer:
    if request.slots not in (None, 1):
        return {"unsupported": "a worker runs one job at a time"}
    queue = opened(request)
    rq.SimpleWorker([queue], connection=queue.connection).work(logging_level="WARNING")
    return None


def remaining(request: kit.Request) -> kit.Answer:
    queue = opened(request)
    return {"remaining": queue.count + queue.started_job_registry.count + queue.scheduled_job_registry.count}


def enqueue_many(queue: rq.Queue, task: str, count: int) -> None:
    """Enqueue by `enqueue_many`, which sends its jobs to Redis in one pipeline."""
    for done in range(0, count, BATCH):
        size = min(BATCH, count - done)
        queue.enqueue_many([rq.Queue.prepare_data(TASKS[task], result_ttl=0) for _ in range(size)])


def opened(request: kit.Request) -> rq.Queue:
    return rq.Queue("contest", connection=redis.Redis.from_url(request.redis))


if __name__ == "__main__":
    kit.main(
        {
            "setup": setup,
            "enqueue": enqueue,
            "bulk": bulk,
            "fill": fill,
            "work": work,
            "trickle": trickle,
            "remaining": remaining,
        }
    )
