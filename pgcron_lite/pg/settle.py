"""Outcomes of claimed jobs. Only the holder of the claim may write one."""

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

# How often one call replaces ids that are taken.
MAX_TURNS = 5


class Settling(Sequencing):
    """The methods that end a claim, and the one that deletes old history."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Write what became of running jobs. Returns the ids that are as their outcome says; the rest was not ours."""
        with self.pool.take() as connection, self._settling(outcomes, connection) as settled:
            pass
        return settled

    @contextmanager
    def _settling(self, outcomes: Sequence[Outcome], connection: Connection) -> Iterator[set[int]]:
        """`settle`, under way during the block, and finished behind it."""
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
            settled |= self._finish_beside(final, connection)
        if again:
            settled |= self._put_back(again, connection)
        missing = [o for o in final if o.id not in settled]
        if missing:
            settled |= self._settled_before(missing, connection)
        missing = [o for o in again if o.id not in settled and o.error is not None]
        if missing:
            settled |= self._put_back_before(missing, connection)

    @contextmanager
    def _finish(
        self, statement: LiteralString, outcomes: Sequence[Outcome], connection: Connection
    ) -> Iterator[Answer]:
        values = {
            "ids": _words(str(o.id) for o in outcomes),
            "claims": _words(o.claim.hex for o in outcomes),
            "states": _words(o.state for o in outcomes),
            # Most jobs have neither, and what is missing at the end of an array is null.
            "results": [o.result for o in outcomes] if any(o.result is not None for o in outcomes) else [],
            "errors": [error_text(o) for o in outcomes] if any(o.error is not None for o in outcomes) else [],
            "most": MAX_ERRORS,
            "earlier_id": EARLIER_ID,
        }
        with connection.asking(statement, values) as answer:
            yield answer

    def _finish_beside(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        """`_finish` where history has other jobs of the same ids: theirs stay, and ours go under fresh ones."""
        asked = {o.id for o in outcomes}
        answer = self._beside(outcomes, connection)
        # What went under another id says in its headers which one it had.
        settled = {job_id if job_id in asked else int(earlier) for job_id, earlier in answer.rows()}
        with suppress(PgCronError):
            # What has been written is to be reported; a worker tries this again when it connects.
            self._mend_on(connection)
        return settled

    def _beside(self, outcomes: Sequence[Outcome], connection: Connection, turns: int = MAX_TURNS) -> Answer:
        try:
            with self._finish(_FINISH_BESIDE, outcomes, connection) as answer:
                pass
        except IdTaken:
            # Taken since the statement looked.
            if turns == 1:
                raise
            return self._beside(outcomes, connection, turns - 1)
        return answer

    def _put_back(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
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
            -- The state too: a reaper that fails a job for killing its workers leaves the last claim on it.
            select h.id, h.claim is not distinct from o.claim and h.state = o.state as is_ours
            from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[]) as o (id, claim, state)
            cross join lateral (
                -- Fenced off: with the state in sight, the index by age would be searched for each.
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
        return ours | (self._settled_beside([o for o in outcomes if o.id in others], connection) if others else set())

    def _settled_beside(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        """`_settled_before` where history has other jobs of the same ids, so that ours may be under fresh ones."""
        # There is no index of such rows, which nearly nobody has. So only among those that ended within minutes, which
        # is when a write is repeated.
        rows = connection.rows(
            """
            with beside as materialized (
                select h.claim, h.state, h.headers ->> %(earlier_id)s as earlier_id
                from pgcron.history as h
                where h.state = any(%(states)s)
                  and h.finished_at > pgcron.clock() - interval '15 minutes'
                  and h.headers ? %(earlier_id)s
            )
            select o.id
            from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[]) as o (id, claim, state)
            join beside as b on b.claim = o.claim and b.state = o.state and b.earlier_id = o.id::text
            """,
            {
                "ids": [o.id for o in outcomes],
                "claims": [o.claim for o in outcomes],
                "states": [o.state for o in outcomes],
                "earlier_id": EARLIER_ID,
            },
        )
        return {row.id for row in rows}

    def _put_back_before(self, outcomes: Sequence[Outcome], connection: Connection) -> set[int]:
        """Return which jobs no longer running under our claim were queued again by our own earlier write."""
        # That write has taken the claim off. What it leaves behind is the error, whose time makes it the only one.
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


# One row after the other, by its key, and in the order of the arrays: that of the ids, as everywhere, so that two such
# statements cannot deadlock. (A session of ours is planned without joins of whole sets, see `connection`.)
_ENDED: LiteralString = """
    with ended as materialized (
        select *
        from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[], %(results)s::json[],
                    %(errors)s::jsonb[]) as e (id, claim, state, result, error)
    ),
    moved as (
        delete from pgcron.jobs as j
        using ended as e
        -- Nothing about the state, which the claim implies: the index of running jobs would be searched.
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

# An id that is in history already fails the statement; to look for each before would cost all and serve almost nobody.
_FINISH: LiteralString = _ENDED + "select * from moved returning id"  # noqa: S608

# The same for that case.
_FINISH_BESIDE: LiteralString = (
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
    """A claim ends once: of two outcomes for it the first counts."""
    if len({o.id for o in outcomes}) == len(outcomes):
        # As always but after trouble. To hash a token takes longer than all the rest that is done about a job here.
        return outcomes
    return {(o.id, o.claim): o for o in reversed(outcomes)}.values()


def _words(words: Iterable[str]) -> str:
    """Words that need no quotes as PostgreSQL writes an array: a tenth of the work of a list."""
    return "{" + ",".join(words) + "}"
