from datetime import timedelta
from typing import Any

import pytest

from pgcron_lite import PgCron, config
from pgcron_lite.errors import ConfigError, SetupFinished
from pgcron_lite.worker import process


def test_nothing_given_means_the_defaults() -> None:
    assert config.from_environment({}) == config.Settings()


def test_the_environment_is_read_by_name() -> None:
    settings = config.from_environment(
        {"PGCRON_SLOTS": "20", "PGCRON_QUEUES": "mail, reports", "PGCRON_GRACE": "10", "PGCRON_NOTIFY": "off"}
    )

    assert settings.slots == 20
    assert settings.queues == ("mail", "reports")
    assert settings.grace == timedelta(seconds=10)
    assert settings.notify is False


def test_database_url_is_the_fallback_of_pgcron_database_url() -> None:
    assert config.from_environment({"DATABASE_URL": "postgres://a/b"}).database_url == "postgres://a/b"
    both = {"DATABASE_URL": "postgres://a/b", "PGCRON_DATABASE_URL": "postgres://c/d"}
    assert config.from_environment(both).database_url == "postgres://c/d"


@pytest.mark.parametrize("name", config.DIRECT_NAMES)
def test_what_providers_call_the_direct_url_is_known(name: str) -> None:
    assert config.from_environment({name: "postgres://direct/x"}).direct_url == "postgres://direct/x"


def test_an_empty_variable_is_no_value() -> None:
    empty = {"PGCRON_SLOTS": "", "DATABASE_URL": "", "PGCRON_QUEUES": ""}

    assert config.from_environment(empty) == config.Settings()


@pytest.mark.parametrize("queues", ["", ",", " ", [], [""], ["mail", ""], ()])
def test_no_queue_by_name_is_not_every_queue(queues: Any) -> None:
    app = PgCron("shop", url="memory://")

    with pytest.raises(ConfigError, match=r"or \* for every queue"):
        process.run_worker(app, queues=queues, drain=True)
    with pytest.raises(ConfigError, match=r"or \* for every queue"):
        PgCron("shop", queues=queues)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PGCRON_SLOTS", "many", "whole number"),
        ("PGCRON_SLOTS", "0", "whole number"),
        ("PGCRON_GRACE", "soon", "PGCRON_GRACE='soon'"),
        ("PGCRON_SCHEMA", "Public; drop", "plain lower-case name"),
        ("PGCRON_SCHEMA", "pg_temp", "pg_"),
        ("PGCRON_NOTIFY", "maybe", "yes or no"),
        ("PGCRON_LEASE", "0", "at least"),
    ],
)
def test_a_value_that_cannot_be_right_is_refused_by_its_variable(name: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        config.from_environment({name: value})

    assert name in str(refused.value)


def test_what_is_given_in_code_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCRON_SLOTS", "3")

    assert PgCron(slots=7).settings.slots == 7
    assert PgCron().settings.slots == 3


def test_a_misspelt_setting_is_refused_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match="did you mean 'slots'"):
        PgCron(slot=7)  # type: ignore[arg-type, unused-ignore]


def test_a_url_is_never_repeated_in_an_error() -> None:
    with pytest.raises(ConfigError) as refused:
        PgCron(database_url=b"postgres://u:canary@h/d")

    assert "canary" not in str(refused.value)


def test_no_database_is_a_sentence_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "PGCRON_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)

    with pytest.raises(ConfigError, match="pgcron dev"):
        PgCron().store.now()


def test_settings_may_come_later_but_not_after_the_first_use() -> None:
    app = PgCron(url="memory://", slots=2)

    app.configure(slots=5, poll="1s")

    assert (app.settings.slots, app.settings.poll) == (2, timedelta(seconds=1))
    with pytest.raises(SetupFinished):
        app.configure(slots=6)


@pytest.mark.parametrize("given", [{"connections": 0}, {"payload_limit": "x"}, {"keep_done": "-1d"}])
def test_every_reader_refuses_nonsense(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PgCron(**given)
