"""One PostgreSQL cluster in one folder: its creation, start, reuse, stop and addresses.

The contents of the database belong to `pg/`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ..errors import EmbeddedDatabaseError
from .programs import WHEEL, copy_of, find_binaries, major_of
from .system import (
    ROOTS_PLACE,
    can_run,
    check_own_folder,
    delete_folder,
    digest,
    is_free,
    is_gone,
    is_root,
    now,
    open_own_file,
    own_folder,
    process_of,
    read_own_file,
    run_program,
    server_user,
    wait_until,
    write_own_file,
)

Mode = Literal["fast", "immediate", "smart"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SHORT_PLACE = Path("/tmp")
# The name of a unix socket, `/.s.PGSQL.12345` included, must fit into 103 bytes on macOS and 107 on Linux.
_MAX_SOCKET_DIRECTORY = 85

# Overrides what the environment may set for libpq (PGSSLMODE, PGSERVICE ...): this server has no TLS and no GSSAPI.
_PLAINLY: dict[str, Any] = {"sslmode": "disable", "gssencmode": "disable"}


class EmbeddedPostgres:
    """One PostgreSQL cluster in the folder `home`, shared by every process that names the same folder.

    The server keeps running after the process that started it, however that ends, until `stop()` is called. TCP on
    the loopback address requires a generated password, which is part of `url`; the unix socket requires none and is
    in a directory that only the server's user may enter. The home must be a folder of ours that no other user may
    write into. `settings` are server settings, and do not apply to a server that already runs. `folder` is a place
    for the data outside of the home: memory, for tests.
    """

    def __init__(
        self,
        home: str | os.PathLike[str] = ".pgcron",
        *,
        version: int | None = None,
        settings: Mapping[str, str] | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self.home = Path(home).absolute()
        self.version = version
        self.settings = dict(settings or {})
        self._outside = None if folder is None else Path(folder).absolute()

    def start(self) -> str:
        """Start the server unless it runs, and return its URL. Several processes may do so at once and share it."""
        with self._alone():
            if not self.is_alive():
                self._start()
        return self.url

    def stop(self, mode: Mode = "fast") -> bool:
        """Stop the server; False if none ran. The data stay. `smart` waits for clients, `immediate` is a crash."""
        if not self.home.is_dir():
            return False
        with self._alone():
            return self._stop(mode)

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start again. The URL stays the same unless another program takes the port in between."""
        with self._alone():
            self._stop(mode)
            self._start()

    def reset(self) -> None:
        """Stop the server and delete its data. The next start makes an empty cluster, under the same URL."""
        if not self.home.is_dir():
            return
        with self._alone():
            self._stop("immediate")
            delete_folder(self.data_directory)
            delete_folder(self._socket_directory)
            if self._folder != self.home:
                # Another version's data may still be in there.
                with contextlib.suppress(OSError):
                    self._folder.rmdir()

    def is_alive(self) -> bool:
        """Return True if our server accepts a connection: a pid may be a zombie's, a port another program's."""
        return self._address is not None and self._answers(self.url)

    @property
    def url(self) -> str:
        """The URL for TCP, with the password.

        It makes clients refuse any authentication but SCRAM. While our server is down, any user of the machine may
        listen on its port, and could otherwise get the password in clear text. The option needs libpq 16.
        """
        import psycopg

        port, password = self._known_address()
        option = "?require_auth=scram-sha-256" if psycopg.pq.version() >= 160000 else ""
        return f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres{option}"

    @property
    def socket_url(self) -> str:
        """The URL for the unix socket: for this user (and root) only, without a password."""
        port, _ = self._known_address()
        host = quote(str(self._socket_directory), safe="")
        return f"postgresql://postgres@/postgres?host={host}&port={port}"

    @property
    def pid(self) -> int | None:
        """The server's process id, if that process is alive and is the server of this data directory."""
        try:
            pid = int((self.data_directory / "postmaster.pid").read_text().split("\n", 1)[0])
        except (FileNotFoundError, ValueError):
            return None
        state, command = process_of(pid)
        # The file survives `kill -9` and a reboot, after which the number may be a zombie's, or anyone's.
        return pid if state not in ("", "Z") and f" -D {self.data_directory} " in f"{command} " else None

    @functools.cached_property
    def data_directory(self) -> Path:
        """The cluster's data. One per major version, as no server reads the data of another."""
        return self._folder / f"pg{major_of(self.bin_directory)}"

    @functools.cached_property
    def bin_directory(self) -> Path:
        """The programs in use: those found, or as root a copy of them that the server's user can run."""
        found = find_binaries(self.version)
        if can_run(found, **server_user()):
            return found
        copy = copy_of(found) if found.parent.parent.name == WHEEL else found
        if not can_run(copy, **server_user()):
            raise EmbeddedDatabaseError(
                f"PostgreSQL refuses to run as root, so we run it as 'nobody', who cannot run the programs in"
                f" {str(found)!r}. Make that folder readable for all, point PGCRON_PG_BIN at one that is,"
                " start as a plain user, or set DATABASE_URL to a database you have."
            )
        return copy

    # ---- Starting. Everything below runs under the lock of the home.

    def _start(self) -> None:
        if self._address is None:
            # Its address was deleted, so no client can find a server that still runs.
            self._stop("fast")
        if self.pid is None:
            self._create_cluster()
            self._launch()
        if not wait_until(lambda: self._answers(self.socket_url), 30):
            raise EmbeddedDatabaseError(self._complaint("the embedded database runs but does not answer"))
        self._agree_on_password()

    def _create_cluster(self) -> None:
        if self._folder != self.home:
            own_folder(self._folder, 0o755)
        if self.data_directory.exists():
            return
        # Created under another name and renamed: if we are killed, an existing data directory is still complete.
        new = self.data_directory.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if user := server_user():
            os.chown(new, user["user"], user["group"])
        answer = run_program(
            self.bin_directory / "initdb",
            *("-D", new, "-U", "postgres", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256"),
            # The C locale exists on every machine, with the same sort order on all.
            *("-E", "UTF8", "--locale=C"),
            **server_user(),
        )
        if answer.returncode != 0:
            raise EmbeddedDatabaseError(f"initdb could not create {str(new)!r}: {answer.stderr.strip()}")
        new.rename(self.data_directory)

    def _launch(self) -> None:
        if self._socket_directory != self.data_directory:
            own_folder(self._socket_directory, 0o700)
        deadline = now() + 30
        while not self._launched(port := self._choose_port()):
            complaint = self._complaint("the embedded database did not start")
            # Two errors are temporary: another program has just taken the port, or children of a killed server have
            # not ended yet.
            passes = not is_free(port) or "is still in use" in complaint
            if not passes or now() > deadline:
                raise EmbeddedDatabaseError(complaint)
            time.sleep(0.1)

    def _launched(self, port: int) -> bool:
        """Try once to start the server on `port`."""
        self._remember(port)
        self._clear_leftovers()
        pid = self._spawn(port)
        wait_until(lambda: is_gone(pid) or self._answers(self.socket_url), 60)
        return not is_gone(pid)

    def _clear_leftovers(self) -> None:
        # PostgreSQL trusts a lock file while its pid exists, and the pid of a zombie does. Without these files the
        # server still detects orphans that write to the data, by their shared memory.
        for leftover in (self.data_directory / "postmaster.pid", *self._socket_directory.glob(".s.PGSQL.*")):
            leftover.unlink(missing_ok=True)

    def _spawn(self, port: int) -> int:
        settings = {
            **self.settings,
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": str(self._socket_directory),
        }
        answer = run_program(
            # The shell forks and exits: the server gets another parent and a session without a terminal, so
            # Ctrl-C does not reach it and we need not reap it. pg_ctl does so too, but fails on a `$` in a path.
            *("/bin/sh", "-c", 'log=$1; shift; exec "$@" </dev/null >"$log" 2>&1 & echo $!', "sh"),
            self.data_directory / "server.log",
            *(self.bin_directory / "postgres", "-D", self.data_directory),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
            start_new_session=True,
            **server_user(),
        )
        return int(answer.stdout)

    def _agree_on_password(self) -> None:
        import psycopg
        from psycopg import sql

        _, password = self._known_address()
        with psycopg.connect(self.socket_url, **_PLAINLY) as conn:
            if conn.info.server_version >= 160000:
                # Iterations protect passwords that can be guessed. This one cannot be guessed, and iterations slow down
                # every connection.
                conn.execute("set local scram_iterations = 1")
            # Hashed here: the server logs statements that fail.
            verifier = conn.pgconn.encrypt_password(password.encode(), b"postgres", b"scram-sha-256").decode()
            conn.execute(sql.SQL("alter role postgres password {}").format(sql.Literal(verifier)))

    def _stop(self, mode: Mode) -> bool:
        pid = self.pid
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _SIGNALS[mode])
        if not wait_until(lambda: is_gone(pid), 60):
            raise EmbeddedDatabaseError(
                f"the embedded database (pid {pid}) was signalled to stop ({mode}) and still runs after 60 s;"
                " 'smart' waits until every client has gone. Stop it with mode 'fast' or 'immediate'."
            )
        return True

    def _answers(self, url: str) -> bool:
        """Return True if the server at `url` serves our data: that of another project may have taken the port."""
        import psycopg

        try:
            with psycopg.connect(url, connect_timeout=5, **_PLAINLY) as conn:
                return conn.execute("show data_directory").fetchone() == (str(self.data_directory),)
        except psycopg.Error:
            return False

    def _complaint(self, what: str) -> str:
        log = self.data_directory / "server.log"
        try:
            lines = log.read_text(errors="replace").splitlines()[-5:]
        except FileNotFoundError:
            lines = ["(nothing was logged)"]
        return f"{what}. The end of {str(log)!r}:\n  " + "\n  ".join(lines)

    # ---- Places and addresses.

    @functools.cached_property
    def _folder(self) -> Path:
        if self._outside is not None:
            return self._outside
        home = self.home.resolve()
        return ROOTS_PLACE / f"pgcron-{digest(home)}" if is_root() else home

    @functools.cached_property
    def _socket_directory(self) -> Path:
        if len(os.fsencode(self.data_directory)) <= _MAX_SOCKET_DIRECTORY:
            return self.data_directory
        return _SHORT_PLACE / f"pgcron-{digest(self.data_directory)}"

    @property
    def _address_file(self) -> Path:
        return self.home / f"{self.data_directory.name}.json"

    @property
    def _address(self) -> tuple[int, str] | None:
        """Port and password. They survive a stop and a reset, so that URLs in other terminals stay valid."""
        try:
            check_own_folder(self.home, self.home.stat())
            address = json.loads(read_own_file(self._address_file))
            return int(address["port"]), str(address["password"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        except OSError as error:
            raise self._unusable(error) from error

    def _known_address(self) -> tuple[int, str]:
        if (address := self._address) is None:
            raise EmbeddedDatabaseError(
                f"the embedded database in {str(self.home)!r} has no address yet; call start() first"
            )
        return address

    def _remember(self, port: int) -> None:
        known = self._address
        # A client that does not insist on SCRAM may have sent the old password to another program on the old port.
        password = known[1] if known is not None and known[0] == port else secrets.token_hex(16)
        write_own_file(self._address_file, json.dumps({"port": port, "password": password}))

    def _choose_port(self) -> int:
        # Below the ports that systems give to outgoing connections (from 32768 on): a client that keeps trying
        # such a port while the server is down may get that port itself, connect to itself, and the server could not
        # use it.
        first = 20_000 + int(digest(self.data_directory), 16) % 10_000
        remembered = [self._address[0]] if self._address else []
        wanted: list[int] = [*remembered, *range(first, 32_768)]
        return next(port for port in wanted if is_free(port))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of this home. The kernel releases it if we are killed."""
        import fcntl

        self._make_home()
        file = self.home / "lock"
        try:
            lock = open_own_file(file, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            # Polled: a blocking flock would stop every greenlet, the holder's too.
            def taken() -> bool:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                return False

            if not wait_until(taken, 120):
                raise EmbeddedDatabaseError(f"another process has held {str(file)!r} for 120 s; is it stuck?")
            yield
        finally:
            os.close(lock)

    def _make_home(self) -> None:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_own_folder(self.home, self.home.stat())
            # Only in an empty folder: in another one this line would hide the user's files from git.
            if not any(self.home.iterdir()):
                (self.home / ".gitignore").write_text("*\n")
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> EmbeddedDatabaseError:
        return EmbeddedDatabaseError(
            f"cannot use {str(self.home)!r} for the embedded database: {error}. Name a folder of yours"
            " (one made by root is root's), or set DATABASE_URL to a database you have."
        )
