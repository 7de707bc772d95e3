"""Addresses: what we add to a URL, and that no way of getting it wrong shows its password."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support import free_port

from pgcron_lite import PgCron
from pgcron_lite.errors import ConfigError, DatabaseUnavailable
from pgcron_lite.pg.address import LIVELINESS, address, redacted
from pgcron_lite.pg.link import Link
from pgcron_lite.pg.migrate import state

# Stands for a password in everything below; nothing that we print may contain it, or a part of it.
CANARY = "c4nary"

MALFORMED = [
    f"postgresql://ada:{CANARY}%ZZ@host/shop",
    f"postgresql://ada:{CANARY}@host:port/shop",
    f"postgresql://ada:{CANARY}@[::1/shop",
    f"postgresql://ada:{CANARY}@host/shop?unknown=1",
    f"postgresql://ada:{CANARY}@host/shop?sslmode",
    f"postgresql://ada:{CANARY}@@host/shop?x=1",
    f"postgresql://ada:pa@{CANARY}@host/shop?x=1",
    f"postgresql://ada:pa:{CANARY}@host/shop?x=1",
    f"postgresql://ada:{CANARY}/with/slashes@host:port/shop",
    f"postgresql://ada:{CANARY}#fragment@host:port/shop",
    f"postgresql://ada:{CANARY}?query=1@host/shop",
    f"postgresql://host/shop?user=ada&password={CANARY}&x=1",
    f"postgresql://host/shop?passfile=%ZZ&password={CANARY}",
    f"postgres+psycopg://ada:{CANARY}@host/shop",
    f"postgresql+psycopg2://ada:{CANARY}@host/shop",
    f"postgrsql://ada:{CANARY}@host/shop",
    f"mysql://ada:{CANARY}@host/shop",
    f"//ada:{CANARY}@host/shop",
    f"ada:{CANARY}@host/shop",
    f"host=db password={CANARY} nonsense",
    f"host=db password='{CANARY} with spaces' nonsense=1",
    f"host=db password='{CANARY} \\' quoted' nonsense=1",
    f"host=db PASSWORD = {CANARY} x",
    f"host=db password='{CANARY}",
    f"postgresql:ada:{CANARY}@host/shop",
    f"postgresql://ada:{CANARY}@host/shop\nsecond line",
]


def everything_said(error: BaseException | None) -> str:
    """The error and all that led to it, as a traceback would print it."""
    said = []
    while error is not None:
        said.append(f"{error!r} {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(said)


@pytest.mark.parametrize("url", MALFORMED)
def test_no_malformed_url_shows_its_password(url: str) -> None:
    try:
        shown = str(address(url, application="test"))
    except ConfigError as error:
        shown = everything_said(error)

    assert CANARY not in shown


@pytest.mark.parametrize("url", MALFORMED)
def test_nor_does_it_by_the_app_that_was_given_it(url: str) -> None:
    app = PgCron("shop", url=url)

    with pytest.raises((ConfigError, DatabaseUnavailable)) as caught:
        app.store.now()

    assert CANARY not in everything_said(caught.value) + repr(app)


@pytest.mark.parametrize("url", MALFORMED)
def test_what_is_taken_out_of_a_url_is_the_password(url: str) -> None:
    assert CANARY not in redacted(url)


@pytest.mark.row(48)
@pytest.mark.parametrize("port", [None, 1], ids=["nobody listens", "port of another kind"])
def test_a_failed_connection_names_the_host_and_not_the_password(port: int | None) -> None:
    where = address(f"postgresql://ada:{CANARY}@127.0.0.1:{port or free_port()}/shop", application="test")

    with pytest.raises(DatabaseUnavailable) as by_link:
        Link(where, "pgcron").rows("select 1")
    with pytest.raises(DatabaseUnavailable) as by_migrate:
        state(where)

    for caught in (by_link, by_migrate):
        assert "127.0.0.1" in str(caught.value)
        assert CANARY not in everything_said(caught.value)


def test_a_wrong_password_is_not_repeated(pg_url: str) -> None:
    parts = pg_url.split("@")
    where = address(f"postgresql://postgres:{CANARY}@{parts[1]}", application="test")

    with pytest.raises(DatabaseUnavailable, match="password authentication failed") as caught:
        Link(where, "pgcron").rows("select 1")

    assert CANARY not in everything_said(caught.value)


@pytest.mark.row(43)
def test_a_url_says_how_alive_its_connections_must_be_unless_it_has_its_own_opinion() -> None:
    plain = conninfo_to_dict(address("postgresql://host/shop", application="test").conninfo)
    opinionated = conninfo_to_dict(
        address("postgresql://host/shop?keepalives_idle=60&application_name=mine", application="test").conninfo
    )

    assert {name: str(plain[name]) for name in LIVELINESS} == LIVELINESS
    assert plain["application_name"] == "test"
    assert (opinionated["keepalives_idle"], opinionated["application_name"]) == ("60", "mine")


@pytest.mark.row(60)
def test_no_start_up_option_is_sent_that_a_pooler_refuses() -> None:
    conninfo = conninfo_to_dict(address("postgresql://host/shop", application="test").conninfo)

    assert "options" not in conninfo
    assert "client_encoding" not in conninfo


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:secret@db.example.org:6432/shop", "db.example.org:6432/shop"),
        ("postgres://db.example.org/shop", "db.example.org:5432/shop"),
        ("host=db dbname=shop password=secret", "db:5432/shop"),
        ("postgresql:///shop", "local socket:5432/shop"),
        ("postgresql://a:secret@one:1,two:2/shop?target_session_attrs=read-write", "one,two:1,2/shop"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert str(address(url, application="test")) == shown


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("postgresql+psycopg://host/shop", "leave out the driver, postgresql:// is enough"),
        ("postgres+asyncpg://host/shop", "leave out the driver, postgres:// is enough"),
        ("postgrsql://host/shop", "did you mean 'postgresql'?"),
        ("postgresql://ada:a%b@host/shop", "special characters in the password are written as %XX"),
    ],
)
def test_a_refusal_says_what_would_be_right(url: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        address(url, application="test")

    assert hint in str(caught.value)
    assert "the database URL is not a PostgreSQL URL" in str(caught.value)


def test_a_password_that_libpq_can_read_connects_whatever_is_in_it(pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("create role odd login password 'a@b:c/d%e f''g'")
    try:
        host = pg_url.partition("@")[2]
        link = Link(address(f"postgresql://odd:a%40b%3Ac%2Fd%25e%20f%27g@{host}", application="test"), "pgcron")
        assert link.rows("select current_user as who")[0].who == "odd"
        link.close()
    finally:
        with psycopg.connect(pg_url, autocommit=True) as conn:
            conn.execute("drop role odd")
