"""Parameter types of the command line: spans of time, times, ids of jobs."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any

import click

from .. import durations
from ..errors import OptionError
from ..schedules.timezones import EPOCH


class Span(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    """A span of time: 90s, 10m, 1h30m, or a plain number of seconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        number = float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else value
        try:
            return durations.duration(number, name="span")
        except OptionError as error:
            self.fail(str(error).removeprefix("span="), param, ctx)


class JobId(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # as above
    """A job's id, in each form that commands and logs print: 12, #12, mail.send#12."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(?:.*#)?(\d{1,18})", str(value))
        if found is None:
            self.fail(f"{value!r} is not a job's id; expected 12, #12 or mail.send#12", param, ctx)
        return int(found[1])


def read_moment(text: str, zone: tzinfo, option: str) -> datetime:
    """Return the time `text` in UTC. Without an offset it is a time in `zone`."""
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=zone) if found.tzinfo is None else found
        if not timedelta(0) <= found - EPOCH <= timedelta(days=2_500_000):
            raise ValueError(text)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is not a time from 1970 on; expected 2026-03-28, 2026-03-28T12:00 or 2026-03-28T12:00Z",
            param_hint=option,
        ) from None
    return found.astimezone(UTC)
