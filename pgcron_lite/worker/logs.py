"""Log formats: text for people, logfmt and JSON for machines. One record is always one entry.

A program that configures logging itself uses nothing of this module. Messages contain user text (names, errors,
arguments), so everything that could start a new entry or control a terminal is escaped.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, get_args

from ..context import running
from ..errors import ConfigError, OptionError
from ..hints import near_miss

Format = Literal["text", "logfmt", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
LEVELS = ("debug", "info", "warning", "error", "critical")

# The fields that `reporting.fields` adds to a job's record and `JobFilter` to other records. Dashboards depend on these
# names.
FIELDS = ("event", "job_id", "task", "queue", "attempt", "outcome", "duration_s", "wait_s")


def set_up(format: Format | None = None, level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logging to `stream`, by default standard output. Without `format`, keep the app's own configuration."""
    root = logging.getLogger()
    if format is None and (root.handlers or logging.getLogger("pgcron_lite").handlers):
        return
    target = sys.stdout if stream is None else stream
    if target is None:
        # Started with standard output closed: log lines are dropped, and jobs run as usual.
        root.handlers[:] = [logging.NullHandler()]
        return
    if hasattr(target, "reconfigure"):
        # A character that the terminal cannot show must not lose the whole line.
        target.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter(format or default_format(target), target))
    handler.addFilter(JobFilter())
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def set_up_for_program(format: Format | None = None, level: str | None = None) -> None:
    """Set up logging on standard error for a worker that runs inside a program: standard output is the program's.

    Defaults come from the environment variables that `pgcron worker` reads.
    """
    format = _chosen("log_format", "PGCRON_LOG_FORMAT", format, FORMATS)
    level = _chosen("log_level", "PGCRON_LOG_LEVEL", level and level.lower(), LEVELS)
    if sys.stderr is not None:
        set_up(format, level or "info", sys.stderr)


def _chosen(name: str, variable: str, given: Any, choices: tuple[Any, ...]) -> Any:
    """Return the value given in code or by the environment variable, one of `choices`; None if neither is set."""
    if given is not None and given not in choices:
        raise OptionError(f"{name}={given!r}: expected one of {', '.join(choices)}{near_miss(str(given), choices)}")
    found = os.environ.get(variable, "").lower() or None
    if given is None and found is not None and found not in choices:
        raise ConfigError(f"{variable}={found!r}: expected one of {', '.join(choices)}{near_miss(found, choices)}")
    return given or found


def default_format(stream: TextIO) -> Format:
    """Return text for a terminal, logfmt otherwise."""
    return "text" if stream.isatty() else "logfmt"


def formatter(format: Format, stream: TextIO | None = None) -> logging.Formatter:
    # Heroku adds times to the log itself.
    has_times = not os.environ.get("DYNO")
    if format == "json":
        return JsonFormatter()
    if format == "logfmt":
        return LogfmtFormatter(has_times)
    is_terminal = stream is not None and stream.isatty()
    return TextFormatter(has_times, is_terminal, is_terminal and not os.environ.get("NO_COLOR"))


class JobFilter(logging.Filter):
    """A filter that adds the running job to each record logged within a job."""

    def filter(self, record: logging.LogRecord) -> bool:
        here = running.get(None)
        if here is not None and not hasattr(record, "job_id"):
            record.job_id, record.task, record.queue = here.job.id, here.job.task, here.job.queue
            record.attempt = here.job.attempt
        return True


class TextFormatter(logging.Formatter):
    """`12:30:01 warning  send_email#7 (attempt 2/5) failed in 0.2 s ...`; lines after the first are indented."""

    COLOURS = ((logging.ERROR, "31"), (logging.WARNING, "33"), (logging.INFO, "0"), (0, "2"))

    def __init__(self, has_times: bool = True, is_short: bool = True, has_colours: bool = False) -> None:
        super().__init__()
        self._has_times, self._is_short, self._has_colours = has_times, is_short, has_colours

    def format(self, record: logging.LogRecord) -> str:
        words = [self._time(record)] if self._has_times else []
        words += [f"{record.levelname.lower():<7}", self._job(record) + escaped(record.getMessage())]
        line = " ".join(words)
        if self._has_colours and record.levelno != logging.INFO:
            colour = next(code for least, code in self.COLOURS if record.levelno >= least)
            line = f"\x1b[{colour}m{line}\x1b[0m"
        return "\n".join([line, *(indented(text) for text in details(self, record))])

    def _time(self, record: logging.LogRecord) -> str:
        # A terminal shows local time. A log file may be read in another time zone, so its times have the offset.
        time = datetime.fromtimestamp(record.created).astimezone()
        return f"{time:%H:%M:%S}" if self._is_short else time.isoformat(timespec="milliseconds")

    def _job(self, record: logging.LogRecord) -> str:
        """Return a prefix that names the job, for lines that a task logs. The worker's own lines already name it."""
        if not hasattr(record, "job_id") or getattr(record, "event", None) == "job":
            return ""
        return f"{escaped(str(getattr(record, 'task', '')))}#{record.job_id}: "


class LogfmtFormatter(logging.Formatter):
    """`at=info msg="..." event=job task=send_email job_id=7 outcome=done duration_s=0.2`"""

    def __init__(self, has_times: bool = True) -> None:
        super().__init__()
        self._has_times = has_times

    def format(self, record: logging.LogRecord) -> str:
        pairs = [f"{name}={quoted(value)}" for name, value in entries(self, record) if name != "ts" or self._has_times]
        return " ".join(pairs)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: ts, at, logger, msg, the fields of a job, error."""

    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(dict(entries(self, record)), default=str)


def entries(formatter: logging.Formatter, record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    """Yield the names and values of a structured entry, in order."""
    time = datetime.fromtimestamp(record.created, UTC)
    yield "ts", time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    yield "at", record.levelname.lower()
    yield "logger", record.name
    yield "msg", record.getMessage()
    for name in FIELDS:
        value = getattr(record, name, None)
        if value is not None:
            yield name, value
    texts = details(formatter, record)
    if texts:
        yield "error", "\n".join(texts)


def details(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    """Return the traceback and the stack of a record."""
    found = []
    if record.exc_info and record.exc_info[0] is not None:
        found.append(record.exc_text or formatter.formatException(record.exc_info))
    if record.stack_info:
        found.append(formatter.formatStack(record.stack_info))
    return found


def escaped(text: str) -> str:
    """Return `text` so that it can neither start a new entry nor control a terminal: further lines are indented."""
    if text.isprintable():
        return text
    return "\n    ".join("".join(map(spelled, line)) for line in text.split("\n"))


def indented(text: str) -> str:
    return f"    {escaped(text)}"


def quoted(value: Any) -> str:
    """Return `value` in logfmt: bare if it is one plain word, otherwise quoted and escaped."""
    text = "true" if value is True else "false" if value is False else str(value)
    if text and re.fullmatch(r"[^\s\"=\\]+", text) and text.isprintable():
        return text
    inside = text.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    return f'"{"".join(map(spelled, inside))}"'


def spelled(character: str) -> str:
    """Return a printable character or a tab as it is, and any other as Python's escape sequence."""
    return character if character.isprintable() or character == "\t" else repr(character)[1:-1]
