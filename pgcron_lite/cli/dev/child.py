"""The child process of `pgcron dev`: imports the app, migrates, runs a worker, prints results and hints."""

from __future__ import annotations

import inspect
import logging
import os
import shlex
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from ...app import PgCron
from ...errors import OptionError
from ...serialization.annotations import hints_of
from ...worker import logs
from ...worker.reporting import one_log_line
from .. import FAILED, output
from ..context import chosen, dev_url_file, is_dev_url
from ..enqueue import read_arguments
from ..worker import named_queues, worker_options
from .parent import CALLED_AS, GRACE, READY

if TYPE_CHECKING:
    from ...task import Task

logger = logging.getLogger("pgcron_lite")


@click.command(hidden=True)
@worker_options
@click.option("--run", "call")
@click.pass_context
def dev_worker(
    ctx: click.Context,
    /,
    call: str | None,
    log_format: logs.Format | None,
    log_level: str,
    grace: timedelta | None,
    **how: Any,
) -> None:
    """Run the worker of `pgcron dev`, which starts this command again on each change."""
    from ...worker import exits, process

    ready = os.environ.pop(READY, None)
    app = chosen(ctx).app()
    logs.set_up(log_format, log_level)
    _migrate(app)
    options = {"queues": named_queues(how["queues"]), "slots": how["slots"], "gevent": how["gevent"]}
    if call is not None:
        if log_level == "info":
            # Show what the task itself logs. The worker's lines would repeat what run_one() prints.
            logger.setLevel("CRITICAL")
        exits.leave(run_one(app, call, chosen(ctx).given, grace=grace or GRACE, **options))
    app.on("job_done")(lambda job: _show_result(app, job.id))
    if ready is not None:
        for line in hints(app, chosen(ctx).given):
            output.echo(line, err=True)
        os.write(int(ready), b"!")
    exits.leave(process.run_worker(app, grace=grace or GRACE, **options))


def _migrate(app: PgCron) -> None:
    if app.settings.is_memory:
        return
    from ...pg.migrate import migrate
    from ...pg.url import parse_url

    where = parse_url(app.settings.direct_url or app.settings.url(), application="pgcron migrate")
    for migration in migrate(where, app.settings.schema):
        output.echo(f"applied migration {migration}", err=True)


def _show_result(app: PgCron, job_id: int) -> None:
    job = app.store.get(job_id)
    if job is not None and job.result is not None:
        logger.info("%s#%d returned %s", job.task, job.id, job.result[:500])


def run_one(app: PgCron, call: str, given: str | None, **options: Any) -> int:
    """Enqueue one job, run it in a worker of this process, and print its outcome. Return the exit code."""
    from ...worker import process

    words = shlex.split(call)
    task = app.find_task(words[0])
    args, kwargs = read_arguments(task, words[1:])
    try:
        handle = task.delay(*args, **kwargs)
    except TypeError as error:
        raise OptionError(str(error)) from None
    output.echo(f"{task.name}#{handle.id} enqueued", err=True)
    code = process.run_worker(app, drain=True, fail_fast=True, **options)
    job = handle.job()
    if job.state == "done":
        output.echo(f"{task.name}#{handle.id} done in {output.took(job)}, result:", err=True)
        output.print_json(None if job.result is None else output.decoded(job.result))
    else:
        why = one_log_line(job.error or "it has not ended")
        output.echo(f"{task.name}#{handle.id} is {job.state}: {why}", err=True)
        output.echo(f"See all of it: {_pgcron(given)} jobs show {handle.id}", err=True)
    app.close()
    for line in hints(app, given, after_run=True):
        output.echo(line, err=True)
    return code if job.state == "done" else FAILED


# What to try next

def hints(app: PgCron, given: str | None, after_run: bool = False) -> Iterator[str]:
    """Yield hints what to try next, as commands that can be pasted: each names tasks and files that exist."""
    task = min(app.tasks.values(), key=lambda t: (example(t) is None, t.name.startswith("pgcron")), default=None)
    words = None if task is None else example(task)
    yield ""
    yield "Try next:" if after_run else "Try in another terminal:"
    if after_run:
        yield f"  {_pgcron(given)} dev"
        yield f"  {_pgcron(given)} jobs list"
    elif task is not None and words is not None:
        yield f"  {_pgcron(given)} enqueue {shlex.join([task.name, *words])} --wait"
        yield f"  {_pgcron(given)} jobs list"
    else:
        yield f"  {_pgcron(given)} tasks list"
    url = os.environ.get("DATABASE_URL")
    if url is not None and is_dev_url(url):
        yield "Your own programs find the database by:"
        # Not the URL itself, which has a password: what a terminal shows is copied into bug reports.
        yield f"  export DATABASE_URL=\"$(cat {shlex.quote(str(dev_url_file()))})\""
        yield "The database keeps running when this ends; to stop it:"
        yield f"  {_pgcron(None)} dev --stop"
    yield ""


def _pgcron(given: str | None) -> str:
    program = os.environ.get(CALLED_AS, "pgcron")
    return f"{program} --app {shlex.quote(given)}" if given else program


EXAMPLES: dict[Any, tuple[str, ...]] = {
    int: ("1", "2", "3", "4", "5"),
    float: ("1.5", "2.5", "3.5"),
    str: ("one", "two", "three"),
    bool: ("true", "false"),
    list: ("[1, 2]",),
    dict: ('{"a": 1}',),
    inspect.Parameter.empty: ("1", "2", "3", "4", "5"),
}


def example(task: Task[Any, Any]) -> list[str] | None:
    """Return arguments to try the task with; None if a parameter has a type without an example."""
    hints_given = hints_of(task.function)
    words = []
    for number, parameter in enumerate(inspect.signature(task.function).parameters.values()):
        may_be_many = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is not parameter.empty or may_be_many:
            continue
        choices = EXAMPLES.get(hints_given.get(parameter.name, parameter.empty))
        if choices is None:
            return None
        word = choices[number % len(choices)]
        words.append(f"{parameter.name}={word}" if parameter.kind is parameter.KEYWORD_ONLY else word)
    return words
