"""One PostgreSQL cluster in one folder: creating it, starting, reusing, stopping, and where it can be reached.

What is inside the database belongs to `pg/`.
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
    delete_folder,
    digest,
    is_free,
    is_gone,
    is_root,
    now,
    own_folder,
    process_of,
    run_program,
    server_user,
    wait_until,
)

Mode = Literal["fast", "immediate", "smart"]

_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_SHORT_PLACE = Path("/tmp")
# The name of a unix socket, `/.s.PGSQL.12345` included, must fit into 103 bytes on macOS and 107 on Linux.
_LONGEST_SOCKET_DIRECTORY = 85

# Nothing the environment may ask of libpq (PGSSLMODE, PGSERVICE ...) applies to a server that speaks neither.
_PLAINLY: dict[str, Any] = {"sslmode": "disable", "gssencmode": "disable"}


class EmbeddedPostgres:
    """One PostgreSQL cluster in the folder `home`, shared by every process that names the same folder.

    The server outlives the process that started it, however that ends, until somebody calls `stop()`. TCP on
    the loopback address asks for a generated password, which is part of `url`; the unix socket asks for none
    and lies in a directory that only the server's user may enter. `settings` are server settings, and do not
    reach a server that already runs. `folder` is a place for the data outside of the home: memory, for tests.
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
        """Start the server, or find it running, and return its URL. Many may do so at once and share it."""
        with self._alone():
            if not self.is_alive():
                self._start()
        return self.url

    def stop(self, mode: Mode = "fast") -> bool:
        """Stop the server, its data stay; False if none ran. `immediate` is a crash, `smart` is patient."""
        if not self.home.is_dir():
            return False
        with self._alone():
            return self._stop(mode)

    def restart(self, mode: Mode = "fast") -> None:
        """Stop and start again. The URL stays the same unless a stranger takes the port in between."""
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
        """Whether the server answers at `url`, asked by connecting: pids may be zombies, ports strangers'."""
        return self._address is not None and self._answers(self.url)

    @property
    def url(self) -> str:
        """Where to connect by TCP, with the password."""
        port, password = self._known_address()
        return f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres"

    @property
    def socket_url(self) -> str:
        """Where to connect by the unix socket: for this user (and root) only, without a password."""
        port, _ = self._known_address()
        host = quote(str(self._socket_directory), safe="")
        return f"postgresql://postgres@/postgres?host={host}&port={port}"

    @property
    def pid(self) -> int | None:
        """The server's process id, if that process lives and really is the server of this data directory."""
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
            # Its address was deleted, so nobody can find that server any more.
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
        # Made beside its place and renamed, so that data which is there is whole, whenever we are killed.
        new = self.data_directory.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if user := server_user():
            os.chown(new, user["user"], user["group"])
        answer = run_program(
            self.bin_directory / "initdb",
            *("-D", new, "-U", "postgres", "--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256"),
            # The C locale is there on every machine, and sorts alike on all of them.
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
            # Two things pass: a port lost in a race, and a killed server's children, which take a moment to
            # die.
            passes = not is_free(port) or "is still in use" in complaint
            if not passes or now() > deadline:
                raise EmbeddedDatabaseError(complaint)
            time.sleep(0.1)

    def _launched(self, port: int) -> bool:
        """One try to bring the server up on `port`."""
        self._remember(port)
        self._clear_leftovers()
        pid = self._spawn(port)
        wait_until(lambda: is_gone(pid) or self._answers(self.socket_url), 60)
        return not is_gone(pid)

    def _clear_leftovers(self) -> None:
        # PostgreSQL believes a lock file as long as its pid exists, and a zombie's does. The other guard
        # stays, that no orphan still writes to the data: the server finds their shared memory without these
        # files.
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
            # The shell forks and leaves: the server gets another parent and a session without a terminal, so
            # Ctrl-C misses it and we need not reap it. pg_ctl does so too, but trips over a `$` in a path.
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
            conn.execute("set local password_encryption = 'scram-sha-256'")
            if conn.info.server_version >= 160000:
                # Iterations protect passwords that can be guessed. This one cannot, and every connection
                # pays.
                conn.execute("set local scram_iterations = 1")
            conn.execute(sql.SQL("alter role postgres password {}").format(sql.Literal(password)))

    def _stop(self, mode: Mode) -> bool:
        pid = self.pid
        if pid is None:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _SIGNALS[mode])
        if not wait_until(lambda: is_gone(pid), 60):
            raise EmbeddedDatabaseError(
                f"the embedded database (pid {pid}) was told to stop ({mode}) and still runs after 60 s;"
                " 'smart' waits until every client has gone. Stop it with mode 'fast' or 'immediate'."
            )
        return True

    def _answers(self, url: str) -> bool:
        """Whether the server at `url` serves our data: another project's may have taken the port."""
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
        if len(os.fsencode(self.data_directory)) <= _LONGEST_SOCKET_DIRECTORY:
            return self.data_directory
        return _SHORT_PLACE / f"pgcron-{digest(self.data_directory)}"

    @property
    def _address_file(self) -> Path:
        return self.home / f"{self.data_directory.name}.json"

    @property
    def _address(self) -> tuple[int, str] | None:
        """Port and password. They outlive a stop and a reset, so that URLs in other terminals stay right."""
        try:
            address = json.loads(self._address_file.read_text())
            return int(address["port"]), str(address["password"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _known_address(self) -> tuple[int, str]:
        if (address := self._address) is None:
            raise EmbeddedDatabaseError(
                f"the embedded database in {str(self.home)!r} has no address yet; call start() first"
            )
        return address

    def _remember(self, port: int) -> None:
        _, password = self._address or (port, secrets.token_hex(16))
        draft = self._address_file.with_suffix(".new")
        draft.unlink(missing_ok=True)
        with open(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            json.dump({"port": port, "password": password}, file)
        draft.replace(self._address_file)

    def _choose_port(self) -> int:
        # Below the ports that systems give to outgoing connections (from 32768 on): a client that keeps
        # trying such a port while the server is down may be given that very port, connect to itself and keep
        # the server out.
        first = 20_000 + int(digest(self.data_directory), 16) % 10_000
        remembered = [self._address[0]] if self._address else []
        wanted: list[int] = [*remembered, *range(first, 32_768)]
        return next(port for port in wanted if is_free(port))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of this home. The kernel gives it back if we are killed."""
        import fcntl

        self._make_home()
        with open(self.home / "lock", "w") as lock:
            # Asked again and again: a blocking flock would stop every greenlet, the holder's too.
            def taken() -> bool:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return True
                return False

            if not wait_until(taken, 120):
                raise EmbeddedDatabaseError(f"another process has held {lock.name!r} for 120 s; is it stuck?")
            yield

    def _make_home(self) -> None:
        try:
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Only where there is nothing yet: in a folder of yours this line would hide your files from git.
            if not any(self.home.iterdir()):
                (self.home / ".gitignore").write_text("*\n")
            (self.home / "lock").touch(mode=0o600)
        except OSError as error:
            raise EmbeddedDatabaseError(
                f"cannot use {str(self.home)!r} for the embedded database: {error}. Name a folder of yours"
                " (one made by root is root's), or set DATABASE_URL to a database you have."
            ) from error
