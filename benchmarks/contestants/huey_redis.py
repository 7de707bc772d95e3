"""huey, with its storage in Redis: huey.py, but for one worker thread, which is as fast as several."""

from __future__ import annotations

import importlib.metadata

from benchmarks.contestants import kit
from benchmarks.contestants.huey import VERBS, application


def setup(request: kit.Request) -> kit.Answer:
    names = ["huey", "redis"]
    server = application(request).storage.conn.info("server")["redis_version"]
    return {"versions": {**{name: importlib.metadata.version(name) for name in names}, "redis-server": server}}


def remaining(request: kit.Request) -> kit.Answer:
    app = application(request)
    return {"remaining": app.pending_count() + app.scheduled_count()}


if __name__ == "__main__":
    kit.main({**VERBS, "setup": setup, "remaining": remaining})
