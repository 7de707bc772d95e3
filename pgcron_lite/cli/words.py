"""How words of the command line are read: spans of time, ids of jobs."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

from .. import moment
from ..errors import OptionError


class Span(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.4 on
    """A span of time: 90s, 10m, 1h30m, or a plain number of seconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        number = float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else value
        try:
            return moment.duration(number, name="span")
        except OptionError as error:
            self.fail(str(error).removeprefix("span="), param, ctx)


class JobId(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # as above
    """A job's number, also as it is written elsewhere: 12, #12, mail.send#12."""

    name = "id"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(?:.*#)?(\d{1,18})", str(value))
        if found is None:
            self.fail(f"{value!r} is not a job's id; expected 12, #12 or mail.send#12", param, ctx)
        return int(found[1])
