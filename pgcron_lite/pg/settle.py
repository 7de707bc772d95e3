"""Outcomes of claimed jobs, which only the holder of the claim may write, and retention of history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import LiteralString

from ..errors import PgCronError
from ..job import EARLIER_ID, MAX_ERRORS, Outcome
from .connection import Connection
from .errors import IdTaken
from .prepared import Answer
from .rows import error_text
from .sequence import Sequencing

# How many times one call tries to find ids that are free in history.
MAX_TRIES = 5


class Settling(Sequencing):
    """The methods that end a claim, and the one that deletes old history."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Write the outcomes of running jobs. Return the ids of the jobs that now are as their outcome says.

        For all others, the claim was lost before: the outcome is discarded.
        """
        with self.pool.take() as connection, self._settling(outcomes, connection) as settled:
            pass
        return settled

    @contextmanager
    def _settling(self, outcomes: Sequence[Outcome], connection: Connection) -> Iterator[set[int]]:
        """Run `settle` while the block runs; the rest of it, and its result, follow after the block."""
        once = _first_of_each_claim(outcomes)
        final = sorted((o for o in once if o.state != "queued"), key=lambda o: o.id)
        again = sorted((o for o in once if o.state == "queued"), key=lambda o: o.id)
        settled: set[int] = set()
        is_open = True
        try:
            with self._finish(_FINISH, final, connection) if final else nullcontext(Answer()) as answer:
                yield settled
                is_open = False
            settled.update(job_id for job_id, in answer.rows())
        except IdTaken:
            if is_open:
                raise
            settled |= self._finish_under_new_ids(final, connection)
        if again:
            settled |= self._requeue(again, connection)
        missing = [o for o in final if o.id not in settled]
        if missing:
            settled |= self._settled_before(missing, connection)
        missing = [o for o in again if o.id not in settled and o.error is not None]
        if missing:
            settled |= self._requeued_before(missing, connection)

    @contextmanager
    def _finish(
        self, statement: LiteralString, outcomes: Sequence[Outcome], connection: Connection
    ) -> Iterator[Answer]:
        values = {
            "ids": _array(str(o.id) for o in outcomes),
            "claims": _array(o.claim.hex for o in outcomes),
            "states": _array(o.state for o in outcomes),
            # Most jobs have neither. `unnest` fills a shorter array up with nulls.
            "results": [o.result for o in outcomes] if any(o.result is not None for o in outcomes) else [],
            "errors": [error_text(o) for o in outcomes] if any(o.error is not None for o in outcomes) else [],
            "most": MAX_ERRORS,
            "earlier_id": EARLIER_ID,
        }
        with connection.sending(statement, values) as answer:
            yield answer

    def _finish_under_new_ids(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        """Do as `_finish` where history has other jobs with the same ids. Those stay; ours are stored under new ids."""
        asked = {o.id for o in outcomes}
        answer = self._try_new_ids(outcomes, connection)
        # A job that was stored under a new id has its earlier id in its headers.
        settled = {job_id if job_id in asked else int(earlier) for job_id, earlier in answer.rows()}
        with suppress(PgCronError):
            # The outcomes are written, and the caller must learn that. A worker tries this again when it connects.
            self._mend_on(connection)
        return settled

    def _try_new_ids(self, outcomes: Sequence[Outcome], connection: Connection, tries: int = MAX_TRIES) -> Answer:
        try:
            with self._finish(_FINISH_UNDER_NEW_IDS, outcomes, connection) as answer:
                pass
        except IdTaken:
            # Another transaction took one of the new ids after the statement had read history.
            if tries == 1:
                raise
            return self._try_new_ids(outcomes, connection, tries - 1)
        return answer

    def _requeue(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        rows = connection.rows(
            """
            with again as materialized (
                select *
                from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(delays)s::float8[], %(backs)s::smallint[],
                            %(errors)s::jsonb[]) as a (id, claim, delay, back, error)
            )
            update pgcron.jobs as j
            set state = 'queued', claim = null, worker = null, claimed_at = null,
                attempt = j.attempt - a.back,
                -- A suspect that ran to an end is no longer a suspect. One that is handed back has not run, and stays.
                alone = j.alone and a.back = 1,
                execute_after = case
                    when a.delay is null then j.execute_after
                    -- The delay is limited to about seven thousand years: more would give no valid date.
                    else least(pgcron.clock() + make_interval(secs => least(a.delay, 2.3e11)), '9000-01-01')
                end,
                errors = case
                    when a.error is null then j.errors
                    when jsonb_array_length(j.errors) >= %(most)s then (j.errors - 0) || a.error
                    else j.errors || a.error
                end
            from again as a
            where j.id = a.id and j.claim = a.claim
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

    def _settled_before(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        """Return which jobs no longer running under our claim were ended by our own earlier write."""
        rows = connection.rows(
            """
            -- Compare the state too: a job that a reaper failed for killing its workers keeps its last claim.
            select h.id, h.claim is not distinct from o.claim and h.state = o.state as is_ours
            from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[]) as o (id, claim, state)
            cross join lateral (
                -- `offset 0` keeps the condition on the state out of here, or the planner would search the index by
                -- state and age for each job.
                select p.id, p.claim, p.state from pgcron.history as p where p.id = o.id offset 0
            ) as h
            """,
            {
                "ids": [o.id for o in outcomes],
                "claims": [o.claim for o in outcomes],
                "states": [o.state for o in outcomes],
            },
        )
        ours = {row.id for row in rows if row.is_ours}
        others = {row.id for row in rows if not row.is_ours}
        if others:
            ours |= self._settled_under_new_ids([o for o in outcomes if o.id in others], connection)
        return ours

    def _settled_under_new_ids(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        """Do as `_settled_before` where history has other jobs with the same ids, and ours may be under new ones."""
        # Nearly no database has such rows, so there is no index for them. Search only the jobs that ended in the last
        # minutes, because a write is repeated within minutes.
        rows = connection.rows(
            """
            with renumbered as materialized (
                select h.claim, h.state, h.headers ->> %(earlier_id)s as earlier_id
                from pgcron.history as h
                where h.state = any(%(states)s)
                  and h.finished_at > pgcron.clock() - interval '15 minutes'
                  and h.headers ? %(earlier_id)s
            )
            select o.id
            from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[]) as o (id, claim, state)
            join renumbered as r on r.claim = o.claim and r.state = o.state and r.earlier_id = o.id::text
            """,
            {
                "ids": [o.id for o in outcomes],
                "claims": [o.claim for o in outcomes],
                "states": [o.state for o in outcomes],
                "earlier_id": EARLIER_ID,
            },
        )
        return {row.id for row in rows}

    def _requeued_before(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        """Return which jobs no longer running under our claim were queued again by our own earlier write."""
        # That write has removed the claim from the row. It can be recognised by the error, whose time makes it unique.
        rows = connection.rows(
            """
            select o.id
            from unnest(%(ids)s::bigint[], %(errors)s::jsonb[]) as o (id, error)
            where exists (
                      select from pgcron.jobs as j where j.id = o.id and j.errors @> jsonb_build_array(o.error)
                  )
               or exists (
                      select from pgcron.history as h where h.id = o.id and h.errors @> jsonb_build_array(o.error)
                  )
            """,
            {"ids": [o.id for o in outcomes], "errors": [error_text(o) for o in outcomes]},
        )
        return {row.id for row in rows}

    def prune(self, done_after: timedelta, failed_after: timedelta, limit: int = 1000) -> int:
        """Delete up to `limit` ended jobs that are older than the retention of their state. Return their number."""
        rows = self._rows(
            """
            -- One branch for each state: in each, the index returns the oldest first, and the limit ends the scan.
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


# The end of claims.
#
# It must move each finished job from `jobs` to `history` exactly once, and only if the claim is still the caller's: a
# worker that was declared dead may come back after its jobs were given to others, and must change nothing. Both halves
# are one statement, so a job is never in both tables and never in neither. The claim token identifies the owner,
# because attempt numbers repeat: they can be restored.
#
# The rows are deleted one after the other, each by its primary key, in the order of the arrays, which is that of the
# ids. All our statements that wait for several jobs lock them in that order, so two of them cannot deadlock. The plan
# that this needs is a nested loop from `ended` over `jobs_pkey`; our sessions disable sequential scans, hash joins and
# merge joins (see `_LIMITS` in `connection`). tests/pg/test_plans.py checks that fifty outcomes read at most fifty
# rows.
#
# The statement returns the ids that it moved. The caller checks the others: its own earlier write may have been
# committed, if its reply was lost.
#
# What costs too much: a condition on the state, which the claim implies, makes the planner search the index of running
# jobs. A check of each id against history would cost every call and is needed almost never, so `_FINISH` relies on the
# primary key of history: an id that is taken fails the statement, and `_FINISH_UNDER_NEW_IDS` then does it with new
# ids.
_ENDED: LiteralString = """
    with ended as materialized (
        select *
        from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[], %(results)s::json[],
                    %(errors)s::jsonb[]) as e (id, claim, state, result, error)
    ),
    moved as (
        delete from pgcron.jobs as j
        using ended as e
        -- No condition on the state; see above.
        where j.id = e.id and j.claim = e.claim
        returning j.id, j.task, j.queue, j.priority, e.state, j.args, j.headers, j.tags, j.execute_after,
                  j.attempt, j.max_attempts, j.crashes, j.max_crashes, j.claim, j.worker, j.claimed_at,
                  case
                      when e.error is null then j.errors
                      when jsonb_array_length(j.errors) >= %(most)s then (j.errors - 0) || e.error
                      else j.errors || e.error
                  end as errors,
                  j.created_at, pgcron.clock() as finished_at, e.result, j.nonce
    )
    insert into pgcron.history (
        id, task, queue, priority, state, args, headers, tags, execute_after, attempt, max_attempts, crashes,
        max_crashes, claim, worker, claimed_at, errors, created_at, finished_at, result, nonce
    )
"""

_FINISH: LiteralString = _ENDED + "select * from moved returning id"  # noqa: S608

# The variant for ids that other jobs in history have: `into_history` returns a new id for those.
_FINISH_UNDER_NEW_IDS: LiteralString = (
    _ENDED  # noqa: S608
    + """
    select h.history_id, m.task, m.queue, m.priority, m.state, m.args, h.history_headers, m.tags, m.execute_after,
           m.attempt, m.max_attempts, m.crashes, m.max_crashes, m.claim, m.worker, m.claimed_at, m.errors,
           m.created_at, m.finished_at, m.result, m.nonce
    from moved as m
    cross join lateral pgcron.into_history(m.id, m.claim, m.headers) as h
    returning id, headers ->> %(earlier_id)s as earlier_id
    """
)


def _first_of_each_claim(outcomes: Sequence[Outcome]) -> Iterable[Outcome]:
    """Return `outcomes` with the first one of each claim only: a claim ends once."""
    if len({o.id for o in outcomes}) == len(outcomes):
        # The usual case. Hashing the tokens would take longer than everything else that is done for a job here.
        return outcomes
    return {(o.id, o.claim): o for o in reversed(outcomes)}.values()


def _array(words: Iterable[str]) -> str:
    """Return a PostgreSQL array of words that need no quotes. Ten times as fast as passing a list."""
    return "{" + ",".join(words) + "}"
