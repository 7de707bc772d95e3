"""`pgcron health`: is everything as it should be? One line per check, and an exit code for probes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from . import FAILED, output
from .opening import chosen, queue
from .words import Span
from .workers import condition

if TYPE_CHECKING:
    from ..app import Store


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check came to."""

    check: str
    ok: bool
    detail: str


@click.command()
@click.option("--max-age", type=Span(), metavar="SPAN", help="How long a due job may wait, paused queues aside.")
@click.option("-q", "--queue", "queues", multiple=True, metavar="NAME", help="With --max-age: only this queue.")
@output.as_json
@click.pass_context
def health(ctx: click.Context, max_age: timedelta | None, queues: tuple[str, ...], as_json: bool) -> None:
    """Are jobs being run? The exit code tells.

    0 if the database answers, the schema fits, a worker lives and none is stuck; else 1. As for every command it is 69
    if the database cannot be reached, and 78 if the schema does not fit.
    """
    limit = None if max_age is None else max_age.total_seconds()
    with queue(ctx) as store:
        lease = chosen(ctx).app_or_bare().settings.lease.total_seconds()
        findings = list(_findings(store, lease, limit, queues))
    for finding in findings:
        if as_json:
            output.print_json({"check": finding.check, "ok": finding.ok, "detail": finding.detail})
        else:
            word = click.style("ok  ", fg="green") if finding.ok else click.style("FAIL", fg="red", bold=True)
            click.echo(f"{word}  {finding.check:<10} {finding.detail}")
    if not all(finding.ok for finding in findings):
        ctx.exit(FAILED)


def _findings(store: Store, lease: float, limit: float | None, names: tuple[str, ...]) -> Iterator[Finding]:
    yield Finding("database", True, store.describe())
    workers = store.workers()
    conditions = [condition(worker, lease) for worker in workers]
    alive = [w for w, c in zip(workers, conditions, strict=True) if c in ("ok", "stopping")]
    running, slots = sum(w.running for w in alive), sum(w.slots for w in alive)
    busy = f"{output.count(len(alive), 'worker')} alive, {running} of {output.count(slots, 'slot')} busy"
    yield Finding("workers", bool(alive), busy if alive else "no worker is alive; start one with: pgcron worker")
    stuck = [w for w, c in zip(workers, conditions, strict=True) if c == "stuck"]
    where = ", ".join(f"{w.host} pid {w.pid} for {output.span(w.idle_loop)}" for w in stuck)
    yield Finding("loops", not stuck, f"stuck: {where}" if stuck else "none is stuck")
    if limit is not None:
        waiting = [q for q in store.queues() if q.due and not q.paused_at and (not names or q.name in names)]
        oldest = max(waiting, key=lambda q: q.oldest_seconds, default=None)
        age = 0.0 if oldest is None else oldest.oldest_seconds
        waits = "nothing" if oldest is None else f"a job of queue {oldest.name} for {output.span(age)}"
        yield Finding("oldest due", age <= limit, waits)
