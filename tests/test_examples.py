"""The examples run and print what they say; the files for hosts are what the hosts can read."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import eventually

import pgcron_lite

EXAMPLES = Path(__file__).parents[1] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))
DEPLOY = EXAMPLES / "deploy"


def environment(url: str) -> dict[str, str]:
    paths = [str(Path(pgcron_lite.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PGCRON_DATABASE_URL": url, "PGCRON_POLL": "0.5s", "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def worker(module: str, url: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", "pgcron_lite", "-A", module, "worker"], cwd=EXAMPLES, env=environment(url)
    )
    try:
        yield
    finally:
        process.terminate()
        assert process.wait(40) == 0


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_an_example_prints_what_it_says(program: Path, pg_url: str) -> None:
    text = program.read_text("utf-8")
    expected = re.findall(r"# prints: (.*)", text)
    helper = contextlib.nullcontext() if "run_worker(" in text else worker(program.stem, pg_url)

    with helper:
        ended = subprocess.run(
            [sys.executable, program.name],
            cwd=EXAMPLES, env=environment(pg_url), capture_output=True, text=True, timeout=90, check=False,
        )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert expected
    assert ended.stdout.splitlines() == expected


def test_every_example_is_one_that_is_tested() -> None:
    assert {"hello.py", "retries.py", "transactions.py"} <= {program.name for program in PROGRAMS}


def test_the_smallest_example_is_small() -> None:
    body = (EXAMPLES / "hello.py").read_text("utf-8").partition('"""\n\n')[2]

    assert len([line for line in body.splitlines() if line.strip()]) <= 9


# The shop in Flask.


@pytest.fixture
def shop(pg_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    pytest.importorskip("flask_sqlalchemy")
    monkeypatch.syspath_prepend(str(EXAMPLES / "flask_app"))
    monkeypatch.delenv("PGCRON_DATABASE_URL", raising=False)
    import shop as module

    app = module.create_app(pg_url)
    with app.app_context():
        module.db.create_all()
    yield app
    with app.app_context():
        module.db.engine.dispose()
    module.cron.close()
    del sys.modules["shop"]


def test_the_shop_confirms_an_order_in_the_background(shop: Any) -> None:
    from pgcron_lite.worker import process

    client = shop.test_client()
    number = client.post("/orders", data={"email": "ada@example.org"}).json["order"]
    before = client.get(f"/orders/{number}").json
    process.run_worker(shop.extensions["pgcron"], drain=True)

    assert before == {"confirmed": False}
    assert client.get(f"/orders/{number}").json == {"confirmed": True}


def test_an_order_that_fails_leaves_no_job_in_the_shop(shop: Any) -> None:
    answer = shop.test_client().post("/orders", data={"email": "nobody"})

    assert answer.status_code == 500
    assert list(shop.extensions["pgcron"].store.queues()) == []


def test_the_processes_of_the_shop_start_as_its_procfile_says(empty_pg_url: str, tmp_path: Path) -> None:
    pytest.importorskip("flask_sqlalchemy")
    lines = dict(line.split(": ", 1) for line in (EXAMPLES / "flask_app" / "Procfile").read_text().splitlines())
    env = {**environment(""), "DATABASE_URL": empty_pg_url}
    del env["PGCRON_DATABASE_URL"]
    flask = f"{sys.executable} -m flask"
    if not has_command():
        pytest.skip("`flask jobs` needs the package to be installed, with its entry point")

    release = lines["release"].replace("flask --app", f"{flask} --app")
    subprocess.run(release, shell=True, cwd=EXAMPLES / "flask_app", env=env, check=True, timeout=90)
    said = tmp_path / "worker.log"
    with said.open("w") as log:
        started = [*flask.split(), *lines["worker"].split()[1:]]
        process = subprocess.Popen(
            started, cwd=EXAMPLES / "flask_app", env=env, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        eventually(lambda: "shop.confirm" in said.read_text(), within=30)
    finally:
        process.terminate()
        code = process.wait(40)

    assert code == 0, said.read_text()


def has_command() -> bool:
    from importlib.metadata import entry_points

    return any(point.name == "jobs" for point in entry_points(group="flask.commands"))


# The files for hosts.


def test_every_host_gives_a_worker_more_time_than_its_grace() -> None:
    grace = pgcron_lite.PgCron().settings.grace.total_seconds()
    unit, fly = (DEPLOY / "pgcron-worker.service").read_text(), tomllib.loads((DEPLOY / "fly.toml").read_text())
    times = [
        *re.findall(r"TimeoutStopSec=(\d+)", unit),
        fly["kill_timeout"].rstrip("s"),
        *re.findall(r"stop_grace_period: (\d+)s", (DEPLOY / "docker-compose.yml").read_text()),
        *re.findall(r"maxShutdownDelaySeconds: (\d+)", (DEPLOY / "render.yaml").read_text()),
    ]

    assert len(times) == 4
    assert all(int(seconds) > grace for seconds in times)
    assert fly["kill_signal"] == "SIGTERM"


@pytest.mark.parametrize("name", ["docker-compose.yml", "render.yaml"])
def test_the_yaml_files_can_be_read(name: str) -> None:
    assert "services" in yaml.safe_load((DEPLOY / name).read_text())


STARTS = {
    "Procfile": {"migrate", "worker"}, "docker-compose.yml": {"migrate", "worker"}, "fly.toml": {"migrate", "worker"},
    "render.yaml": {"migrate", "worker"}, "pgcron-worker.service": {"worker"}, "pgcron-migrate.service": {"migrate"},
    "roles.sql": set(),
}  # fmt: skip


@pytest.mark.parametrize("file", sorted(DEPLOY.iterdir()), ids=lambda file: file.name)
def test_every_file_starts_commands_that_exist(file: Path) -> None:
    from pgcron_lite.cli import COMMANDS

    text = file.read_text()
    words = re.findall(r"pgcron(?:\", \"| )([a-z]+)\b", re.sub(r"^(#|--).*$", "", text, flags=re.MULTILINE))

    assert set(words) == STARTS[file.name] & set(COMMANDS)


UNITS = sorted(DEPLOY.glob("*.service"))


@pytest.fixture
def systemd_analyze() -> str:
    return shutil.which("systemd-analyze") or pytest.skip("needs systemd-analyze")


@pytest.fixture(params=UNITS, ids=lambda unit: unit.name)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit whose program exists."""
    copy: Path = tmp_path / request.param.name
    copy.write_text(request.param.read_text().replace("/srv/shop/venv/bin/pgcron", "/bin/true"))
    return copy


def test_the_units_are_such_that_systemd_takes_them(systemd_analyze: str, unit: Path) -> None:
    said = subprocess.run([systemd_analyze, "verify", str(unit)], capture_output=True, text=True, check=False)

    assert (said.returncode, said.stderr) == (0, "")


def test_the_units_run_with_few_rights(systemd_analyze: str, unit: Path) -> None:
    # From 0 to 100; a service without any such setting has 92 or more.
    words = [systemd_analyze, "security", "--offline=yes", "--threshold=30", "--no-pager", str(unit)]
    said = subprocess.run(words, capture_output=True, text=True, check=False)

    assert said.returncode == 0, said.stdout[-400:] + said.stderr


def test_no_worker_of_a_deployment_runs_as_an_administrator_or_with_the_owners_password() -> None:
    services = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]
    worker = services["worker"]

    assert {name: services[name]["user"] for name in services if name != "db"} == dict.fromkeys(
        ("migrate", "rights", "worker"), "10001:10001"
    )
    assert "shop_worker:" in worker["environment"]["PGCRON_DATABASE_URL"]
    assert "OWNER" not in str(worker)
    assert all(re.search(r"^User=(?!root)", unit.read_text(), re.MULTILINE) for unit in UNITS)


def test_a_worker_under_the_roles_of_the_deployment_runs_jobs_and_alters_nothing(empty_pg_url: str) -> None:
    import psycopg

    from pgcron_lite.embedded import find_binaries

    services = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]
    secrets = {"OWNER_PASSWORD": "owner's", "WORKER_PASSWORD": "worker"}
    place = empty_pg_url.rpartition("@")[2]
    owner, worker = f"postgresql://shop_owner:owner%27s@{place}", f"postgresql://shop_worker:worker@{place}"

    def psql(url: str, *words: object) -> None:
        command = [find_binaries(18) / "psql", "-X", "-v", "ON_ERROR_STOP=1", "-d", url, *map(str, words)]
        subprocess.run(command, env={**os.environ, **secrets}, check=True, capture_output=True, timeout=60)

    def pgcron(url: str, *words: str) -> None:
        command = [sys.executable, "-m", "pgcron_lite", "-A", "hello", *words]
        subprocess.run(command, cwd=EXAMPLES, env=environment(url), check=True, capture_output=True, timeout=90)

    try:
        psql(empty_pg_url, "-f", DEPLOY / "roles.sql")
        pgcron(owner, "migrate")
        psql(owner, *services["rights"]["command"][1:])
        pgcron(worker, "enqueue", "hello.hello", "world")
        pgcron(worker, "worker", "--drain")

        with psycopg.connect(worker, autocommit=True) as conn:
            assert conn.execute("select state from pgcron.history").fetchall() == [("done",)]
            for statement in ("alter table pgcron.jobs add x int", "truncate pgcron.jobs", "drop schema pgcron"):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    conn.execute(statement)
    finally:
        with psycopg.connect(empty_pg_url, autocommit=True) as conn:
            conn.execute("drop owned by shop_owner, shop_worker cascade")
            conn.execute("drop role shop_owner, shop_worker")
