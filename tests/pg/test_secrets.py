"""A database URL in every form, right and wrong: its password is in no error, log line, `repr` or output.

Each form contains the canary as its password or as a part of it. The whole chain of each exception is examined, its
suppressed contexts included, and its traceback as Python formats it.
"""

import logging
import os
import re
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from commands import Run, command, environment, runner
from psycopg import sql

from pgcron_lite import PgCron, config
from pgcron_lite.errors import ConfigError, DatabaseUnavailable, OptionError, PgCronError
from pgcron_lite.pg.migrate import state
from pgcron_lite.pg.url import parse_url

CANARY = "c4nary"

# URLs that libpq cannot read, or reads in another way than intended: part of the password becomes a host, port,
# database, user or option.
MALFORMED = [
    f"postgresql://ada:{CANARY}%ZZ@host/shop",
    f"postgresql://ada:{CANARY}@host:port/shop",
    f"postgresql://ada:{CANARY}@[::1/shop",
    f"postgresql://ada:{CANARY}@host/shop?unknown=1",
    f"postgresql://ada:{CANARY}@host/shop?sslmode",
    f"postgresql://ada:{CANARY}@@host/shop",
    f"postgresql://ada:{CANARY}@@host/shop?x=1",
    f"postgresql://ada:pa@{CANARY}@host/shop",
    f"postgresql://ada:pa@{CANARY}@host/shop?x=1",
    f"postgresql://ada:pa@{CANARY}@h1:1,h2:2/shop",
    f"postgresql://ada:pa@{CANARY}@[::1]:5432/shop",
    f"postgresql://ada:pa@{CANARY}@/shop?host=/tmp",
    f"postgresql://ada@server:{CANARY}@host/shop",
    f"postgresql://ada:pa:{CANARY}@host/shop?x=1",
    f"postgresql://ada:{CANARY}/with/slashes@host:port/shop",
    f"postgresql://ada:12/{CANARY}@host/shop",
    f"postgresql://ada:/{CANARY}@host/shop",
    f"postgresql://ada:12/3?{CANARY}@host/shop",
    f"postgresql://ada:{CANARY}#fragment@host:port/shop",
    f"postgresql://ada:{CANARY} space@host/shop",
    f"postgresql://ada:{CANARY}?query=1@host/shop?x",
    f"postgresql://ada:{CANARY}",
    f"postgresql://ada:{CANARY}/shop",
    f"postgresql://host/shop?user=ada&password={CANARY}&x=1",
    f"postgresql://host/shop?user=ada&password=pa&{CANARY}",
    f"postgresql://host/shop?passfile=%ZZ&password={CANARY}",
    f"postgresql://host/shop&password={CANARY}",
    f"postgresql://host&password={CANARY}/shop",
    f"postgresql://host:5432&password={CANARY}/shop",
    f"postgresql://ada&password={CANARY}@host/shop",
    f"postgresql://host/shop?application_name=x;password={CANARY}",
    f"postgresql://host/shop?host=ada:{CANARY}@db",
    f"postgresql://host/shop?hostaddr={CANARY}@db",
    f"postgres+psycopg://ada:{CANARY}@host/shop",
    f"postgresql+psycopg2://ada:{CANARY}@host/shop",
    f"{CANARY}+psycopg2://ada:{CANARY}@host/shop",
    f"postgrsql://ada:{CANARY}@host/shop",
    f"mysql://ada:{CANARY}@host/shop",
    f"jdbc:postgresql://host/shop?user=ada&password={CANARY}",
    f"//ada:{CANARY}@host/shop",
    f"ada:{CANARY}@host/shop",
    f"postgresql:ada:{CANARY}@host/shop",
    f"postgresql://ada:{CANARY}@host/shop\nsecond line",
    f"postgresql://ada:{CANARY}@host/shop\0more",
    f"postgresql://ada:{CANARY}\udc80@host/shop",
    f"host=db password={CANARY} nonsense",
    f"host=db password=pa {CANARY}",
    f"host=db password=pa {CANARY} dbname=shop",
    f"host=db password={CANARY} dbname=shop nonsense=1",
    f"host=db password='{CANARY} with spaces' nonsense=1",
    f"host=db password='{CANARY} \\' quoted' nonsense=1",
    f"host=db password='pa' {CANARY}' dbname=shop",
    f"host=db PASSWORD = {CANARY} x",
    f"host=db password='{CANARY}",
    f"host=db,password={CANARY}",
    f"host=db;password={CANARY}",
    f"Server=db;Password={CANARY};",
    f"host=db dbname='host=db password={CANARY}'",
    f"dbname='postgresql://ada:{CANARY}@host/shop'",
    f"dbname=postgresql://ada:{CANARY}",
    f"postgresql://ada:{CANARY}@host/shop?connect_timeout=soon",
    f"postgresql://ada:pa@host/shop?connect_timeout={CANARY}",
    f"host=db connect_timeout={CANARY}",
]

# URLs that are valid and lead nowhere.
DOWN = [
    f"postgresql://ada:{CANARY}@127.0.0.1:1/shop",
    f"postgres://ada:{CANARY}@127.0.0.1:1/shop",
    f"postgresql://ada:{CANARY}@127.0.0.1:1,127.0.0.1:2/shop?target_session_attrs=read-write",
    f"postgresql://ada:%63{CANARY[1:]}@127.0.0.1:1/shop",
    f"postgresql://ada:a%40{CANARY}%2Fb@127.0.0.1:1/shop",
    f"postgresql://ada:{CANARY}@[::1]:1/shop",
    f"postgresql://ada:{CANARY}@/shop?host=/nowhere",
    f"postgresql://ada:{CANARY}@%2Fnowhere/shop",
    f"postgresql://127.0.0.1:1/shop?user=ada&password={CANARY}",
    f"postgresql://:{CANARY}@127.0.0.1:1/shop",
    f"postgresql://ada:{CANARY}@127.0.0.1:1/shop?options=-c%20a.password%3Dx",
    f"postgresql://ada:{CANARY}@127.0.0.1:1/shop?sslmode={'x' * 3}",
    f"postgresql://ada:{CANARY}@127.0.0.1:1/shop?sslmode=verify-full&sslrootcert=/nowhere&sslpassword={CANARY}",
    f"postgresql://ada:{CANARY}@no-such-host.invalid/shop",
    f"postgresql://ada:{CANARY}@h1,h2:1,h3:2,h4/shop?port=1,2,3",
    f"host=127.0.0.1 port=1 user=ada password={CANARY} dbname=shop",
    f"host=127.0.0.1 port=1 password='{CANARY} \\'quoted\\'' user=ada",
    f"hostaddr=127.0.0.1 port=1 user=ada password = {CANARY}",
    f"service=no_such_service password={CANARY}",
    f"host=@nowhere user=ada password={CANARY}",
]


def full_text(error: BaseException | None) -> str:
    """Return the error, its whole chain, suppressed or not, and its traceback as Python prints it."""
    texts = ["".join(traceback.format_exception(error))] if error is not None else []
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            texts.append(f"{each!r} {each} {each.args!r} {getattr(each, '__notes__', '')}")
            waiting += [each.__cause__, each.__context__]
    # The traceback quotes lines of this file, which contain names of variables and not their values.
    return "\n".join(texts)


@pytest.mark.row("S13")
@pytest.mark.parametrize("url", MALFORMED)
def test_no_malformed_url_shows_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url, application="test")

    assert CANARY not in full_text(caught.value)


@pytest.mark.row("S13")
@pytest.mark.parametrize("url", MALFORMED + DOWN)
def test_an_app_with_a_url_that_leads_nowhere_shows_no_password(url: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    app = PgCron("shop", url=url, direct_url=url)

    with pytest.raises(PgCronError) as caught:
        app.store.now()

    assert CANARY not in full_text(caught.value) + repr(app) + repr(app.settings) + caplog.text


@pytest.mark.row("S13")
@pytest.mark.parametrize("url", DOWN)
def test_the_repr_of_an_address_has_no_password(url: str) -> None:
    assert CANARY in parse_url(url, application="test").conninfo
    assert CANARY not in repr(parse_url(url, application="test"))


def test_the_repr_of_settings_shows_all_but_the_urls() -> None:
    settings = config.from_environment({"DATABASE_URL": f"postgresql://u:{CANARY}@h/d", "PGCRON_SLOTS": "7"})

    assert CANARY not in repr(settings)
    assert "database_url=***" in repr(settings)
    assert "direct_url=None" in repr(settings)
    assert "slots=7" in repr(settings)
    assert set(config.READERS) <= set(re.findall(r"(\w+)=", repr(settings)))


@pytest.mark.parametrize("name", [f"postgresql://ada:{CANARY}@host/shop", f"postgresql://ada:{CANARY}@h/d".encode()])
def test_a_url_in_place_of_the_name_is_refused_without_being_shown(name: object) -> None:
    with pytest.raises(OptionError, match="the database is url=") as caught:
        PgCron(name)  # type: ignore[arg-type]

    assert CANARY not in full_text(caught.value)


# Host, port, database and user are shown on purpose.
NAMED = {"host", "hostaddr", "port", "dbname", "user"}
OPTIONS = sorted({option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()} - NAMED)


VALUES = [CANARY, "20261", f"-c {CANARY}=1", f"--{CANARY}", f"-c work_mem={CANARY}"]


@pytest.mark.row("S13")
@pytest.mark.parametrize("option", OPTIONS)
def test_no_error_shows_the_value_of_an_option(pg_url: str, option: str) -> None:
    # A valid number is in no error, but other numbers are, such as the pid of a process.
    numbers = ("keepalives", "tcp_user", "connect_timeout", "options")
    values = [each for each in VALUES if not (each.isdigit() and option.startswith(numbers))]
    texts = ""
    for value in values:
        for url in (pg_url, "postgresql://ada@127.0.0.1:1/shop", "postgresql://ada@127.0.0.1:1,127.0.0.2:1/shop"):
            for call in (lambda app: app.store.now(), lambda app: state(app.store.address)):
                app = PgCron("shop", url=f"{url}?{option}={quote(value)}")
                try:
                    call(app)
                except PgCronError as error:
                    texts += full_text(error)
                finally:
                    app.close()

    assert texts
    assert "20261" not in texts
    assert CANARY not in texts


def test_an_error_names_the_option_whose_value_is_wrong(pg_url: str) -> None:
    app = PgCron("shop", url=f"{pg_url}?sslmode={CANARY}")

    with pytest.raises(DatabaseUnavailable, match='invalid sslmode value: "<sslmode>"'):
        app.store.now()


# The command line.


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    (tmp_path / "shop.py").write_text(
        "from pgcron_lite import PgCron\napp = PgCron('shop')\n@app.task\ndef add(x: int, y: int): return x + y\n"
    )
    return runner(tmp_path, request)


def without_odd_characters(urls: list[str]) -> list[str]:
    """Return the URLs that an environment variable can hold."""
    return [url for url in urls if "\0" not in url and "\udc80" not in url]


@pytest.mark.row("S13")
@pytest.mark.parametrize("url", without_odd_characters(MALFORMED + DOWN))
def test_no_command_shows_the_password_of_a_url_that_leads_nowhere(run: Run, url: str) -> None:
    for words in (["health"], ["migrate"], ["jobs", "list"], ["enqueue", "shop.add", "1", "2"]):
        ended = run(*words, url=url)

        assert ended.returncode in (69, 78, 1), ended.stderr
        assert ended.stderr
        assert CANARY not in ended.stdout + ended.stderr
    for words in (["--help"], ["version"], ["version", "--json"], ["tasks", "list"]):
        ended = run(*words, url=url)

        assert CANARY not in ended.stdout + ended.stderr


@pytest.mark.row("S13")
@pytest.mark.parametrize(
    "url",
    [f"postgresql://ada:pa@{CANARY}@host/shop", f"host=db password=pa {CANARY}", f"postgresql://ada:{CANARY}@[::1]:1/d",
     f"postgresql://ada:{CANARY}@127.0.0.1:1/shop?sslmode=xxx",
     f"postgresql://ada@127.0.0.1:1/shop?sslmode={CANARY}", f"postgresql:///shop?service={CANARY}"],
)  # fmt: skip
def test_a_worker_that_cannot_start_shows_no_password(run: Run, url: str) -> None:
    for name in ("DATABASE_URL", "PGCRON_DIRECT_URL"):
        urls = {"DATABASE_URL": "postgresql://ada@127.0.0.1:1/shop", name: url}

        ended = run("worker", "--fail-fast", "--log-level", "debug", url=None, PGCRON_APP="shop:app", **urls)

        assert ended.returncode in (69, 78), ended.stdout + ended.stderr
        assert ended.stderr + ended.stdout
        assert CANARY not in ended.stdout + ended.stderr


@pytest.fixture
def login(pg_url: str) -> Iterator[dict[str, str]]:
    """Create a role whose password is the canary, and return the parts of a URL for it."""
    role = f"secret_{os.getpid()}"
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(sql.SQL("create role {} login superuser password {}").format(sql.Identifier(role), CANARY))
        folder = conn.execute("show unix_socket_directories").fetchone()
    given = psycopg.conninfo.conninfo_to_dict(pg_url)
    yield {"role": role, "port": str(given["port"]), "name": str(given["dbname"]), "folder": str(folder and folder[0])}
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


FORMS = {
    "uri": "postgresql://{role}:{CANARY}@127.0.0.1:{port}/{name}",
    "encoded": "postgresql://{role}:%63{TAIL}@127.0.0.1:{port}/{name}?application_name=mine",
    "hosts": "postgresql://{role}:{CANARY}@127.0.0.1:1,127.0.0.1:{port}/{name}?target_session_attrs=read-write",
    "query": "postgresql://127.0.0.1:{port}/{name}?user={role}&password={CANARY}&options=-c%20a.b%3Dc",
    "socket": "postgresql://{role}:{CANARY}@{SOCKET}:{port}/{name}",
    "keywords": "host=127.0.0.1 port={port} user={role} password={CANARY} dbname={name}",
    "service": "service=shop dbname={name}",
}


@pytest.mark.row("S13")
@pytest.mark.parametrize("form", FORMS)
def test_no_command_shows_the_password_of_a_url_that_works(
    form: str, login: dict[str, str], run: Run, tmp_path: Path
) -> None:
    url = FORMS[form].format(**login, CANARY=CANARY, TAIL=CANARY[1:], SOCKET=quote(login["folder"], safe=""))
    services = tmp_path / "services"
    services.write_text(f"[shop]\nhost=127.0.0.1\nport={login['port']}\nuser={login['role']}\npassword={CANARY}\n")
    env = environment(url, PGSERVICEFILE=str(services), PGCRON_APP="shop:app", PGCRON_LOG_LEVEL="debug")

    commands = ["worker", "--drain"], ["migrate"], ["health"], ["workers", "list"], ["dev", "--run", "shop.add 1 2"]
    for words in commands:
        ended = subprocess.run(
            command(*words), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
        )

        assert ended.returncode == (1 if words == ["health"] else 0), ended.stdout + ended.stderr
        assert CANARY not in ended.stdout + ended.stderr


def test_an_error_of_the_server_does_not_show_the_password(login: dict[str, str], run: Run) -> None:
    url = FORMS["uri"].format(**{**login, "name": "no_such_database"}, CANARY=CANARY)

    for words in (["health"], ["migrate"]):
        ended = run(*words, url=url)

        assert ended.returncode == 69
        assert "no_such_database" in ended.stderr
        assert CANARY not in ended.stdout + ended.stderr


def test_libpq_itself_shows_a_part_of_a_password() -> None:
    """Check the premise of the tests above: without it they would prove nothing."""
    with pytest.raises(psycopg.ProgrammingError, match=CANARY):
        psycopg.conninfo.conninfo_to_dict(f"host=db password=pa {CANARY}")
    with pytest.raises(psycopg.OperationalError, match=CANARY):
        psycopg.connect(f"postgresql://ada:pa@{CANARY}@host/shop")
