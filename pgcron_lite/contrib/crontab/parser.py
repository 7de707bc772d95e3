"""Parser for crontabs: the commands that cron would run, their times and their environments.

It follows cronie and its predecessors. Parsing never fails: a line that cannot be imported is a `Problem`, and the
other lines are read nevertheless.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...errors import OptionError
from ...schedules.cron import parser
from ...schedules.timezones import zone


@dataclass(frozen=True, slots=True)
class CrontabEntry:
    """One job of a crontab. `line` is its place in the file; the other fields identify it."""

    line: int
    expression: str
    command: str
    stdin: str | None
    environment: Mapping[str, str] = field(hash=False)
    tz: str
    user: str | None

    @property
    def name(self) -> str:
        """A name such as `backup-sh-1f3a9c07`: the same on every import of an unchanged job, on any line."""
        told = [self.expression, self.command, self.stdin, sorted(self.environment.items()), self.tz, self.user]
        digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        return f"{_program(self.command)}-{digest[:8]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """A line that is not imported, or only in part; `why` includes what to write instead."""

    line: int
    text: str
    why: str


def read(text: str, *, system: bool = False, tz: str = "UTC") -> tuple[list[CrontabEntry], list[Problem]]:
    """Parse a user's crontab, or with `system` one like /etc/crontab, which names a user in each of its jobs.

    Its times are in `tz`, unless the crontab sets CRON_TZ.
    """
    reader = _Reader(system, zone(tz).name)
    # Not splitlines(): it also splits at characters that for cron are part of a line.
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        reader.take(number, line.removesuffix("\r"))
    return reader.entries, reader.problems


_BLANKS = re.compile(r"[ \t]+")
_SETTING = re.compile(r"""(["']?)([A-Za-z_][A-Za-z0-9_.-]*)\1[ \t]*=(.*)""", re.DOTALL)
_MAIL = ("MAILTO", "MAILFROM")


class _Reader:
    """The state of the parser: settings that apply to the next line, and the results so far."""

    def __init__(self, system: bool, tz: str) -> None:
        self.entries: list[CrontabEntry] = []
        self.problems: list[Problem] = []
        self._system = system
        self._default_tz = self._tz = tz
        self._is_chosen = False  # by CRON_TZ, which overrides TZ
        self._bad_tz: int | None = None
        self._environment: dict[str, str] = {}
        self._lines: dict[str, int] = {}
        self._has_mail = False

    def take(self, number: int, line: str) -> None:
        rest = line.lstrip(" \t")
        if not rest.strip() or rest.startswith("#"):
            return
        try:
            _check_characters(line)
            if setting := _SETTING.fullmatch(rest):
                self._set(number, setting[2], _value(setting[3]))
            else:
                self._add(self._job(number, rest))
        except OptionError as error:
            self.problems.append(Problem(number, line, str(error)))

    # Settings

    def _set(self, number: int, name: str, value: str) -> None:
        if name == "CRON_TZ":
            self._is_chosen = bool(value)
            self._choose(number, value)
        elif name in _MAIL:
            self._drop_mail(name, value)
        elif name == "RANDOM_DELAY":
            if value not in ("", "0"):
                raise OptionError(
                    f"RANDOM_DELAY={value!r} is not imported, and the jobs start on time; to spread them, give their"
                    f" schedules a jitter, such as jitter='{value}m'"
                )
        else:
            # A new dict: earlier entries keep theirs.
            self._environment = {**self._environment, name: value}
            if name == "TZ" and not self._is_chosen:
                self._choose_like_commands(number, value)

    def _choose(self, number: int, name: str) -> None:
        """Set the time zone of the lines that follow."""
        self._bad_tz = number
        self._tz = zone(name).name if name else self._default_tz
        self._bad_tz = None

    def _choose_like_commands(self, number: int, name: str) -> None:
        before = self._tz
        self._choose(number, name)
        if self._tz != before:
            raise OptionError(
                f"from here on jobs are due by the clock of {self._tz}. In most crons TZ changes the environment of"
                f" commands, and not their times; if that was meant, put CRON_TZ={before} in front"
            )

    def _drop_mail(self, name: str, value: str) -> None:
        if value and not self._has_mail:
            self._has_mail = True
            raise OptionError(
                f"{name} is not imported, nothing is mailed: exit code and output are kept with each job. To be"
                " notified of failures, write a receiver of job_failed"
            )

    # Jobs

    def _add(self, entry: CrontabEntry) -> None:
        first = self._lines.setdefault(entry.name, entry.line)
        if first != entry.line:
            raise OptionError(
                f"this repeats the job of line {first}, and is left out; if it must run twice at a time, make their"
                " commands differ, for example by a comment at the end"
            )
        self.entries.append(entry)

    def _job(self, number: int, text: str) -> CrontabEntry:
        # cronie: a leading minus turns off logging of the run.
        text = text.removeprefix("-")
        count = 1 if text.startswith("@") else 5
        words = _BLANKS.split(text, maxsplit=count)
        expression, rest = " ".join(words[:count]), "".join(words[count:])
        _check_expression(expression)
        if self._bad_tz is not None:
            raise OptionError(
                f"the time zone in line {self._bad_tz} is not known, so neither is when this job is due; name a zone"
                " of the IANA database there"
            )
        user = None
        if self._system:
            user, rest = _user(rest)
        _check_command(rest, self._system)
        command, stdin = _split(rest)
        if not command.strip():
            raise OptionError(f"there is no command behind {expression!r}; expected one in the same line")
        return CrontabEntry(number, expression, command, stdin, self._environment, self._tz, user)


def _check_characters(line: str) -> None:
    if "\0" in line:
        raise OptionError("there is a NUL character in this line, which no command can hold; take it out")
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"the character at {error.start + 1} is no text; expected UTF-8. Save the file in that encoding"
        ) from None


def _check_expression(expression: str) -> None:
    if expression.lower() == "@reboot":
        raise OptionError(
            "'@reboot' names no time of the clock, and workers restart more often than machines. To run a task when a"
            " worker starts, give its schedule run_on_start=True"
        )
    parser.read(expression)


def _check_command(rest: str, system: bool) -> None:
    first = rest.split(maxsplit=1)[:1]
    if first and first[0].startswith("*"):
        raise OptionError(
            f"where the command should begin there is {first[0]!r}; expected five fields, minute, hour, day, month and"
            " weekday. A crontab has no field for seconds"
        )
    if first == ["root"] and not system:
        raise OptionError(
            "the command begins with 'root', which looks like the user of a system crontab; read the file as one"
        )


def _user(rest: str) -> tuple[str, str]:
    user, *command = _BLANKS.split(rest, maxsplit=1)
    if not "".join(command):
        raise OptionError(
            f"in a system crontab a user and a command follow the time, and there is only {rest!r}; if this is the"
            " crontab of a user, read it as one"
        )
    return user, command[0]


def _split(rest: str) -> tuple[str, str | None]:
    """Split a line into the command and its stdin, which is the text after the first unescaped `%`."""
    command, percent, stdin = _partition(rest)
    if not percent:
        return command, None
    stdin = re.sub(r"\\?%", lambda found: "%" if len(found[0]) == 2 else "\n", stdin)
    return command, stdin if not stdin or stdin.endswith("\n") else stdin + "\n"


def _partition(rest: str) -> tuple[str, str, str]:
    # Escapes are read from the left, as in cron: in `\\%` the first backslash escapes the second, not the %.
    command = re.match(r"(?:[^\\%]|\\.|\\$)*", rest, re.DOTALL)
    assert command is not None
    text = re.sub(r"\\(.)", lambda found: "%" if found[1] == "%" else found[0], command[0], flags=re.DOTALL)
    return text, rest[command.end() : command.end() + 1], rest[command.end() + 1 :]


def _value(text: str) -> str:
    """Return the value after the `=`, without quotes around it. $NAME is not expanded: cron does not either."""
    text = text.strip()
    quote = text[:1]
    if quote not in ('"', "'"):
        return text
    if len(text) < 2 or text.find(quote, 1) != len(text) - 1:
        raise OptionError(
            f"the value begins with the quote {quote} and does not end with the next one; expected it around all of"
            " the value, or not at its beginning"
        )
    return text[1:-1]


_BEFORE_THE_PROGRAM = re.compile(r"\A(?:\s*(?:[A-Za-z_]\w*=\S*\s|cd\s[^;&|]*(?:&&|;)))*")


def _program(command: str) -> str:
    """Return the name of a command's program: `backup-sh` for `cd /srv && LEVEL=3 ./backup.sh --all`."""
    words = re.split(r"[\s;|&<>(){}\"']+", _BEFORE_THE_PROGRAM.sub("", command, count=1))
    word = next(filter(None, words), "").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^a-z0-9]+", "-", word.lower())[:30].strip("-") or "command"
