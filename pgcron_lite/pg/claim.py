"""Claims: due jobs, suspects, and the time until the next job is due."""

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
    """The methods of a worker that needs jobs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._claim_cursor = ClaimCursor()

    def claim(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str], limit: int
    ) -> list[Job]:
        """Claim up to `limit` due jobs under the token `claim`; return them by priority, then due time, then id."""
        with self._claiming(worker, claim, queues, tasks, limit) as claimed:
            pass
        return claimed.jobs()

    @contextmanager
    def _claiming(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str], limit: int
    ) -> Iterator[Claimed]:
        """Run `claim` while the block runs. The jobs are decoded on demand."""
        claimed = Claimed(self._claim_cursor, worker, claim)
        claim_cursor = self._claim_cursor.last if self._claim_cursor.may_continue(limit, self.generation) else {}
        with self._claim(worker, claim, queues, tasks, limit, claim_cursor) as answer:
            yield claimed
        claimed.add(answer, self.generation, from_cursor=bool(claim_cursor))
        if claim_cursor and claimed.count < limit and self._claim_cursor.may_scan_now():
            with self._claim(worker, claim, queues, tasks, limit - claimed.count, {}) as answer:
                pass
            claimed.add(answer, self.generation, from_cursor=False)

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
        """Run the claim while the block runs. The last row of the answer holds only the seconds the server took."""
        # The claim.
        #
        # It must give each due job to one worker at most, highest priority first, then by due time and id, and only
        # jobs of tasks that this worker knows, in queues that are not paused. It never waits for a lock: a job that
        # another transaction holds is skipped. Its cost must depend on the number of jobs it takes and on the number
        # of levels, and not on what else is in the table: a million deferred jobs of a higher priority, or a million
        # waiting ones.
        #
        # A level is a (queue, priority) with waiting jobs. `pgcron.levels()` finds them with one index descent each.
        # Within a level, the index `jobs_waiting` (queue, priority desc, execute_after, id) holds the jobs in the
        # order in which they are claimed, so the first due ones are read and nothing else. A claim that continues
        # from a cursor gets the levels as parameters, each with the last job that was claimed there, and reads from
        # that position; see `claim_cursor` for the reason.
        #
        # Lateral joins are evaluated in the order of their left side: the priorities from high to low. So the outer
        # limit ends the search at the first priorities that fill it. Rows are locked without being claimed only
        # between queues of the same priority, which are merged by due time.
        #
        # The update takes its ids from `any(array(select ...))`, which is evaluated once: it locks the rows, then the
        # update finds them by primary key.
        #
        # The plan: one index scan on `jobs_waiting` for each level that is read, no scan of the whole table, and no
        # sort of more than `limit` jobs for each queue of a priority. tests/pg/test_plans.py checks that ten jobs from
        # two queues cost at most 40 rows behind 200,000 deferred ones, with and without the planner's statistics, and
        # that the cost grows linearly with the number of levels.
        #
        # What failed: `queue = any(...) order by ...` over the whole table sorts all of it. A limit in a subquery of
        # the update itself may be executed twice. Searching all levels again for each priority, in place of grouping
        # them by priority once, took 16 s for 20,000 levels.
        statement: LiteralString = """
            with levels (queue, priority, after, id) as materialized (
                select * from unnest(%(queue)s::text[], %(priority)s::int2[], %(after)s::timestamptz[], %(id)s::int8[])
                union all
                select l.queue, l.priority, '-infinity', 0 from pgcron.levels() as l where %(is_full_scan)s
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
            -- Evaluated last, so it covers the rest of the statement. It does not include the commit and its disk
            -- write.
            select null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
                   extract(epoch from clock_timestamp() - statement_timestamp())::float8
            """
        values = {
            "worker": worker,
            "claim": claim,
            "queues": list(queues),
            "tasks": list(tasks),
            "limit": limit,
            "is_full_scan": not claim_cursor,
            "queue": [queue for queue, _ in claim_cursor],
            "priority": [priority for _, priority in claim_cursor],
            "after": [after for after, _ in claim_cursor.values()],
            "id": [last for _, last in claim_cursor.values()],
        }
        with self.pool.take() as connection, connection.sending(statement, values) as answer:
            yield answer

    def start_over(self) -> None:
        """Make the next claim a full scan, whatever it costs."""
        self._claim_cursor.forget()

    def claim_suspect(
        self, worker: uuid.UUID, claim: uuid.UUID, queues: Sequence[str], tasks: Sequence[str]
    ) -> Job | None:
        """Claim one due suspect: a job that must run with no other job in the process. Return None if none is due."""
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
        """Return the jobs that `worker` holds under `claim`. Used after the reply to a claim was lost."""
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
        """Return the seconds until the next deferred job that this worker can claim is due; None if there is none."""
        # The levels are found as in `claim`; in each, one index descent finds the first job that is not due yet. Jobs
        # that are already due are left out: they are claimed now, or this worker cannot claim them.
        if self._claim_cursor.owes_full_scan:
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
        """Return True if a suspect is due. It waits for a worker that runs nothing else."""
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
    """Result of a claim: the number of jobs, and the jobs, which `jobs()` decodes. Call that once."""

    def __init__(self, claim_cursor: ClaimCursor, worker: uuid.UUID, claim: uuid.UUID) -> None:
        self.count = 0
        self._claim_cursor = claim_cursor
        self._worker = worker
        self._claim = claim
        self._answers: list[tuple[Answer, int, bool]] = []

    def add(self, answer: Answer, generation: int, *, from_cursor: bool) -> None:
        # The last row is no job: it holds the duration of the claim.
        self.count += answer.count - 1
        self._answers.append((answer, generation, from_cursor))

    def jobs(self) -> list[Job]:
        """Decode the jobs, move the cursor behind them, and return them in claim order."""
        jobs: list[Job] = []
        for answer, generation, from_cursor in self._answers:
            more, seconds = self._decoded(answer)
            if from_cursor:
                self._claim_cursor.advance(more)
            else:
                self._claim_cursor.restart(more, seconds, generation)
            jobs += more
        return jobs

    def _decoded(self, answer: Answer) -> tuple[list[Job], float]:
        rows = answer.rows()
        seconds: float = rows.pop()[-1]
        jobs = [as_claimed(row, self._claim, self._worker) for row in rows]
        return sorted(jobs, key=lambda j: (-j.priority, j.execute_after, j.id)), seconds
