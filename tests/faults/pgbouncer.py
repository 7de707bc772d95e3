"""PgBouncer in transaction mode in front of a test's database: the pooler most hosts put there.

Debian's, of version 1.18, knows nothing of prepared statements; what works through it works through every other.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from support import eventually, free_port

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

CONFIG = """
[databases]
* = host={host} port={port}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen_port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
admin_users = {user}
pool_mode = {mode}
default_pool_size = {size}
reserve_pool_size = 0
server_login_retry = 1
max_client_conn = 200
logfile = {folder}/log
pidfile =
"""


class PgBouncer:
    """A running PgBouncer."""

    def __init__(self, url: str, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
        parts = urlsplit(url)
        self.user = parts.username or "postgres"
        self.url = urlunsplit(parts._replace(netloc=f"{self.user}@127.0.0.1:{port}"))
        self.process = process
        self._admin_url = urlunsplit(parts._replace(netloc=f"{self.user}@127.0.0.1:{port}", path="/pgbouncer"))
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else "(no log)"

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def command(self, words: str) -> None:
        """Something for the console: PAUSE, RESUME, KILL ..."""
        # The console does not speak the extended protocol, nor transactions.
        with psycopg.connect(self._admin_url, autocommit=True) as conn:
            conn.pgconn.exec_(words.encode())

    def answers(self) -> bool:
        assert self.process.poll() is None, f"pgbouncer ended:\n{self.log}"
        try:
            with psycopg.connect(self.url, connect_timeout=2, autocommit=True) as conn:
                conn.execute("select")
            return True
        except psycopg.OperationalError:
            return False


@contextlib.contextmanager
def pgbouncer(url: str, *, size: int = 4, mode: str = "transaction", port: int | None = None) -> Iterator[PgBouncer]:
    """PgBouncer before the server of `url`, with up to `size` connections to it."""
    program = _program()
    parts = urlsplit(url)
    listen_port = port or free_port()
    # Not pytest's own folder, which is root's alone.
    with tempfile.TemporaryDirectory(prefix="pgcron-bouncer-") as name:
        folder = Path(name)
        config = CONFIG.format(
            host=parts.hostname, port=parts.port, listen_port=listen_port, folder=folder, user=parts.username,
            mode=mode, size=size,
        )
        (folder / "pgbouncer.ini").write_text(config)
        (folder / "users").write_text(f'"{parts.username}" "{parts.password or ""}"\n')
        user = _unprivileged(folder)
        process = subprocess.Popen(
            [program, "-q", folder / "pgbouncer.ini"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, cwd="/", **user,
        )
        bouncer = PgBouncer(url, listen_port, process, folder / "log")
        try:
            eventually(bouncer.answers, within=15)
            yield bouncer
        finally:
            bouncer.thaw()
            process.kill()
            process.wait()


def _program() -> str:
    program = shutil.which("pgbouncer", path=PATH)
    if program is None:
        reason = "pgbouncer is not installed (Debian: apt-get install pgbouncer)"
        if os.environ.get("CI") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return program


def _unprivileged(folder: Path) -> dict[str, Any]:
    """PgBouncer refuses to run as root: arguments for `subprocess` that make it somebody else, who owns `folder`."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    folder.chmod(0o700)
    for path in (folder, *folder.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
