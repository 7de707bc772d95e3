"""`pgcron workers`: the workers and the jobs they run."""

from __future__ import annotations

from datetime import timedelta

import click

from ..job import RUNNING_SHOWN, WorkerView
from . import Nouns, output
from .context import chosen, command, queue


@click.group(cls=Nouns)
def workers() -> None:
    """List the workers and the jobs they run."""


@workers.command("list")
@output.as_json
@click.pass_context
def list_workers(ctx: click.Context, as_json: bool) -> None:
    """List the registered workers, including silent ones."""
    with queue(ctx) as store:
        lease = chosen(ctx).app_or_bare().settings.lease.total_seconds()
        now, found = store.now(), store.workers()
    if as_json:
        for worker in found:
            output.print_json(worker_fields(worker, lease))
        return
    if not found:
        output.echo(f"no workers; start one with: {command('worker')}", err=True)
        return
    output.print_table(
        ("WORKER", "STATE", "HOST", "PID", "MODE", "RUNNING", "SLOTS", "STARTED", "LAST BEAT", "QUEUES", "RUNS NOW"),
        [
            (
                str(w.id)[:8], condition(w, lease), w.host, w.pid, w.mode, w.running, w.slots,
                output.ago(w.started_at, now), output.ago(now - timedelta(seconds=w.silent_seconds), now),
                ", ".join(w.queues) or "none, keeps schedules", _jobs(w),
            )
            for w in found
        ],
        right="PID, RUNNING, SLOTS",
    )


def _jobs(worker: WorkerView) -> str:
    shown = [f"{task}#{job_id}" for job_id, task in worker.jobs]
    # These include prefetched jobs, which have no slot yet.
    return ", ".join([*shown, "…"] if len(shown) == RUNNING_SHOWN else shown) or "nothing"


def condition(worker: WorkerView, lease: float) -> str:
    """Return `ok`, `stopping`, `silent` (no heartbeat for two leases) or `stuck` (heartbeats, but its loop stopped)."""
    if worker.silent_seconds > 2 * lease:
        return "silent"
    if worker.idle_loop > 2 * lease:
        return "stuck"
    return "stopping" if worker.stopping else "ok"


def worker_fields(worker: WorkerView, lease: float) -> dict[str, object]:
    """Return a worker as `--json` prints it."""
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
        "jobs": [{"id": job_id, "task": task} for job_id, task in worker.jobs],
        "started_at": output.iso(worker.started_at),
        "silent_seconds": round(worker.silent_seconds, 3),
        "idle_loop_seconds": round(worker.idle_loop, 3),
    }
