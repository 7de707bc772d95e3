"""Taking jobs: the claim, the suspects, and how long until there is something to take."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, LiteralString

from ..job import Job
from .claim_cursor import ClaimCursor, Level
from .pool import Statements
from .prepared import Answer
from .rows import as_claimed, as_job


class Claiming(Statements):
    """The verbs of a worker that looks for work."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._claim_cursor = ClaimCursor()

    def claim(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str], limit: int
    ) -> list[Job]:
        """Take up to `limit` due jobs under the token `claim`, best first."""
        with self._claiming(worker, claim, queues, tasks, limit) as claimed:
            pass
        return claimed.jobs()

    @contextmanager
    def _claiming(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str], limit: int
    ) -> Iterator[Claimed]:
        """`claim`, under way during the block. The jobs are decoded on demand."""
        claimed = Claimed(self._claim_cursor, worker, claim)
        claim_cursor = self._claim_cursor.last if self._claim_cursor.hold(limit, self.generation) else {}
        with self._claim(worker, claim, queues, tasks, limit, claim_cursor) as answer:
            yield claimed
        claimed.add(answer, self.generation, at_marks=bool(claim_cursor))
        if claim_cursor and claimed.count < limit and self._claim_cursor.fall_short():
            with self._claim(worker, claim, queues, tasks, limit - claimed.count, {}) as answer:
                pass
            claimed.add(answer, self.generation, at_marks=False)

    @contextmanager
    def _claim(
        self,
        worker: uuid.UUID,
        claim: uuid.UUID,
        queues: Sequence[str],
        tasks: Sequence[str],
        limit: int,
        claim_cursor: Mapping[Level, tuple[datetime, int]],
    ) -> Iterator[Answer]:
        """The jobs, and behind them how many seconds the server took."""
        # Below each level, a (queue, priority), the due jobs come in index order whatever else lies in the table;
        # "queue = any(...)" with an order by would sort all of it. The lateral joins are evaluated in the order of
        # their left side, so the outer limit stops at the first priorities that fill it, and no row is locked in
        # vain but between queues of one priority. The levels are grouped by priority once: to search all of them again
        # for each priority took 16 s for 20,000.
        # `any(array(...))` locks first and updates by id: a limit inside the update's own sub-select may run twice.
        statement: LiteralString = """
            with levels (queue, priority, after, id) as materialized (
                select * from unnest(%(queue)s::text[], %(priority)s::int2[], %(after)s::timestamptz[], %(id)s::int8[])
                union all
                select l.queue, l.priority, '-infinity', 0 from pgcron.levels() as l where %(from_the_beginning)s
            ),
            open_levels as materialized (
                select l.queue, l.priority, l.after, l.id
                from levels as l
                where (l.queue = any(%(queues)s::text[]) or '*' = any(%(queues)s::text[]))
                  and not exists (select from pgcron.queues as q where q.name = l.queue and q.paused_at is not null)
            ),
            due as (
                select best.id
                from (
                    select l.priority, array_agg(l.queue) as queues, array_agg(l.after) as afters,
                           array_agg(l.id) as ids
                    from open_levels as l
                    group by l.priority
                    order by l.priority desc
                ) as p
                cross join lateral (
                    select waiting.id
                    from unnest(p.queues, p.afters, p.ids) as l (queue, after, id)
                    cross join lateral (
                        select j.id, j.execute_after
                        from pgcron.jobs as j
                        where j.state = 'queued' and not j.alone
                          and j.queue = l.queue and j.priority = p.priority
                          and (j.execute_after, j.id) > (l.after, l.id)
                          and j.execute_after <= pgcron.clock()
                          and j.task = any(%(tasks)s::text[])
                        order by j.execute_after, j.id
                        limit %(limit)s
                        for update skip locked
                    ) as waiting
                    order by waiting.execute_after, waiting.id
                ) as best
                limit %(limit)s
            ),
            taken as (
                update pgcron.jobs as j
                set state = 'running', claim = %(claim)s, worker = %(worker)s, claimed_at = pgcron.clock(),
                    attempt = j.attempt + 1
                where j.id = any(array(select id from due))
                returning j.id, j.task, j.queue, j.priority, j.args::text as args, nullif(j.headers, '{}') as headers,
                          nullif(j.tags, '{}') as tags, j.execute_after, j.attempt, j.max_attempts, j.crashes,
                          j.max_crashes, j.alone, j.created_at, j.claimed_at, nullif(j.errors, '[]') as errors
            )
            select t.*, null::float8 as seconds from taken as t
            union all
            -- Last, when all the rest is done: the commit, and what the disk takes for it, are not in it.
            select null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
                   extract(epoch from clock_timestamp() - statement_timestamp())::float8
            """
        values = {
            "worker": worker,
            "claim": claim,
            "queues": list(queues),
            "tasks": list(tasks),
            "limit": limit,
            "from_the_beginning": not claim_cursor,
            "queue": [queue for queue, _ in claim_cursor],
            "priority": [priority for _, priority in claim_cursor],
            "after": [after for after, _ in claim_cursor.values()],
            "id": [last for _, last in claim_cursor.values()],
        }
        with self.pool.take() as connection, connection.asking(statement, values) as answer:
            yield answer

    def start_over(self) -> None:
        """The next claim looks from the beginning, however dear that is."""
        self._claim_cursor.forget()

    def claim_suspect(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str]
    ) -> Job | None:
        """Take one due job that must run with no neighbours."""
        rows = self._rows(
            """
            update pgcron.jobs as j
            set state = 'running', claim = %(claim)s, worker = %(worker)s, claimed_at = pgcron.clock(),
                attempt = j.attempt + 1
            where j.id = any(array(
                select s.id
                from pgcron.jobs as s
                where s.state = 'queued' and s.alone
                  and s.execute_after <= pgcron.clock()
                  and (s.queue = any(%(queues)s) or '*' = any(%(queues)s))
                  and not exists (select from pgcron.queues as q where q.name = s.queue and q.paused_at is not null)
                  and s.task = any(%(tasks)s)
                order by s.execute_after, s.id
                limit 1
                for update skip locked
            ))
            returning j.id, j.task, j.queue, j.priority, j.state, j.args::text as args, j.headers, j.tags,
                      j.execute_after, j.attempt, j.max_attempts, j.crashes, j.max_crashes, j.alone, j.claim,
                      j.worker, j.created_at, j.claimed_at, j.errors
            """,
            {"worker": worker, "claim": claim, "queues": list(queues), "tasks": list(tasks)},
        )
        return as_job(rows[0]) if rows else None

    def held(self, worker: uuid.UUID, claim: uuid.UUID) -> list[Job]:
        """What `worker` holds under `claim`: asked after the reply to a claim was lost."""
        rows = self._rows(
            """
            select j.id, j.task, j.queue, j.priority, j.state, j.args::text as args, j.headers, j.tags,
                   j.execute_after, j.attempt, j.max_attempts, j.crashes, j.max_crashes, j.alone, j.claim,
                   j.worker, j.created_at, j.claimed_at, j.errors
            from pgcron.jobs as j
            where j.state = 'running' and j.worker = %(worker)s and j.claim = %(claim)s
            order by j.priority desc, j.execute_after, j.id
            """,
            {"worker": worker, "claim": claim},
        )
        return [as_job(row) for row in rows]

    def next_due(self, queues: Sequence[str], tasks: Sequence[str]) -> float | None:
        """Seconds until the next deferred job this worker could take is due; None if there is none."""
        # The walk over levels as in `claim`; below each, one descent to the first job that is not due yet. Jobs due
        # already are left out: they are claimed now, or are not ours to claim.
        if self._claim_cursor.owe_a_look:
            return self._claim_cursor.pause
        rows = self._rows(
            """
            with upcoming (execute_after) as (
                select first.execute_after
                from pgcron.levels() as l
                cross join lateral (
                    select j.execute_after
                    from pgcron.jobs as j
                    where j.state = 'queued' and not j.alone
                      and j.queue = l.queue and j.priority = l.priority
                      and j.execute_after > pgcron.clock()
                      and j.task = any(%(tasks)s)
                    order by j.execute_after
                    limit 1
                ) as first
                where l.queue = any(%(queues)s) or '*' = any(%(queues)s)
                union all
                select min(j.execute_after)
                from pgcron.jobs as j
                where j.state = 'queued' and j.alone and j.execute_after > pgcron.clock()
            )
            select extract(epoch from min(execute_after) - pgcron.clock())::float8 as seconds from upcoming
            """,
            {"queues": list(queues), "tasks": list(tasks)},
        )
        seconds = rows[0].seconds
        return None if seconds is None else max(0.0, float(seconds))

    def suspects_due(self, queues: Sequence[str], tasks: Sequence[str]) -> bool:
        """Is there a job due that waits for a worker with nothing else to do?"""
        rows = self._rows(
            """
            select exists (
                select from pgcron.jobs as j
                where j.state = 'queued' and j.alone
                  and j.execute_after <= pgcron.clock()
                  and (j.queue = any(%(queues)s) or '*' = any(%(queues)s))
                  and not exists (select from pgcron.queues as q where q.name = j.queue and q.paused_at is not null)
                  and j.task = any(%(tasks)s)
            ) as due
            """,
            {"queues": list(queues), "tasks": list(tasks)},
        )
        return bool(rows[0].due)


class Claimed:
    """What a claim has brought: how many jobs, and the jobs, which are decoded once, when they are asked for."""

    def __init__(self, claim_cursor: ClaimCursor, worker: uuid.UUID, claim: uuid.UUID) -> None:
        self.count = 0
        self._claim_cursor = claim_cursor
        self._worker = worker
        self._claim = claim
        self._answers: list[tuple[Answer, int, bool]] = []

    def add(self, answer: Answer, generation: int, *, at_marks: bool) -> None:
        # The last row says what the claim has cost.
        self.count += answer.count - 1
        self._answers.append((answer, generation, at_marks))

    def jobs(self) -> list[Job]:
        """Best first."""
        jobs: list[Job] = []
        for answer, generation, at_marks in self._answers:
            more, seconds = self._decoded(answer)
            if at_marks:
                self._claim_cursor.advance(more)
            else:
                self._claim_cursor.begin(more, seconds, generation)
            jobs += more
        return jobs

    def _decoded(self, answer: Answer) -> tuple[list[Job], float]:
        rows = answer.rows()
        seconds: float = rows.pop()[-1]
        jobs = [as_claimed(row, self._claim, self._worker) for row in rows]
        return sorted(jobs, key=lambda j: (-j.priority, j.execute_after, j.id)), seconds
