"""`pgcron enqueue`: enqueue one call of a task, and with --wait print its result."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from ..errors import JobEnded, OptionError, PayloadError, PgCronError, WaitTimeout
from ..hints import near_miss
from ..serialization import json_codec
from ..serialization.annotations import hints_of
from . import FAILED, Refusal, output
from .context import Chosen, chosen
from .types import Span

if TYPE_CHECKING:
    from ..task import Task

KEYWORD = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)


class WithNumbers(click.Command):
    """A command that accepts negative numbers as arguments, which click reads as options."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A leading space keeps click from reading the number as an option; JSON ignores it. Other options, and the
        # words after `--`, stay unchanged.
        end = args.index("--") if "--" in args else len(args)
        begin = [f" {word}" if re.match(r"-\.?\d", word) else word for word in args[:end]]
        return super().parse_args(ctx, [*begin, *args[end:]])


def complete_task(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of the app's tasks that begin with `incomplete`. Needs no database."""
    try:
        given = ctx.find_root().params.get("app")
        tasks = Chosen(given).app().tasks
    except PgCronError:
        return []
    return [CompletionItem(name) for name in sorted(tasks) if name.startswith(incomplete)]


@click.command(cls=WithNumbers)
@click.argument("task", shell_complete=complete_task)
@click.argument("arguments", nargs=-1, metavar="[ARG | KEY=VALUE]...")
@click.option("--json", "as_json", metavar="TEXT",
              help="All arguments as a JSON object (by name) or array (by position).")
@click.option("--in", "after", type=Span(), metavar="SPAN", help="Run it after this time: 90s, 10m, 2h, 1d.")
@click.option("--at", metavar="TIME", help="Run it at a time with a zone: 2026-03-01T09:00+01:00.")
@click.option("-q", "--queue", metavar="NAME", help="Another queue than the task's own.")
@click.option("--priority", type=int, metavar="N",
              help="Another priority than the task's own, from -100 to 100; higher is earlier.")
@click.option("--tag", "tags", multiple=True, metavar="WORD", help="Mark the job; may be repeated.")
@click.option("--wait", is_flag=True, help="Wait for the job and print its result; exit with 1 if it fails.")
@click.option("--timeout", type=Span(), metavar="SPAN", help="With --wait: wait at most this long. The job goes on.")
@click.pass_context
def enqueue(
    ctx: click.Context,
    task: str,
    arguments: tuple[str, ...],
    as_json: str | None,
    after: timedelta | None,
    at: str | None,
    queue: str | None,
    priority: int | None,
    tags: tuple[str, ...],
    wait: bool,
    timeout: timedelta | None,
) -> None:
    """Enqueue one call of TASK, checked as in your code.

    An ARG is read as JSON if it is JSON, else as text: `pgcron enqueue mail.send ada@example.org copies=2`. For a
    parameter annotated as str it is always text.
    """
    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    seconds = None if timeout is None else timeout.total_seconds()
    app = chosen(ctx).app()
    found = app.find_task(task)
    try:
        args, kwargs = read_arguments(found, arguments, as_json)
        called = found.options(execute_after=_due(after, at), queue=queue, priority=priority, tags=tags)
        if app.settings.is_memory:
            raise OptionError("memory:// keeps the queue inside the process that uses it; no worker would see this job")
        app.store.check_schema()
        try:
            handle = called.delay(*args, **kwargs)
        except TypeError as error:
            raise OptionError(str(error)) from None
        name = f"{found.name}#{handle.id}"
        if not wait:
            output.echo(name)
            return
        output.echo(f"{name} enqueued, waiting for it", err=True)
        wait_for(handle, name, seconds)
    finally:
        app.close()


def wait_for(handle: Any, name: str, seconds: float | None) -> None:
    """Wait for a job and print its result. Raise `Refusal` if it fails, is cancelled, or does not end in time."""
    try:
        handle.result(seconds)
    except (JobEnded, WaitTimeout) as error:
        raise Refusal(f"{error}. See: pgcron jobs show {handle.id}", FAILED) from None
    job = handle.job()
    output.echo(f"{name} done in {output.took(job)}", err=True)
    output.print_json(None if job.result is None else output.decoded(job.result))


def _due(after: timedelta | None, at: str | None) -> timedelta | datetime | None:
    if after is not None and at is not None:
        raise click.UsageError("--in and --at exclude one another")
    if after is not None:
        return after
    if at is None:
        return None
    try:
        moment_given = datetime.fromisoformat(at)
    except ValueError:
        raise click.UsageError(f"--at {at!r} is not a time such as 2026-03-01T09:00+01:00") from None
    if moment_given.utcoffset() is None:
        raise click.UsageError(f"--at {at!r} has no time zone; write {at}Z for UTC, or its offset: {at}+01:00")
    return moment_given


# From words to arguments

def read_arguments(
    task: Task[..., Any], words: Sequence[str], as_json: str | None = None, option: str = "--json"
) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments of `task` given by `words`, or by the JSON text of `option`."""
    if as_json is not None:
        if words:
            raise click.UsageError(f"{option} gives all the arguments; leave out the others")
        return _from_json(as_json, option)
    hints = hints_of(task.function)
    places = [p for p in inspect.signature(task.function).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        keyword = KEYWORD.fullmatch(word)
        if keyword:
            _check_name(task, keyword[1], word, option)
            kwargs[keyword[1]] = read_value(keyword[2], hints.get(keyword[1]))
            continue
        if kwargs:
            raise click.UsageError(f"{word!r} has no name, and follows one that has; write KEY=VALUE last")
        parameter = places[min(len(args), len(places) - 1)] if places else None
        args.append(read_value(word, hints.get(parameter.name) if parameter else None))
    return args, kwargs


def _check_name(task: Task[..., Any], name: str, word: str, option: str) -> None:
    parameters = inspect.signature(task.function).parameters
    if name not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        raise OptionError(
            f"{task.name} has no parameter {name!r}{near_miss(name, parameters) or '.'}"
            f" If {word!r} is a text: {option} {shlex.quote(json.dumps([word]))}"
        )


def read_value(word: str, hint: Any = None) -> Any:
    """Return the value of `word` if it is JSON, else the text; always the text for a parameter of type `str`."""
    if hint is str:
        return word.removeprefix(" ") if re.match(r" -\.?\d", word) else word
    try:
        return json_codec.loads(word)
    except PayloadError:
        return word


def _from_json(text: str, option: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        value = json_codec.loads(text)
    except PayloadError as error:
        raise click.UsageError(f"{option}: {error}") from None
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return [], value
    raise click.UsageError(f"{option}: expected an object of arguments by name, or an array of them by position")
