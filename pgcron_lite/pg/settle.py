"""Ending jobs: what became of a claimed job, written by its owner alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from ..job import MAX_ERRORS, Outcome
from .rows import error_text
from .statements import Statements


class Settling(Statements):
    """The verbs that end a claim, and the one that forgets what ended long ago."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Write what became of running jobs. Returns the ids that are as their outcome says; the rest was not ours."""
        # A claim ends once: of two outcomes for it the first counts.
        once = {(o.id, o.claim): o for o in reversed(outcomes)}.values()
        final = sorted((o for o in once if o.state != "queued"), key=lambda o: o.id)
        again = sorted((o for o in once if o.state == "queued"), key=lambda o: o.id)
        settled: set[int] = set()
        if final:
            settled |= self._finish(final)
        if again:
            settled |= self._put_back(again)
        missing = [o for o in final if o.id not in settled]
        if missing:
            settled |= self._settled_before(missing)
        return settled

    def _finish(self, outcomes: Sequence[Outcome]) -> set[int]:
        # The rows are locked in the order of their ids, as everywhere, so that two such statements cannot deadlock.
        rows = self._rows(
            """
            with ended as (
                select *
                from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[], %(results)s::json[],
                            %(errors)s::jsonb[]) as e (id, claim, state, result, error)
            ),
            ours as (
                select j.id
                from pgcron.jobs as j
                join ended as e on e.id = j.id and e.claim = j.claim
                where j.state = 'running'
                order by j.id
                for update of j
            ),
            moved as (
                delete from pgcron.jobs as j
                where j.id = any(array(select id from ours))
                returning j.*
            )
            insert into pgcron.history (
                id, task, queue, priority, state, args, headers, tags, execute_after, attempt, max_attempts, crashes,
                max_crashes, claim, worker, claimed_at, errors, created_at, finished_at, result
            )
            select m.id, m.task, m.queue, m.priority, e.state, m.args, m.headers, m.tags, m.execute_after, m.attempt,
                   m.max_attempts, m.crashes, m.max_crashes, m.claim, m.worker, m.claimed_at,
                   case
                       when e.error is null then m.errors
                       when jsonb_array_length(m.errors) >= %(most)s then (m.errors - 0) || e.error
                       else m.errors || e.error
                   end,
                   m.created_at, pgcron.clock(), e.result
            from moved as m
            -- The claim again: the batch may hold an outcome of an older claim to the same job.
            join ended as e on e.id = m.id and e.claim = m.claim
            returning id
            """,
            {
                "ids": [o.id for o in outcomes],
                "claims": [o.claim for o in outcomes],
                "states": [o.state for o in outcomes],
                "results": [o.result for o in outcomes],
                "errors": [error_text(o) for o in outcomes],
                "most": MAX_ERRORS,
            },
        )
        return {row.id for row in rows}

    def _put_back(self, outcomes: Sequence[Outcome]) -> set[int]:
        rows = self._rows(
            """
            with again as (
                select *
                from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(delays)s::float8[], %(backs)s::smallint[],
                            %(errors)s::jsonb[]) as a (id, claim, delay, back, error)
            ),
            ours as (
                select j.id
                from pgcron.jobs as j
                join again as a on a.id = j.id and a.claim = j.claim
                where j.state = 'running'
                order by j.id
                for update of j
            )
            update pgcron.jobs as j
            set state = 'queued', claim = null, worker = null, claimed_at = null,
                attempt = j.attempt - a.back,
                -- A suspect that came to an end of its own is none any more. A hand-back says nothing about it.
                alone = j.alone and a.back = 1,
                execute_after = case
                    when a.delay is null then j.execute_after
                    -- No interval is made of more than seven thousand years, which would be no date.
                    else least(pgcron.clock() + make_interval(secs => least(a.delay, 2.3e11)), '9000-01-01')
                end,
                errors = case
                    when a.error is null then j.errors
                    when jsonb_array_length(j.errors) >= %(most)s then (j.errors - 0) || a.error
                    else j.errors || a.error
                end
            from again as a
            where j.id = any(array(select id from ours)) and a.id = j.id and a.claim = j.claim
            returning j.id
            """,
            {
                "ids": [o.id for o in outcomes],
                "claims": [o.claim for o in outcomes],
                "delays": [o.delay for o in outcomes],
                "backs": [int(o.gives_back) for o in outcomes],
                "errors": [error_text(o) for o in outcomes],
                "most": MAX_ERRORS,
            },
        )
        return {row.id for row in rows}

    def _settled_before(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Of jobs no longer running under our claim, those that our own earlier write had ended."""
        rows = self._rows(
            """
            select h.id
            from pgcron.history as h
            join unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[]) as o (id, claim, state)
                -- The state too: a reaper that fails a job for killing its workers leaves the last claim on it.
                on o.id = h.id and o.claim = h.claim and o.state = h.state
            """,
            {
                "ids": [o.id for o in outcomes],
                "claims": [o.claim for o in outcomes],
                "states": [o.state for o in outcomes],
            },
        )
        return {row.id for row in rows}

    def prune(self, done_after: timedelta, failed_after: timedelta, limit: int = 1000) -> int:
        """Delete up to `limit` ended jobs that are older than their state is kept. Returns how many went."""
        rows = self._rows(
            """
            -- A branch for each state: in each, the index gives the oldest first and the limit stops it.
            with old as (
                (
                    select h.id
                    from pgcron.history as h
                    where h.state = 'done' and h.finished_at < pgcron.clock() - %(done_after)s
                    order by h.finished_at
                    limit %(limit)s
                )
                union all
                (
                    select h.id
                    from pgcron.history as h
                    where h.state = 'failed' and h.finished_at < pgcron.clock() - %(failed_after)s
                    order by h.finished_at
                    limit %(limit)s
                )
                union all
                (
                    select h.id
                    from pgcron.history as h
                    where h.state = 'cancelled' and h.finished_at < pgcron.clock() - %(failed_after)s
                    order by h.finished_at
                    limit %(limit)s
                )
                limit %(limit)s
            ),
            locked as (
                select h.id from pgcron.history as h where h.id in (select id from old)
                order by h.id
                for update skip locked
            )
            delete from pgcron.history as h using locked as l where h.id = l.id
            returning h.id
            """,
            {"done_after": done_after, "failed_after": failed_after, "limit": limit},
        )
        return len(rows)
