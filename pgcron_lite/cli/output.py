"""Output of commands: columns for people, one JSON object per line for programs, times for both."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from .. import durations
from ..job import Job
from ..worker.execute import clean
from ..worker.logs import escaped, spelled

F = TypeVar("F", bound=Callable[..., Any])

COLOURS = {
    "done": "green", "ok": "green", "failed": "red", "stuck": "red", "silent": "red", "running": "cyan",
    "missed": "red", "late": "red", "cancelled": "yellow", "stopping": "yellow", "paused": "yellow",
    "skipped": "yellow", "deleted": "yellow", "retired": "yellow", "off": "yellow", "new": "green", "changed": "cyan",
    "gone": "yellow",
}


def as_json(command: F) -> F:
    """Add the option --json, which every command that prints data has."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object per line, for programs.")(command)


class Styled(str):
    """Text to print unchanged: it may have our colours, and user text in it is escaped already."""


def echo(text: str = "", *, err: bool = False) -> None:
    """Print `text` with control characters escaped and further lines indented. Every command prints by this."""
    click.echo(text if isinstance(text, Styled) else escaped(text), err=err)


def print_json(item: Any) -> None:
    # Escape non-ASCII: whatever a job's text contains, an object is one line in every terminal and every locale.
    echo(Styled(json.dumps(item, default=_plain)))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], *, right: str = "") -> None:
    """Print rows in columns, those named in `right` aligned right. The last column is cut to the screen's width."""
    cells = [[line(str(value)) for value in row] for row in rows]
    if not cells:
        return
    lines = [list(headings), *cells]
    widths = [max(len(words[i]) for words in lines) for i in range(len(headings))]
    ends = {name for name in headings if name in right.split(", ")}
    for number, words in enumerate(lines):
        padded = [_padded(cell, width, name in ends) for cell, width, name in zip(words, widths, headings, strict=True)]
        room = _screen() - sum(widths[:-1]) - 2 * (len(widths) - 1)
        padded[-1] = _cut(words[-1], max(room, 12)).rjust(widths[-1] if headings[-1] in ends else 0)
        styled = [click.style(c, dim=True) if number == 0 else _coloured(c) for c in padded]
        echo(Styled("  ".join(styled).rstrip()))


def _padded(cell: str, width: int, is_right: bool) -> str:
    return cell.rjust(width) if is_right else cell.ljust(width)


def _coloured(cell: str) -> str:
    colour = COLOURS.get(cell.strip())
    return click.style(cell, fg=colour) if colour else cell


def state(word: str) -> str:
    return _coloured(word)


def _screen() -> int:
    """Return the width of the terminal; no practical limit for a file or another program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 100_000


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def line(text: str) -> str:
    """Return user text as one line, with control characters escaped."""
    return "".join(map(spelled, text.replace("\t", "\\t")))


def block(text: str, indent: str = "    ") -> str:
    """Return user text of several lines, indented, with control characters escaped."""
    return "\n".join(f"{indent}{line(part.expandtabs(8))}" for part in text.split("\n")).rstrip()


def argument(text: str) -> str:
    """Return user text as one word of a command that can be pasted into a shell."""
    if not text.isprintable():
        # The $'...' form of bash, ksh and zsh: the text to paste has no control characters.
        plain = text.replace("\\", "\\\\").replace("'", "\\'")
        return f"$'{line(plain)}'"
    return f"-- {shlex.quote(text)}" if text.startswith("-") else shlex.quote(text)


# Times

def iso(value: datetime | None) -> str | None:
    return None if value is None else value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def utc(value: datetime | None) -> str:
    """Return a time to the second, for a column whose heading says UTC."""
    return "-" if value is None else f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def coming(then: datetime, now: datetime) -> str:
    """Return the time left until `then` (`in 3 h 5 m`), or how long it has been due."""
    return f"in {span(then - now)}" if then > now else f"due for {span(now - then)}"


def upcoming(then: datetime | None, now: datetime) -> str:
    """Return the results of `utc` and `coming`, for a column whose heading says UTC."""
    return "-" if then is None else f"{utc(then)}, {coming(then, now)}"


def span(value: timedelta | float) -> str:
    """Return a span in its largest unit and the next: `3 s`, `12 m`, `2 h 5 m`, `4 d 1 h`; and `9 d` for 9 d 40 m."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if seconds < 1:
        return f"{max(seconds, 0) * 1000:.0f} ms"
    first, *rest = durations.spoken(timedelta(seconds=round(seconds))).split()
    words = [first, *(word for word in rest[:1] if first[-1] + word[-1] in ("dh", "hm", "ms"))]
    return " ".join(f"{word[:-1]} {word[-1]}" for word in words)


def ago(then: datetime, now: datetime) -> str:
    return "just now" if now - then < timedelta(seconds=1) else f"{span(now - then)} ago"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


# Jobs

def took(job: Job) -> str:
    """Return how long the last attempt of an ended job ran."""
    return span(job.finished_at - job.claimed_at) if job.finished_at and job.claimed_at else "no time"


def job_fields(job: Job) -> dict[str, Any]:
    """Return a job as `--json` prints it. The names are stable; new ones may be added."""
    return {
        "id": job.id,
        "task": job.task,
        "state": job.state,
        "queue": job.queue,
        "priority": job.priority,
        "args": decoded(job.args),
        "headers": dict(job.headers),
        "tags": list(job.tags),
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "crashes": job.crashes,
        "max_crashes": job.max_crashes,
        "alone": job.alone,
        "worker": None if job.worker is None else str(job.worker),
        "created_at": iso(job.created_at),
        "execute_after": iso(job.execute_after),
        "claimed_at": iso(job.claimed_at),
        "finished_at": iso(job.finished_at),
        "result": None if job.result is None else decoded(job.result),
        "errors": [dict(error) for error in job.errors],
    }


def decoded(text: str) -> Any:
    """Return the value of a JSON text, or the text itself if it cannot be decoded."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return clean(text, 10_000)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, (uuid.UUID, timedelta)):
        return str(value)
    return repr(value)
