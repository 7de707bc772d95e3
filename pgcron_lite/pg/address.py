"""Where the database is: reading a URL without ever repeating its password.

A malformed URL makes libpq quote parts of it, the password included; so errors are worded here, from what is left
when the secret is taken out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import psycopg.conninfo

from ..errors import ConfigError, near_miss

# A dead peer is noticed within about six seconds, in the middle of a statement and while idle.
LIVELINESS: dict[str, str] = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "6000",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A database and how it may be called in public."""

    conninfo: str
    shown: str

    def __str__(self) -> str:
        return self.shown


def address(url: str, *, application: str, source: str = "the database URL") -> Address:
    """`url` with our connection settings added where it says nothing itself."""
    try:
        given: dict[str, Any] = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        given = {}
    if not given or _has_slipped(given):
        raise ConfigError(
            f"{source} is not a PostgreSQL URL: {redacted(url)!r}{_scheme_hint(url)}"
            " Expected postgresql://user:password@host:5432/database; special characters in the password are"
            " written as %XX."
        )
    settings = {**LIVELINESS, "application_name": application, **given}
    shown = f"{given.get('host') or 'local socket'}:{given.get('port') or 5432}/{given.get('dbname') or ''}"
    return Address(psycopg.conninfo.make_conninfo("", **settings), shown)


def redacted(url: str) -> str:
    """`url` with everything that may be a secret replaced."""
    hidden = re.sub(r"(?i)(password|passwd|pwd)\s*=\s*('[^']*'|[^\s&]*)", r"\1=***", url)
    # The last @ ends the password: an unescaped one inside it must not reveal the rest.
    scheme, slashes, rest = hidden.rpartition("://") if "://" in hidden.split("@")[0] else ("", "", hidden)
    credentials, at, place = rest.rpartition("@")
    if at:
        user, colon, _ = credentials.partition(":")
        # Without a scheme nobody knows what is what.
        return f"{scheme}{slashes}{user}{colon}***@{place}" if scheme and colon else f"{scheme}{slashes}***@{place}"
    # What should be a port may be the password of somebody who forgot the host.
    return re.sub(r"://([^:/]*):(?!\d*(?:[/?]|$))[^/]*", r"://\1:***", hidden)


def _has_slipped(given: dict[str, Any]) -> bool:
    """Has a password with a slash in it been read as port and database?"""
    return "@" in str(given.get("dbname", "")) or not re.fullmatch(r"[\d,]*", str(given.get("port", "")))


def _scheme_hint(url: str) -> str:
    scheme = url.split("://", 1)[0] if "://" in url else ""
    if "+" in scheme:
        return f"; leave out the driver, {scheme.split('+', 1)[0]}:// is enough."
    if scheme and scheme not in ("postgres", "postgresql"):
        return near_miss(scheme, ["postgresql", "postgres"]) or "."
    return "."
