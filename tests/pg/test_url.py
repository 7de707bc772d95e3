"""Database URLs: settings added to them, refusals, and that a failed connection does not show the password."""

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from support import free_port

from pgcron_lite import PgCron
from pgcron_lite.errors import ConfigError, DatabaseUnavailable
from pgcron_lite.pg.connection import Connection
from pgcron_lite.pg.migrate import state
from pgcron_lite.pg.url import LIVELINESS, parse_url

# A password that nothing we print may contain. `test_secrets` has every form of a URL.
CANARY = "c4nary"


def full_text(error: BaseException | None) -> str:
    """Return the error and its chain as a traceback prints them."""
    texts = []
    while error is not None:
        texts.append(f"{error!r} {error}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(texts)


@pytest.mark.row(48)
@pytest.mark.parametrize("port", [None, 1], ids=["nobody listens", "port of another kind"])
def test_a_failed_connection_names_the_host_and_not_the_password(port: int | None) -> None:
    where = parse_url(f"postgresql://ada:{CANARY}@127.0.0.1:{port or free_port()}/shop", application="test")

    with pytest.raises(DatabaseUnavailable) as by_link:
        Connection(where, "pgcron").rows("select 1")
    with pytest.raises(DatabaseUnavailable) as by_migrate:
        state(where)

    for caught in (by_link, by_migrate):
        assert "127.0.0.1" in str(caught.value)
        assert CANARY not in full_text(caught.value)


def test_a_wrong_password_is_not_shown(pg_url: str) -> None:
    parts = pg_url.split("@")
    where = parse_url(f"postgresql://postgres:{CANARY}@{parts[1]}", application="test")

    with pytest.raises(DatabaseUnavailable, match="password authentication failed") as caught:
        Connection(where, "pgcron").rows("select 1")

    assert CANARY not in full_text(caught.value)


@pytest.mark.row(43)
def test_keepalives_are_added_to_a_url_unless_it_sets_them() -> None:
    plain = conninfo_to_dict(parse_url("postgresql://host/shop", application="test").conninfo)
    opinionated = conninfo_to_dict(
        parse_url("postgresql://host/shop?keepalives_idle=60&application_name=mine", application="test").conninfo
    )

    assert {name: str(plain[name]) for name in LIVELINESS} == LIVELINESS
    assert plain["application_name"] == "test"
    assert (opinionated["keepalives_idle"], opinionated["application_name"]) == ("60", "mine")


@pytest.mark.row(60)
def test_no_start_up_option_is_sent_that_a_pooler_refuses() -> None:
    conninfo = conninfo_to_dict(parse_url("postgresql://host/shop", application="test").conninfo)

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
        ("postgresql://a:secret@[fe80::1%25eth0]:5433/shop", "fe80::1%eth0:5433/shop"),
        ("postgresql://a:secret@%2Frun%2Fpg%401/shop", "/run/pg@1:5432/shop"),
        ("host=@abstract user=a password=secret", "@abstract:5432/"),
    ],
)
def test_an_address_is_shown_without_user_and_password(url: str, shown: str) -> None:
    assert str(parse_url(url, application="test")) == shown


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("postgresql+psycopg://host/shop", "leave out the driver, postgresql:// is enough"),
        ("postgres+asyncpg://host/shop", "leave out the driver, postgres:// is enough"),
        ("postgrsql://host/shop", "did you mean 'postgresql'?"),
        ("postgresql://ada:a%b@host/shop", "special characters in the password are written as %XX"),
        ("postgresql://ada:a@b@host/shop", "In a password, write @ as %40"),
        ("postgresql://ada:1/2@host/shop", "In a password, write @ as %40 and / as %2F"),
        ("postgresql://ada:12345678/shop", "its port is not a number from 1 to 65535"),
        ("postgresql://host/shop&password=secret", "The first option of a URL follows a ?"),
    ],
)
def test_a_refused_url_is_reported_with_a_hint(url: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url, application="test")

    assert hint in str(caught.value)
    assert "the database URL is not a PostgreSQL URL" in str(caught.value)


def test_a_password_with_any_characters_that_libpq_can_read_connects(pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("create role odd login password 'a@b:c/d%e f''g'")
    try:
        host = pg_url.partition("@")[2]
        connection = Connection(
            parse_url(f"postgresql://odd:a%40b%3Ac%2Fd%25e%20f%27g@{host}", application="test"), "pgcron"
        )
        assert connection.rows("select current_user as who")[0].who == "odd"
        connection.close()
    finally:
        with psycopg.connect(pg_url, autocommit=True) as conn:
            conn.execute("drop role odd")


# The source of the URL


@pytest.mark.parametrize(
    ("environ", "arguments", "source"),
    [
        ({"DATABASE_URL": "{url}"}, {}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://nowhere.invalid/db", "PGCRON_DATABASE_URL": "{url}"}, {},
         "PGCRON_DATABASE_URL"),
        ({"DATABASE_URL": "postgresql://nowhere.invalid/db"}, {"url": "{url}"}, "PgCron('shop', url=...)"),
    ],
)
def test_an_unreachable_database_is_reported_with_the_source_of_its_url(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], arguments: dict[str, str], source: str
) -> None:
    url = f"postgresql://ada:{CANARY}@127.0.0.1:{free_port()}/shop"
    for name in ("DATABASE_URL", "PGCRON_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value.format(url=url))
    app = PgCron("shop", **{name: value.format(url=url) for name, value in arguments.items()})

    with pytest.raises(DatabaseUnavailable) as caught:
        app.task(name="add")(lambda: None).delay()

    assert f"/shop (from {source}): " in str(caught.value)
    assert CANARY not in str(caught.value)
    app.close()


def test_later_settings_are_named_as_the_source() -> None:
    app = PgCron("shop")
    app.configure("the config of my app", database_url=f"postgresql://127.0.0.1:{free_port()}/shop")

    with pytest.raises(DatabaseUnavailable, match=r"\(from the config of my app\): "):
        app.task(name="add")(lambda: None).delay()

    app.close()


# Several hosts


@pytest.mark.row(55)
def test_several_hosts_default_to_the_primary() -> None:
    def wanted(url: str) -> object:
        return conninfo_to_dict(parse_url(url, application="test").conninfo).get("target_session_attrs")

    assert wanted("postgresql://ada@one/shop") is None
    assert wanted("postgresql://ada@one,two/shop") == "primary"
    assert wanted("postgresql://ada@one:1,two:2/shop") == "primary"
    assert wanted("host=one,two dbname=shop") == "primary"
    assert wanted("postgresql://ada@one,two/shop?target_session_attrs=read-write") == "read-write"
