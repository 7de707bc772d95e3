"""Operating system calls for the embedded database: processes, users, folders, ports, time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import shutil
import socket
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import EmbeddedDatabaseError

# Root needs a place that the server's own user can reach, and that survives a reboot, like the data in a home. All
# users can write there, so a folder in it is used only after `own_folder` has checked its owner.
ROOTS_PLACE = Path("/var/tmp")


def run_program(*command: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a program of the server to its end. One that cannot be run counts as failed."""
    # The server runs for a long time and can be made to print its environment: it gets no variable of ours that may
    # be secret.
    env = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        # The server's user may not be able to enter the current directory.
        how |= {"cwd": "/", "env": {**env, "LC_ALL": "C"}}
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, **how)
    except OSError as error:
        return subprocess.CompletedProcess(command, 127, "", str(error))


def can_run(place: Path, **user: Any) -> bool:
    return all(run_program(place / name, "--version", **user).returncode == 0 for name in ("postgres", "initdb"))


def is_root() -> bool:
    return os.geteuid() == 0


def server_user() -> dict[str, Any]:
    """Return arguments for `subprocess` to run the server as another user if we are root: it refuses to run as root."""
    import pwd

    if not is_root():
        return {}
    # `nobody` first: on a machine with its own PostgreSQL, `postgres` may read data that is not ours.
    for name in ("nobody", "postgres"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise EmbeddedDatabaseError(
        "PostgreSQL refuses to run as root, and there is neither a user 'nobody' nor 'postgres' to run it as;"
        " start as a plain user, or set DATABASE_URL to a database you have"
    )


def process_of(pid: int) -> tuple[str, str]:
    """Return the state letter and the command line of a process; empty texts if there is none."""
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
    """Create `folder` in a place where all users can write, or check that it is ours."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        folder.chmod(mode)
    # Not through a symlink, which another user may have made there.
    return check_own_folder(folder, folder.lstat())


def check_own_folder(folder: Path, status: os.stat_result) -> Path:
    """Refuse a folder that belongs to another user, or in which others may create and rename files."""
    name = str(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise EmbeddedDatabaseError(f"{name!r} is not a folder; remove it, or name another home folder")
    if status.st_uid != os.geteuid():
        raise EmbeddedDatabaseError(
            f"{name!r} belongs to another user, so the embedded database will not use it; remove it, or name another"
            " home folder"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EmbeddedDatabaseError(
            f"other users may write into {name!r}, so the embedded database will not use it."
            f" Run: chmod go-w {shlex.quote(name)}"
        )
    return folder


def open_own_file(file: Path, flags: int) -> int:
    """Open a file that only we can have made: a regular file of ours, and never through a symlink.

    Nothing is truncated, and a FIFO does not block. Any other file raises `NotOurFile`, which is an `OSError`.
    """
    fd = os.open(file, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
        return fd
    os.close(fd)
    raise NotOurFile(f"{str(file)!r} is not a regular file, or belongs to another user")


class NotOurFile(OSError):
    """A file that another user may have made in place of ours."""


def read_own_file(file: Path) -> str:
    """Return the text of a file that only we can have made."""
    with open(open_own_file(file, os.O_RDONLY), encoding="utf-8") as own:
        return own.read()


def write_own_file(file: Path, text: str) -> None:
    """Write `file` atomically, readable only by us. A symlink in its place is replaced."""
    draft = file.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as own:
        own.write(text)
    draft.replace(file)


def delete_folder(folder: Path) -> None:
    """Delete a folder into which ending children of the server may still write."""
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
    """Wait until `fact` is true. Return False if it is not within `seconds`."""
    deadline = now() + seconds
    while not fact():
        if now() > deadline:
            return False
        time.sleep(0.02)
    return True
