"""What the embedded database asks of the operating system: processes, users, folders, ports, time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import EmbeddedDatabaseError

# Root needs a place that the server's own user can reach, and that outlives a reboot as the data in a home
# does. Like every place open to all, it is used only after `own_folder` has seen whose the folders in it are.
ROOTS_PLACE = Path("/var/tmp")


def run_program(*command: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of the server's to its end; one that cannot be run counts as failed."""
    # The server lives long and can be made to print its environment: it gets nothing of ours that may be
    # secret.
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        # The current directory may be closed to the server's user, so it runs in another.
        how |= {"cwd": "/", "env": {**env, "LC_ALL": "C"}}
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, **how)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def can_run(place: Path, **user: Any) -> bool:
    return all(run_program(place / name, "--version", **user).returncode == 0 for name in ("postgres", "initdb"))


def is_root() -> bool:
    return os.geteuid() == 0


def server_user() -> dict[str, Any]:
    """Arguments for `subprocess` to run the server as somebody else when we are root, which it refuses."""
    import pwd

    if not is_root():
        return {}
    # `nobody` first: on a machine with its own PostgreSQL, `postgres` may read what is not ours to touch.
    for name in ("nobody", "postgres"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise EmbeddedDatabaseError(
        "PostgreSQL refuses to run as root, and there is neither a user 'nobody' nor 'postgres' to run it as;"
        " start as a plain user, or set DATABASE_URL to a database you have"
    )


def process_of(pid: int) -> tuple[str, str]:
    """The state letter and the command line of a process; empty when there is none."""
    if not Path("/proc/self/stat").exists():
        state, _, command = run_program("ps", "-o", "stat=,command=", "-p", str(pid)).stdout.strip().partition(" ")
        return state[:1], command.strip()
    try:
        stat, command_line = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("stat", "cmdline"))
    except (FileNotFoundError, ProcessLookupError):
        return "", ""
    return chr(stat.rpartition(b") ")[2][0]), os.fsdecode(command_line.replace(b"\0", b" "))


def is_gone(pid: int) -> bool:
    return process_of(pid)[0] in ("", "Z")


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def own_folder(folder: Path, mode: int) -> Path:
    """Make `folder` in a place open to all, or make sure that it is ours."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(mode)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise EmbeddedDatabaseError(
            f"{str(folder)!r} belongs to somebody else, so the embedded database will not use it;"
            " remove it, or name another home folder"
        )
    return folder


def delete_folder(folder: Path) -> None:
    """Delete a folder that dying children of the server may still write into."""
    trash = folder.with_suffix(".new")
    shutil.rmtree(trash, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def digest(name: object) -> str:
    return hashlib.sha256(os.fsencode(str(name))).hexdigest()[:12]


def now() -> float:
    # Not time.monotonic(): freezegun stops that one, and then no deadline would ever pass.
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def wait_until(fact: Callable[[], bool], seconds: float) -> bool:
    """Wait for `fact` to become true; False when it has not within `seconds`."""
    deadline = now() + seconds
    while not fact():
        if now() > deadline:
            return False
        time.sleep(0.02)
    return True
