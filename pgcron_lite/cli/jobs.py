"""`pgcron jobs list` and `show`: look at jobs. What can be done to them is in `deeds`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..job import Job
from . import FAILED, Nouns, output
from .opening import chosen, queue
from .words import JobId, Span

if TYPE_CHECKING:
    from ..app import Store
    from ..config import Settings

F = TypeVar("F", bound=Callable[..., Any])

STATES = ("queued", "running", "done", "failed", "cancelled")
PAGE = 500


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs are meant."""

    states: tuple[str, ...] = ()
    task: str | None = None
    queue: str | None = None
    tag: str | None = None
    since: timedelta | None = None

    def __bool__(self) -> bool:
        return bool(self.states or self.task or self.queue or self.tag or self.since)

    def find(self, store: Store, most: int | None) -> Iterator[Job]:
        """The jobs that fit, newest first, fetched page by page."""
        before, left = None, most
        while left is None or left > 0:
            page = store.find(
                states=self.states, task=self.task, queue=self.queue, tag=self.tag, since=self.since, before=before,
                limit=PAGE if left is None else min(PAGE, left),
            )
            yield from page
            if not page:
                return
            before, left = page[-1].id, None if left is None else left - len(page)


def filtered(command: F) -> F:
    """The options that choose jobs."""
    for option in reversed(
        (
            click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="May be repeated."),
            click.option("--task", metavar="NAME"),
            click.option("-q", "--queue", metavar="NAME"),
            click.option("--tag", metavar="WORD"),
            click.option("--since", type=Span(), metavar="SPAN", help="Enqueued within the last 30m, 2h, 7d."),
        )
    ):
        command = option(command)
    return command


def filter_of(
    states: tuple[str, ...], task: str | None, queue: str | None, tag: str | None, since: timedelta | None
) -> Filter:
    """What the options of `filtered` say."""
    return Filter(states, task, queue, tag, since)


@click.group(cls=Nouns, lazily={verb: f"deeds:{verb}" for verb in ("retry", "cancel", "delete")})
def jobs() -> None:
    """Look at jobs; retry, cancel and delete them."""


@jobs.command("list")
@filtered
@click.option("-n", "--limit", type=click.IntRange(1), default=50, show_default=True, metavar="N")
@output.as_json
@click.pass_context
def list_jobs(ctx: click.Context, /, limit: int, as_json: bool, **chosen_by: Any) -> None:
    """The newest jobs, live and ended."""
    wanted = filter_of(**chosen_by)
    with queue(ctx) as store:
        now, found = store.now(), list(wanted.find(store, limit))
    if as_json:
        for job in found:
            output.print_json(output.job_fields(job))
        return
    if not found:
        click.echo("no such jobs" if wanted else "no jobs yet", err=True)
        return
    output.print_table(
        ("ID", "STATE", "TASK", "QUEUE", "ATTEMPT", "ENQUEUED", "NOTE"),
        [
            (
                j.id, j.state, j.task, j.queue, f"{j.attempt}/{j.max_attempts}", output.ago(j.created_at, now),
                _note(j, now),
            )
            for j in found
        ],
        right="ID, ATTEMPT",
    )
    if len(found) == limit:
        click.echo(f"(the newest {limit}; --limit shows more)", err=True)


def _note(job: Job, now: datetime) -> str:
    """What matters about a job in a few words."""
    last = (job.error or "").partition("\n")[0]
    if job.state == "running":
        return f"for {output.span(now - job.claimed_at)}" if job.claimed_at else ""
    if job.state == "done":
        return f"took {output.took(job)}"
    if job.state == "queued":
        when = "due" if job.execute_after <= now else f"in {output.span(job.execute_after - now)}"
        return f"{when}, after {last}" if last else when
    return last


@jobs.command()
@click.argument("ids", nargs=-1, required=True, type=JobId(), metavar="ID...")
@output.as_json
@click.pass_context
def show(ctx: click.Context, ids: Sequence[int], as_json: bool) -> None:
    """All about a job: arguments, times, errors, what is next."""
    missing = False
    with queue(ctx) as store:
        settings = chosen(ctx).app_or_bare().settings
        for number, job_id in enumerate(ids):
            job = store.get(job_id)
            if job is None:
                missing = True
                click.echo(f"there is no job #{job_id}: it was deleted, or its history was pruned", err=True)
            elif as_json:
                output.print_json(output.job_fields(job))
            else:
                if number:
                    click.echo()
                _show(job, store, settings)
    if missing:
        ctx.exit(FAILED)


def _show(job: Job, store: Store, settings: Settings) -> None:
    now = store.now()
    click.echo(click.style(output.line(f"{job.task}#{job.id}"), bold=True) + f"  {output.state(job.state)}")
    rows: list[tuple[str, str | None]] = [
        ("next", _next(job, store, settings, now)),
        ("arguments", job.args),
        ("result", job.result),
        ("queue", f"{job.queue}, priority {job.priority}"),
        ("tags", ", ".join(job.tags) or None),
        ("headers", ", ".join(f"{name}={text}" for name, text in job.headers.items()) or None),
        ("attempt", f"{job.attempt} of {job.max_attempts}"),
        ("crashes", f"{job.crashes} of {job.max_crashes}" if job.crashes else None),
        ("enqueued", _moment(job.created_at, now)),
        ("due", _moment(job.execute_after, now)),
        ("started", _moment(job.claimed_at, now)),
        ("ended", _moment(job.finished_at, now)),
        ("took", output.took(job) if job.finished_at and job.claimed_at else None),
    ]
    for name, text in rows:
        if text is not None:
            click.echo(f"  {click.style(f'{name:<10}', dim=True)} {output.line(text)}")
    for error in job.errors:
        _show_error(error)


def _show_error(error: Any) -> None:
    at = str(error.get("at", ""))[:19].replace("T", " ")
    number = click.style(f"attempt {error.get('attempt', '?')}", fg="red")
    click.echo(f"\n  {number}  {output.line(at)} UTC")
    click.echo(output.block(str(error.get("error", "")), "    "))
    if error.get("traceback"):
        click.echo(click.style(output.block(str(error["traceback"]), "      "), dim=True))


def _moment(value: datetime | None, now: datetime) -> str | None:
    if value is None:
        return None
    words = f"in {output.span(value - now)}" if value > now else output.ago(value, now)
    return f"{str(output.iso(value))[:19].replace('T', ' ')} UTC  ({words})"


def _next(job: Job, store: Store, settings: Settings, now: datetime) -> str:
    """What will happen to the job if nobody does anything."""
    if job.state == "running":
        worker = next((w for w in store.workers() if w.id == job.worker), None)
        where = f"{worker.host} pid {worker.pid}" if worker else "a worker that is gone; another will rescue it"
        since = output.span(now - job.claimed_at) if job.claimed_at else "?"
        return f"runs for {since} on {where}"
    if job.state == "queued":
        return _waits_for(job, store, now)
    keep = settings.keep_done if job.state == "done" else settings.keep_failed
    assert job.finished_at is not None
    gone = f"leaves the history {_in(job.finished_at + keep - now)}"
    return gone if job.state == "done" else f"{gone}; to run it again: pgcron jobs retry {job.id}"


def _waits_for(job: Job, store: Store, now: datetime) -> str:
    if any(q.name == job.queue and q.paused_at for q in store.queues()):
        return f"waits until the queue is resumed: pgcron queues resume {job.queue}"
    if job.execute_after > now:
        return f"attempt {job.attempt + 1} of {job.max_attempts} {_in(job.execute_after - now)}"
    if not any(job.queue in w.queues or "*" in w.queues for w in store.workers() if not w.stopping):
        return f"due; no worker serves the queue {job.queue!r}. Start one: pgcron worker"
    return "due; it waits for a quiet moment to run alone" if job.alone else "due; it waits for a free slot"


def _in(span: timedelta) -> str:
    return "soon" if span <= timedelta(0) else f"in {output.span(span)}"
