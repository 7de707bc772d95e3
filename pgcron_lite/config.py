"""The settings: their names, their defaults, and their values in the environment.

Every setting may be given to `PgCron(...)`, or as `PGCRON_<NAME>` in the environment. Code takes precedence.
Flask apps give the same names in `app.config`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, TypedDict

from . import durations
from .errors import ConfigError, PgCronError
from .hints import near_miss
from .retry import Duration
from .serialization.json_codec import MAX_SIZE

# Providers that put a pooler behind the main URL publish the direct one under these names.
DIRECT_NAMES = ("PGCRON_DIRECT_URL", "DATABASE_UNPOOLED_URL", "DATABASE_URL_UNPOOLED")


# The schema must contain nothing but the queue: `migrate` revokes all rights of PUBLIC in it.
SHARED_SCHEMAS = ("public", "information_schema")


class NoDatabase(str):
    """A placeholder for a missing database URL, with the reason why no other source of a URL may be used either."""

    reason: str

    def __new__(cls, reason: str) -> NoDatabase:
        made = super().__new__(cls)
        made.reason = reason
        return made


class SettingValues(TypedDict, total=False):
    """The settings as `PgCron` and `configure` take them: as texts of the environment, or as values."""

    database_url: str | None
    direct_url: str | None
    schema: str | None
    environment: str | None
    notify: bool | str | None
    connections: int | str | None
    queues: str | Sequence[str] | None
    slots: int | str | None
    poll: Duration | None
    grace: Duration | None
    lease: Duration | None
    hang_exit: bool | str | None
    keep_done: Duration | None
    keep_failed: Duration | None
    payload_limit: int | str | None


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, with their defaults."""

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
    hang_exit: bool = True
    keep_done: timedelta = timedelta(days=7)
    keep_failed: timedelta = timedelta(days=30)
    payload_limit: int = 256 * 1024

    def __repr__(self) -> str:
        """Return every setting, with the URLs masked, which contain passwords."""
        shown = (
            f"{f.name}={'***' if f.name.endswith('_url') and value is not None else repr(value)}"
            for f in fields(self)
            for value in [getattr(self, f.name)]
        )
        return f"Settings({', '.join(shown)})"

    def check_label(self, label: str | None) -> None:
        """Raise `ConfigError` if a database with this environment label belongs to another environment than ours."""
        mine = self.environment
        if label is None or label == mine:
            return
        have = f"PGCRON_ENVIRONMENT={mine}" if mine else "PGCRON_ENVIRONMENT not set"
        raise ConfigError(
            f"this database belongs to the environment {label!r}, and this process has {have}. Is it a copy?"
            " Nothing is run, enqueued, changed or shown from here. If this process belongs to that environment, set"
            f" PGCRON_ENVIRONMENT={label}; if the database is meant to be used here, run:"
            f" pgcron migrate --environment {shlex.quote(mine or 'NAME')}"
        )

    @property
    def is_memory(self) -> bool:
        return (self.database_url or "").startswith("memory:")

    def url(self) -> str:
        """Return the database URL, or raise `ConfigError` with the ways to give one."""
        if isinstance(self.database_url, NoDatabase):
            raise ConfigError(self.database_url.reason)
        if not self.database_url:
            raise ConfigError(
                "no database given. Set PGCRON_DATABASE_URL or DATABASE_URL, or pass PgCron(url=...);"
                " to try things out, `pgcron dev` starts its own database (its URL is in .pgcron/url; programs"
                " read it only if you set DATABASE_URL to it), and memory:// needs none."
            )
        return self.database_url

    def with_values(self, values: Mapping[str, Any], source: str) -> Settings:
        """Return a copy with `values` (names as in this class). None leaves a setting unchanged."""
        given = {name: value for name, value in values.items() if value is not None}
        for name in given:
            if name not in READERS:
                raise ConfigError(f"{source}: there is no setting {name!r}{near_miss(name, READERS)}")
        return replace(self, **{name: _read(name, value, source) for name, value in given.items()})


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Return the settings of the environment."""
    env = os.environ if environ is None else environ
    found: dict[str, Any] = {name: env.get(variable(name)) or None for name in READERS}
    found["database_url"] = found["database_url"] or env.get("DATABASE_URL") or None
    found["direct_url"] = next((env[name] for name in DIRECT_NAMES if env.get(name)), None)
    return Settings().with_values(found, "the environment")


def database_source(environ: Mapping[str, str] | None = None) -> str:
    """Return the name of the environment variable that contains the database URL."""
    env = os.environ if environ is None else environ
    return variable("database_url") if env.get(variable("database_url")) else "DATABASE_URL"


def direct_source(environ: Mapping[str, str] | None = None) -> str:
    """Return the name of the environment variable that contains the direct URL."""
    env = os.environ if environ is None else environ
    return next((name for name in DIRECT_NAMES if env.get(name)), DIRECT_NAMES[0])


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
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
    if value in SHARED_SCHEMAS:
        raise ValueError(f"the schema {value} belongs to others as well; expected a separate one, such as pgcron")
    return value


def _flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    found = value if isinstance(value, bool) else words.get(str(value).lower())
    if found is None:
        raise ValueError("expected yes or no")
    return found


def _count(value: Any) -> int:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,9}", str(value)) or int(value) < 1:
        raise ValueError("expected a whole number of at least 1")
    return int(value)


def _size(value: Any) -> int:
    if (size := _count(value)) > MAX_SIZE:
        raise ValueError(f"expected at most {MAX_SIZE}, which is the limit of the table of jobs")
    return size


def _names(value: Any) -> tuple[str, ...]:
    names = tuple(n.strip() for n in value.split(",")) if isinstance(value, str) else tuple(value)
    if not names or not all(isinstance(n, str) and n for n in names):
        raise ValueError("expected names such as mail,reports, or * for every queue")
    return names


def _span(least: float) -> Callable[[Any], timedelta]:
    def read(value: Any) -> timedelta:
        text = float(value) if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value) else value
        found = durations.duration(text, name="duration")
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
    "hang_exit": _flag,
    "keep_done": _span(0.0),
    "keep_failed": _span(0.0),
    "payload_limit": _size,
}

assert set(READERS) == {f.name for f in fields(Settings)} == set(SettingValues.__annotations__)
