"""`pgcron worker`: run jobs until stopped. `pgcron scheduler`: keep the schedules and run no jobs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import click

from ..worker import logs
from .context import chosen
from .types import Span

F = TypeVar("F", bound=Callable[..., Any])


def worker_options(command: F) -> F:
    """Add the options that `pgcron worker` and `pgcron dev` share. Without an option its setting applies."""
    for option in reversed(
        (
            click.option("-q", "--queue", "queues", multiple=True, metavar="NAME[,NAME]",
                         help="Serve this queue; may be repeated. * is every queue. [setting: queues]"),
            click.option("--slots", type=click.IntRange(1), metavar="N",
                         help="How many jobs run at once. [setting: slots]"),
            click.option("--gevent", is_flag=True, envvar="PGCRON_GEVENT",
                         help="Run jobs in greenlets instead of threads; patches before your code is imported."),
            click.option("--grace", type=Span(), metavar="SPAN",
                         help="How long running jobs may take to finish when the worker stops. [setting: grace]"),
            log_options,
        )
    ):
        command = option(command)
    return command


def named_queues(words: tuple[str, ...]) -> str | None:
    """Return the queues of --queue; None if it was not given. An empty NAME is kept, so that it is refused later."""
    return ",".join(words) if words else None


def log_options(command: F) -> F:
    """Add the options for the level and the format of the log."""
    command = click.option("--log-level", type=click.Choice(logs.LEVELS, case_sensitive=False), default="info",
                           envvar="PGCRON_LOG_LEVEL", show_default=True)(command)
    return click.option(
        "--log-format", type=click.Choice(logs.FORMATS), envvar="PGCRON_LOG_FORMAT",
        help="Default: text on a terminal, logfmt elsewhere, nothing if your app has set up logging.",
    )(command)


def end_options(command: F) -> F:
    """Add the options that make a process end by itself."""
    command = click.option("--fail-fast", is_flag=True,
                           help="End with 69 if the database cannot be reached, instead of waiting.")(command)
    return click.option("--max-seconds", type=click.FloatRange(0, min_open=True), metavar="N",
                        help="End after N seconds, as after SIGTERM.")(command)


@click.command()
@worker_options
@click.option("--processes", type=click.IntRange(1, 256), default=1, metavar="N",
              help="Run N worker processes under a supervisor that restarts them.")
@click.option("--drain", is_flag=True, help="End when nothing is due any more.")
@click.option("--no-scheduler", is_flag=True, help="Leave the schedules to other workers, or to pgcron scheduler.")
@end_options
@click.pass_context
def worker(
    ctx: click.Context,
    queues: tuple[str, ...],
    slots: int | None,
    gevent: bool,
    grace: timedelta | None,
    log_format: logs.Format | None,
    log_level: str,
    processes: int,
    drain: bool,
    no_scheduler: bool,
    max_seconds: float | None,
    fail_fast: bool,
) -> None:
    """Run jobs until stopped.

    SIGTERM, SIGHUP or Ctrl-C: claim nothing more, let running jobs finish within the grace, release the rest, exit with
    0. A second Ctrl-C releases all jobs at once and exits with 130.
    """
    from ..worker import exits, process

    app = chosen(ctx).app()
    logs.set_up(log_format, log_level)
    app.settings.url()
    code = process.run_worker(
        app,
        queues=named_queues(queues),
        slots=slots,
        gevent=gevent,
        processes=processes,
        drain=drain,
        max_seconds=max_seconds,
        grace=grace,
        fail_fast=fail_fast,
        scheduler=not no_scheduler,
    )
    exits.leave(code)


@click.command()
@log_options
@end_options
@click.pass_context
def scheduler(
    ctx: click.Context, log_format: logs.Format | None, log_level: str, max_seconds: float | None, fail_fast: bool
) -> None:
    """Keep the schedules, and run no jobs.

    Every worker keeps them too, so this is needed only beside workers with --no-scheduler. Any number of them may run;
    signals and exit codes are those of a worker.
    """
    from ..worker import exits, process

    app = chosen(ctx).app()
    logs.set_up(log_format, log_level)
    app.settings.url()
    exits.leave(process.run_worker(app, jobs=False, max_seconds=max_seconds, fail_fast=fail_fast))
