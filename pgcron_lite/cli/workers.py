"""`pgcron workers`: who runs jobs now."""

from __future__ import annotations

from datetime import timedelta

import click

from ..job import WorkerView
from . import Nouns, output
from .opening import chosen, queue


@click.group(cls=Nouns)
def workers() -> None:
    """Who runs jobs now."""


@workers.command("list")
@output.as_json
@click.pass_context
def list_workers(ctx: click.Context, as_json: bool) -> None:
    """Every worker that has not left, the silent ones too."""
    with queue(ctx) as store:
        lease = chosen(ctx).app_or_bare().settings.lease.total_seconds()
        now, found = store.now(), store.workers()
    if as_json:
        for worker in found:
            output.print_json(worker_fields(worker, lease))
        return
    if not found:
        click.echo("no workers; start one with: pgcron worker", err=True)
        return
    output.print_table(
        ("WORKER", "STATE", "HOST", "PID", "MODE", "RUNNING", "SLOTS", "STARTED", "LAST BEAT", "QUEUES"),
        [
            (
                str(w.id)[:8], condition(w, lease), w.host, w.pid, w.mode, w.running, w.slots,
                output.ago(w.started_at, now), output.ago(now - timedelta(seconds=w.silent_seconds), now),
                ", ".join(w.queues) or "none, keeps schedules",
            )
            for w in found
        ],
        right="PID, RUNNING, SLOTS",
    )


def condition(worker: WorkerView, lease: float) -> str:
    """`ok`, `stopping`, `silent` (no beat for two leases) or `stuck` (it beats, but its loop stands still)."""
    if worker.silent_seconds > 2 * lease:
        return "silent"
    if worker.idle_loop > 2 * lease:
        return "stuck"
    return "stopping" if worker.stopping else "ok"


def worker_fields(worker: WorkerView, lease: float) -> dict[str, object]:
    """A worker as `--json` has it."""
    return {
        "id": str(worker.id),
        "state": condition(worker, lease),
        "host": worker.host,
        "pid": worker.pid,
        "version": worker.version,
        "mode": worker.mode,
        "queues": list(worker.queues),
        "slots": worker.slots,
        "running": worker.running,
        "started_at": output.iso(worker.started_at),
        "silent_seconds": round(worker.silent_seconds, 3),
        "idle_loop_seconds": round(worker.idle_loop, 3),
    }
