"""Ending jobs: what became of a claimed job, written by its owner alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import LiteralString

from ..job import MAX_ERRORS, Outcome
from .link import Link
from .prepared import Answer
from .rows import error_text
from .statements import Statements


class Settling(Statements):
    """The verbs that end a claim, and the one that forgets what ended long ago."""

    def settle(self, outcomes: Sequence[Outcome]) -> set[int]:
        """Write what became of running jobs. Returns the ids that are as their outcome says; the rest was not ours."""
        with self.links.take() as link, self._settling(outcomes, link) as settled:
            pass
        return settled

    @contextmanager
    def _settling(self, outcomes: Sequence[Outcome], link: Link) -> Iterator[set[int]]:
        """`settle`, under way during the block, and finished behind it."""
        once = _first_of_each_claim(outcomes)
        final = sorted((o for o in once if o.state != "queued"), key=lambda o: o.id)
        again = sorted((o for o in once if o.state == "queued"), key=lambda o: o.id)
        settled: set[int] = set()
        with self._finish(final, link) if final else nullcontext(Answer()) as answer:
            yield settled
        settled.update(job_id for job_id, in answer.rows())
        if again:
            settled |= self._put_back(again, link)
        missing = [o for o in final if o.id not in settled]
        if missing:
            settled |= self._settled_before(missing, link)

    @contextmanager
    def _finish(self, outcomes: Sequence[Outcome], link: Link) -> Iterator[Answer]:
        # One row after the other, by its key, and in the order of the arrays: that of the ids, as everywhere, so that
        # two such statements cannot deadlock. (A session of ours is planned without joins of whole sets, see `link`.)
        statement: LiteralString = """
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
                          j.created_at, pgcron.clock() as finished_at, e.result
            )
            insert into pgcron.history (
                id, task, queue, priority, state, args, headers, tags, execute_after, attempt, max_attempts, crashes,
                max_crashes, claim, worker, claimed_at, errors, created_at, finished_at, result
            )
            select * from moved
            returning id
            """
        values = {
            "ids": _words(str(o.id) for o in outcomes),
            "claims": _words(o.claim.hex for o in outcomes),
            "states": _words(o.state for o in outcomes),
            # Most jobs have neither, and what is missing at the end of an array is null.
            "results": [o.result for o in outcomes] if any(o.result is not None for o in outcomes) else [],
            "errors": [error_text(o) for o in outcomes] if any(o.error is not None for o in outcomes) else [],
            "most": MAX_ERRORS,
        }
        with link.asking(statement, values) as answer:
            yield answer

    def _put_back(self, outcomes: Sequence[Outcome], link: Link) -> set[int]:
        rows = link.rows(
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

    def _settled_before(self, outcomes: Sequence[Outcome], link: Link) -> set[int]:
        """Of jobs no longer running under our claim, those that our own earlier write had ended."""
        rows = link.rows(
            """
            select h.id
            from unnest(%(ids)s::bigint[], %(claims)s::uuid[], %(states)s::text[]) as o (id, claim, state)
            cross join lateral (
                -- Fenced off: with the state in sight, the index by age would be searched for each.
                select p.id, p.claim, p.state from pgcron.history as p where p.id = o.id offset 0
            ) as h
            -- The state too: a reaper that fails a job for killing its workers leaves the last claim on it.
            where h.claim = o.claim and h.state = o.state
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


def _first_of_each_claim(outcomes: Sequence[Outcome]) -> Iterable[Outcome]:
    """A claim ends once: of two outcomes for it the first counts."""
    if len({o.id for o in outcomes}) == len(outcomes):
        # As always but after trouble. To hash a token takes longer than all the rest that is done about a job here.
        return outcomes
    return {(o.id, o.claim): o for o in reversed(outcomes)}.values()


def _words(words: Iterable[str]) -> str:
    """Words that need no quotes as PostgreSQL writes an array: a tenth of the work of a list."""
    return "{" + ",".join(words) + "}"
