"""Counters of workers' statements, read from the server's log: our PostgreSQL has no pg_stat_statements."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path


class Requests:
    """Counters, read as the differences since the last restart."""

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self._read = read
        self._before: dict[str, int] = {}

    def restart(self) -> None:
        self._before = self._read()

    def read(self) -> dict[str, int]:
        return {name: number - self._before.get(name, 0) for name, number in self._read().items()}


class StatementLog:
    """The server's log, in which each line of a database begins with its name and `|`."""

    def __init__(self, path: Path, database: str) -> None:
        self._path = path
        self._offset = path.stat().st_size
        self._statement = re.compile(rf"{re.escape(database)}\|LOG:  (?:statement|execute [^:]*): (.*)", re.DOTALL)

    def count(self) -> int:
        """Return the number of statements in the log since this object was created."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            return len(self.statements(file.read().decode(errors="replace")))

    def statements(self, text: str) -> list[str]:
        """Return the statements in a part of the log, one by one. An entry may have many lines."""
        entries = re.split(r"(?m)^(?=[^|\n]*\|[A-Z]+:  )", text)
        found = [match[1] for entry in entries if (match := self._statement.match(entry))]
        return [statement for words in found for statement in split(words)]


def split(text: str) -> list[str]:
    """Return the statements of a string that may contain several, as a simple query does."""
    plain = re.sub(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|(\$\w*\$).*?\1", _without_semicolons, text, flags=re.DOTALL)
    return [part.strip() for part in plain.split(";") if part.strip()]


def _without_semicolons(match: re.Match[str]) -> str:
    return match[0].replace(";", "") if match[0][0] in "'$" else ""
