"""A primary with a streaming standby on the loopback address, which tests cut off, stall and promote.

    with pair(tmp_path) as pair:
        pair.make_synchronous()
        pair.primary.stop("immediate")
        pair.promote()

The standby is a copy by `pg_basebackup`. Both servers are removed at the end of the test, or of the test run.
"""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql
from servers import FAST, GUARD, place_in_memory, server, wanted_version
from support import eventually, running

from pgcron_lite.embedded import EmbeddedPostgres
from pgcron_lite.embedded.system import own_folder, run_program, server_user

# What a server on a busy machine may take to start, to copy, to catch up or to be promoted.
PATIENCE = 30.0


class Standby(EmbeddedPostgres):
    """A server whose data, and whose password, are copied from another server."""

    def copy_from(self, primary: EmbeddedPostgres) -> Self:
        """Make the copy. The server is not started."""
        parts = urlsplit(primary.url)
        self._make_home()
        port = self._choose_port()
        self._address_file.write_text(json.dumps({"port": port, "password": parts.password}))
        if self._folder != self.home:
            own_folder(self._folder, 0o755)
        self.data_directory.mkdir(mode=0o700)
        if user := server_user():
            os.chown(self.data_directory, user["user"], user["group"])
        answer = run_program(
            self.bin_directory / "pg_basebackup",
            *("-D", self.data_directory, "-d", f"{primary.url}?application_name=standby"),
            *("--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"),
            **server_user(),
        )
        assert answer.returncode == 0, answer.stderr
        return self

    def _agree_on_password(self) -> None:
        """The password has come with the copy, and a standby would refuse to change it."""


class Pair:
    """A running primary and its running standby."""

    def __init__(self, primary: EmbeddedPostgres, standby: Standby) -> None:
        self.primary = primary
        self.standby = standby

    @property
    def url(self) -> str:
        """Both servers in one URL, the primary first. It says nothing about which of them is wanted."""
        first, second = urlsplit(self.primary.url), urlsplit(self.standby.url)
        places = f"{first.hostname}:{first.port},{second.hostname}:{second.port}"
        return urlunsplit(first._replace(netloc=f"{first.username}:{first.password}@{places}"))

    def on_primary(self, query: Any, *values: object) -> list[Any]:
        """Run a statement on the primary, by a connection of its own."""
        return _run(self.primary.url, query, values)

    def on_standby(self, query: Any, *values: object) -> list[Any]:
        """Run a statement on the standby, by a connection of its own."""
        return _run(self.standby.url, query, values)

    def make_synchronous(self) -> None:
        """From now on a commit on the primary waits until the standby has it."""
        self._set_on_primary("synchronous_standby_names", "*")
        eventually(lambda: self.on_primary("select from pg_stat_replication where sync_state = 'sync'"), PATIENCE)

    def make_asynchronous(self) -> None:
        """From now on a commit on the primary does not wait for the standby; those that wait are released."""
        self._set_on_primary("synchronous_standby_names", "")

    def catch_up(self) -> None:
        """Wait until the standby has, and shows, everything that the primary has committed until now."""
        ((wanted,),) = self.on_primary("select pg_current_wal_lsn()::text")
        eventually(lambda: self.on_standby("select %s::pg_lsn <= pg_last_wal_replay_lsn()", wanted)[0][0], PATIENCE)

    def detach(self) -> None:
        """The standby receives nothing from now on, as if the line between the two were cut."""
        with psycopg.connect(self.standby.url, autocommit=True) as conn:
            conn.execute("alter system set primary_conninfo = ''")
            conn.execute("select pg_reload_conf()")
        eventually(lambda: not self.on_primary("select from pg_stat_replication"), PATIENCE)

    @contextlib.contextmanager
    def stalled(self) -> Iterator[None]:
        """The standby stays connected and confirms nothing: synchronous commits wait as long as the block lasts."""
        ((receiver,),) = self.on_standby("select pid from pg_stat_wal_receiver")
        os.kill(receiver, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(receiver, signal.SIGCONT)

    def promote(self) -> None:
        """Make the standby a primary. The old one is to be stopped before, or there are two."""
        assert self.on_standby("select pg_promote(true, %s)", int(PATIENCE))[0][0]
        eventually(lambda: not self.on_standby("select pg_is_in_recovery()")[0][0], PATIENCE)

    def _set_on_primary(self, name: str, value: str) -> None:
        with psycopg.connect(self.primary.url, autocommit=True) as conn:
            conn.execute(sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value)))
            conn.execute("select pg_reload_conf()")


@contextlib.contextmanager
def pair(folder: Path, **settings: str) -> Iterator[Pair]:
    """A primary and its standby below `folder`, with further settings for both servers."""
    with server(folder / "primary", max_connections="100", **settings) as primary:
        version, place = wanted_version(), place_in_memory()
        own = {**FAST, "max_connections": "100", **settings}
        standby = Standby(folder / "standby", version=version, settings=own, folder=place)
        with running(GUARD, standby.home, version, place or "", start_new_session=True) as guard:
            try:
                standby.copy_from(primary).start()
                both = Pair(primary, standby)
                streams = "select from pg_stat_replication where state = 'streaming'"
                eventually(lambda: both.on_primary(streams), PATIENCE)
                yield both
            finally:
                guard.communicate(timeout=60)
        assert guard.returncode == 0, "a standby of the tests was not cleaned away"


def _run(url: str, query: Any, values: tuple[object, ...]) -> list[Any]:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(query, values or None)
        return [] if cursor.description is None else cursor.fetchall()
