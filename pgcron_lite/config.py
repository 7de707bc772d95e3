"""The settings: their names, defaults, and how each is read from the environment.

Every setting may be given to `PgCron(...)`, or as `PGCRON_<NAME>` in the environment; what is given in code wins.
Flask apps give the same names in `app.config`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any

from . import moment
from .errors import ConfigError, PgCronError, near_miss

# Providers that put a pooler behind the main URL publish the direct one under these names.
DIRECT_NAMES = ("PGCRON_DIRECT_URL", "DATABASE_UNPOOLED_URL", "DATABASE_URL_UNPOOLED")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that may be set, with what holds if it is not."""

    database_url: str | None = None
    direct_url: str | None = None
    schema: str = "pgcron"
    environment: str | None = None
    notify: bool = True
    connections: int = 4
    queues: tuple[str, ...] = ("*",)
    slots: int = 10
    poll: timedelta = timedelta(seconds=5)
    grace: timedelta = timedelta(seconds=25)
    lease: timedelta = timedelta(seconds=30)
    keep_done: timedelta = timedelta(days=7)
    keep_failed: timedelta = timedelta(days=30)
    payload_limit: int = 256 * 1024

    @property
    def is_memory(self) -> bool:
        return (self.database_url or "").startswith("memory:")

    def url(self) -> str:
        """The database URL, or a sentence about how to give one."""
        if not self.database_url:
            raise ConfigError(
                "no database given. Set PGCRON_DATABASE_URL or DATABASE_URL, or pass PgCron(url=...);"
                " to try things out, `pgcron dev` starts a database of its own, and memory:// needs none."
            )
        return self.database_url

    def with_values(self, values: Mapping[str, Any], source: str) -> Settings:
        """These settings, overruled by `values` (names as in this class); None overrules nothing."""
        given = {name: value for name, value in values.items() if value is not None}
        for name in given:
            if name not in READERS:
                raise ConfigError(f"{source}: there is no setting {name!r}{near_miss(name, READERS)}")
        return replace(self, **{name: _read(name, value, source) for name, value in given.items()})


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """The settings as the environment gives them."""
    env = os.environ if environ is None else environ
    found: dict[str, Any] = {name: env.get(variable(name)) or None for name in READERS}
    found["database_url"] = found["database_url"] or env.get("DATABASE_URL") or None
    found["direct_url"] = next((env[name] for name in DIRECT_NAMES if env.get(name)), None)
    return Settings().with_values(found, "the environment")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"PGCRON_{name.upper()}"


def _read(name: str, value: Any, source: str) -> Any:
    try:
        return READERS[name](value)
    except (ValueError, TypeError, PgCronError) as error:
        shown = "***" if name.endswith("url") else repr(value)
        raise ConfigError(f"{source}: {variable(name)}={shown}: {error}") from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


def _identifier(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z_][a-z0-9_]{0,39}", value) or value.startswith("pg_"):
        raise ValueError(
            "expected a plain lower-case name of at most 40 letters, digits and underscores, not starting with pg_"
        )
    return value


def _flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise ValueError("expected yes or no")
    return found


def _count(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)) or int(value) < 1:
        raise ValueError("expected a whole number from 1 on")
    return int(value)


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(n.strip() for n in value.split(",")) if isinstance(value, str) else tuple(value)
    if not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError("expected names such as mail,reports, or * for every queue")
    return names


def _span(least: float) -> Callable[[Any], timedelta]:
    def read(value: Any) -> timedelta:
        text = float(value) if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value) else value
        found = moment.duration(text, name="duration")
        if found.total_seconds() < least:
            raise ValueError(f"expected at least {least:g} seconds")
        return found

    return read


READERS: dict[str, Callable[[Any], Any]] = {
    "database_url": _text,
    "direct_url": _text,
    "schema": _identifier,
    "environment": _text,
    "notify": _flag,
    "connections": _count,
    "queues": _names,
    "slots": _count,
    "poll": _span(0.05),
    "grace": _span(0.0),
    "lease": _span(0.5),
    "keep_done": _span(0.0),
    "keep_failed": _span(0.0),
    "payload_limit": _count,
}

assert set(READERS) == {f.name for f in fields(Settings)}
