"""Parsing of database URLs, without ever showing their values.

libpq quotes parts of a malformed URL in its errors, including the password. An unescaped character in a password makes
libpq read the rest of the password as a host, port or database, and quote that when it cannot connect. So both are
refused here, with messages that contain nothing of the URL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psycopg
import psycopg.conninfo

from ..errors import ConfigError
from ..hints import near_miss

# With these, a dead peer is detected within about six seconds, during a statement and while idle.
LIVELINESS: dict[str, str] = {
    "connect_timeout": "5",
    "keepalives": "1",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "6000",
}

SCHEMES = ("postgresql", "postgres")
_EXPECTED = (
    "Expected postgresql://user:password@host:5432/database; special characters in the password are written as %XX."
    " The URL is not shown, as it may contain a password."
)
# Options that are not replaced in messages. Host, port, database and user may be shown. A password is never quoted by
# the driver or the server, and replacing a word that happens to be equal to it would reveal it.
_NAMED = ("host", "hostaddr", "port", "dbname", "user", "password")
_PASSWORD_OPTION = re.compile(r"(?i)pass(word|wd)?\s*=")


@dataclass(frozen=True, slots=True)
class DatabaseUrl:
    """A parsed URL, and the part of it that may be shown."""

    conninfo: str = field(repr=False)
    shown: str
    # Where the URL was given, for messages.
    source: str = field(default="the database URL", compare=False)

    def __str__(self) -> str:
        return self.shown

    def without_values(self, words: str) -> str:
        """Return a message of the driver or the server with the values of options replaced by their names."""
        given = psycopg.conninfo.conninfo_to_dict(self.conninfo)
        for name, value in given.items():
            for part in () if name in _NAMED else _parts(name, str(value)):
                # Replace a number only in quotes: other numbers, such as the port, may be equal to it.
                in_quotes = part.isdigit() and name != "options"
                found = rf"""(?<=["']){part}(?=["'])""" if in_quotes else rf"(?<!\w){re.escape(part)}(?!\w)"
                words = re.sub(found, f"<{name}>", words)
        return words


def parse_url(url: str, *, application: str, source: str = "the database URL") -> DatabaseUrl:
    """Return `url` with our connection settings added where it has none of its own."""
    given = _parsed(url)
    problem = _scheme_problem(url) if given is None else _misread_password(given, url)
    if problem is None and given is not None and not _is_number(str(given.get("connect_timeout", 0))):
        raise ConfigError(f"connect_timeout in {source} is not a number of seconds")
    # Raised outside the `except` block: otherwise the driver's error would be its context, and part of the traceback.
    if given is None or problem is not None:
        raise ConfigError(f"{source} is not a PostgreSQL URL{problem or '.'} {_EXPECTED}")
    settings = {**LIVELINESS, "application_name": application, **given}
    if "," in f"{given.get('host', '')}{given.get('port', '')}" and psycopg.pq.version() >= 140000:
        # The first of several hosts may be a standby, to which every attempt would connect.
        settings.setdefault("target_session_attrs", "primary")
    shown = f"{given.get('host') or 'local socket'}:{given.get('port') or 5432}/{given.get('dbname') or ''}"
    return DatabaseUrl(psycopg.conninfo.make_conninfo("", **settings), shown, source)


def _parts(name: str, value: str) -> list[str]:
    """Return `value` and, if it is `options`, its settings, of which the server quotes single ones; longest first."""
    words = re.findall(r"(?:\\.|[^\s=])+", value) if name == "options" else []
    words = [re.sub(r"\\(.)", r"\1", re.sub("^-(-|c)", "", word)) for word in words]
    return sorted({" ".join(value.split()), *words} - {""}, key=len, reverse=True)


def _parsed(url: str) -> dict[str, Any] | None:
    """Return the options in `url` as libpq reads them; None if it cannot."""
    # libpq would ignore everything after a NUL, without an error.
    if "\0" in url:
        return None
    try:
        return psycopg.conninfo.conninfo_to_dict(url) or None
    except (psycopg.Error, UnicodeError):
        return None


def _misread_password(given: Mapping[str, Any], url: str) -> str | None:
    """Return the reason to believe that a part of the password was read as something else; None if there is none."""
    where = {name: str(given.get(name) or "") for name in ("host", "hostaddr", "port", "dbname")}
    # libpq ends the password at the first @ of a URI, and an option in the query may hide the host that follows it.
    _, is_uri, rest = url.partition("://")
    if (
        (is_uri and rest.partition("/")[0].count("@") > 1)
        or any("@" in where[name] for name in ("hostaddr", "port", "dbname"))
        or any("@" in host and not _is_socket(host, bool(is_uri)) for host in where["host"].split(","))
    ):
        return (
            ": there is an @ in its host, port or database, so a password with an @ or a / was cut short."
            " In a password, write @ as %40 and / as %2F."
        )
    if not all(_is_port(port) for port in where["port"].split(",")):
        return ": its port is not a number from 1 to 65535."
    if any(not host.startswith("/") and re.search(r"[\s=&?#'\"]", host) for host in where["host"].split(",")):
        return ": its host contains a character that no host name has."
    # `/shop&password=...` without a question mark, `host=db;password=...`, a whole URL as the database. `options` are
    # settings of the server, which may have such a name.
    others = {name: str(value) for name, value in given.items() if name not in ("password", "sslpassword", "options")}
    if "://" in where["dbname"] or any(_PASSWORD_OPTION.search(value) for value in others.values()):
        return ": it contains a password at a place where none is read. The first option of a URL follows a ?."
    return None


def _is_socket(host: str, is_uri: bool) -> bool:
    """Return True if `host` is a directory of sockets, or an abstract socket, whose name begins with @."""
    # In a URI, a leading @ is more likely to be the end of a password that ends with an @.
    return host.startswith("/") or (not is_uri and host.startswith("@") and host.count("@") == 1)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\s*[+-]?[0-9]{1,9}(\.[0-9]*)?\s*", text) is not None


def _is_port(text: str) -> bool:
    return text == "" or (re.fullmatch(r"[0-9]{1,5}", text) is not None and 1 <= int(text) <= 65535)


def _scheme_problem(url: str) -> str | None:
    """Return what is wrong with the scheme of a URL, in a message that quotes nothing but known schemes."""
    scheme = url.split("://", 1)[0] if "://" in url else ""
    dialect = scheme.partition("+")[0]
    if dialect != scheme and dialect in SCHEMES:
        return f"; leave out the driver, {dialect}:// is enough."
    if scheme and scheme not in SCHEMES:
        return near_miss(scheme, SCHEMES) or None
    return None
