"""This project, used as in an application: an app with tasks, `delay`, `map` and the command `pgcron worker`."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

from benchmarks.contestants import kit
from pgcron_lite import PgCron, current_job
from pgcron_lite.schedules.schedule import Schedule, timing_of

app = PgCron("bench")

PGCRON = [sys.executable, "-P", "-m", "pgcron_lite", "--app", "benchmarks.contestants.pgcron:app"]

# The most that `map` puts into one statement here: much more makes the statement itself large.
CHUNK = 10_000


@app.task(name="noop", keep_result=False)
def noop() -> None:
    kit.noop()


@app.task(name="sleep", keep_result=False)
def sleep() -> None:
    kit.nap()


@app.task(name="stamp", keep_result=False)
def stamp(sent: int) -> None:
    kit.stamp(sent)


@app.task(name="tick", keep_result=False)
def tick() -> None:
    assert current_job.tick is not None
    ago = datetime.now(UTC) - current_job.tick
    kit.stamp(kit.now() - ago // timedelta(microseconds=1))


def setup(request: kit.Request) -> kit.Answer:
    subprocess.run([*PGCRON, "migrate"], check=True, stdout=sys.stderr)
    return {
        "versions": {name: version(name) for name in ("pgcron_lite", "psycopg", "gevent")},
        "remaining_sql": "select count(*) from pgcron.jobs",
    }


def enqueue(request: kit.Request) -> kit.Answer:
    return kit.produce(noop.delay, request)


def bulk(request: kit.Request) -> kit.Answer:
    noop.delay()
    kit.wait_for_start()
    began = kit.now()
    for start in range(0, request.count, CHUNK):
        noop.map([()] * min(CHUNK, request.count - start))
    return {"began": began, "ended": kit.now(), "jobs": request.count, "warm_up": 1}


def fill(request: kit.Request) -> None:
    execute(
        """
        insert into pgcron.jobs (task, execute_after)
        select %(task)s, pgcron.clock() from generate_series(1, %(count)s)
        """,
        {"task": request.task, "count": request.count},
    )


def deepen(request: kit.Request) -> None:
    """Insert the other rows of the table by SQL, as `fill` inserts the due ones."""
    if request.case == "history":
        execute(
            """
            insert into pgcron.history (id, task, queue, priority, state, args, headers, tags, execute_after, attempt,
                                        max_attempts, crashes, max_crashes, errors, created_at, finished_at)
            select nextval('pgcron.jobs_id_seq'), 'noop', 'default', 0, 'done', '{}', '{}', '{}', c.now, 1,
                   5, 0, 3, '[]', c.now, c.now
            from generate_series(1, %(count)s) cross join (select pgcron.clock() as now) as c
            """,
            {"count": request.count},
        )
    else:
        execute(
            """
            insert into pgcron.jobs (task, priority, execute_after)
            select 'noop', %(priority)s, c.now + %(delay)s::interval
            from generate_series(1, %(count)s) cross join (select pgcron.clock() as now) as c
            """,
            {
                "count": request.count,
                "priority": 10 if request.case == "urgent" else 0,
                "delay": "0" if request.case == "due" else "1 day",
            },
        )


def schedule(request: kit.Request) -> None:
    """Insert rows, as `app.schedules.add` does one by one."""
    seconds = int(request.every_seconds)
    when = f"* * * * * */{seconds}" if request.case == "same second" else f"every {seconds}s"
    names = [f"schedule {number}" for number in range(request.count)]
    made = [Schedule(name, tick.name, timing_of(when, "UTC", name=name)).dumps() for name in names]
    execute(
        """
        insert into pgcron.schedules (name, origin, app, definition)
        select s.name, 'hand', 'bench', s.definition
        from unnest(%(names)s::text[], %(definitions)s::json[]) as s (name, definition)
        """,
        {"names": names, "definitions": made},
    )


def trickle(request: kit.Request) -> kit.Answer:
    if request.task == "stamp":
        return kit.trickle(stamp.delay, request)
    return kit.trickle(lambda _: noop.delay(), request)


def work(request: kit.Request) -> None:
    words = ["worker", "--log-format", "logfmt", "--log-level", request.options.get("log_level", "warning")]
    if request.slots:
        words += ["--slots", str(request.slots)]
    if request.options.get("gevent"):
        words.append("--gevent")
    os.execv(PGCRON[0], [*PGCRON, *words])


def execute(query: Any, values: dict[str, Any]) -> None:
    import psycopg

    with psycopg.connect(os.environ["PGCRON_DATABASE_URL"], autocommit=True) as conn:
        conn.execute(query, values)


def on_database(verb: kit.Verb) -> kit.Verb:
    def connected(request: kit.Request) -> kit.Answer:
        os.environ["PGCRON_DATABASE_URL"] = request.url
        return verb(request)

    return connected


if __name__ == "__main__":
    verbs = (setup, enqueue, bulk, fill, deepen, schedule, trickle, work)
    kit.main({verb.__name__: on_database(verb) for verb in verbs})
