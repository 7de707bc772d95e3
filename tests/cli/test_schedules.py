"""`pgcron schedules`, `scheduler` and `health --schedules`: what they say and what they change."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from clock import START, Clock
from commands import Run, command, drain, environment, names, objects, runner
from support import eventually

from pgcron_lite.cli import health, schedule_status
from pgcron_lite.job import Job, Outcome, WorkerCard
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url
from pgcron_lite.schedules import schedule as schedule_module
from pgcron_lite.schedules import ticks
from pgcron_lite.schedules.schedule import Schedule, timing_of

# Its schedules are due when none of this runs any more.
SHOP = '''
from datetime import UTC, datetime

from pgcron_lite import PgCron

app = PgCron("shop")
FAR = datetime(2040, 3, 1, tzinfo=UTC)

@app.cron("0 0 29 2 *", tz="Europe/Berlin", name="leap", start=FAR)
def leap() -> str:
    return "jumped"

@app.cron("0 0 29 2 *", name="broken", start=FAR, max_attempts=1)
def boom() -> None:
    raise ValueError("bad luck")

@app.every("3650d", name="rare", enabled=False)
def rare() -> None: ...

@app.task(priority=5)
def digest(to: str, *more: str, copies: int = 1) -> list:
    return [to, *more, copies]
'''

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def run(folder: Path, request: pytest.FixtureRequest) -> Run:
    return runner(folder, request)


@pytest.fixture(scope="module")
def shop_template(databases: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a database in which a worker of the shop has put its schedules in force."""
    folder = tmp_path_factory.mktemp("shop")
    (folder / "shop.py").write_text(SHOP)
    url = databases.create(databases.template)
    try:
        drain(folder, url)
        eventually(lambda: not databases.visitors(url))
        yield url.rpartition("/")[2]
    finally:
        databases.drop(url)


@pytest.fixture
def template(databases: Any, request: pytest.FixtureRequest) -> str:
    if "in_force" not in request.fixturenames:
        return str(databases.template)
    return str(request.getfixturevalue("shop_template"))


@pytest.fixture
def in_force(pg_url: str) -> None:
    """Make `pg_url` a database in which the schedules of the shop are in force."""


@contextmanager
def process(folder: Path, url: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """`pgcron` as it goes on, told to stop at the end."""
    with subprocess.Popen(
        command(*words), cwd=folder, env=environment(url), stdout=subprocess.DEVNULL
    ) as child:
        try:
            yield child
        finally:
            child.terminate()
            assert child.wait(timeout=30) == 0


# How a schedule stands, on both stores


def put(store: Any, when: str = "*/10 * * * *", name: str = "s", tz: str = "UTC", **options: Any) -> None:
    timing = timing_of(when, tz, name=name, start=options.pop("start", None), end=options.pop("end", None))
    made = Schedule(name, options.pop("task", "add"), timing, **options)
    assert store.put_schedule(name, "shop", made.dumps(), replace=False) == "added"
    store.plan(ticks.decide, name)


def stands(store: Any, name: str = "s") -> schedule_status.ScheduleStatus:
    return schedule_status.condition(store.schedules(name)[0], store.now())


def begin(store: Any) -> list[Job]:
    claimed: list[Job] = store.claim(uuid.UUID(int=1), uuid.uuid4(), ["*"], ["add"], 100)
    store.admit([job.id for job in claimed])
    return claimed


def end(store: Any, job: Job, state: Any) -> None:
    assert job.claim is not None
    error = {"attempt": 1, "error": "ValueError: no"} if state == "failed" else None
    store.settle([Outcome(job.id, job.claim, state, error=error)])
    store.close_ticks([job.id])


def test_a_schedule_that_is_kept_is_ok(store: Any) -> None:
    put(store)

    assert stands(store) == schedule_status.ScheduleStatus("ok")


def test_a_paused_schedule_says_how_to_go_on(store: Any, clock: Clock) -> None:
    put(store, name="two words")
    store.pause_schedule("two words")
    clock.advance(120)

    assert stands(store, "two words") == schedule_status.ScheduleStatus(
        "paused", "2 m ago; to go on: pgcron schedules resume 'two words'"
    )


def test_a_run_that_has_not_begun_is_missed_before_any_worker_says_so(store: Any, clock: Clock) -> None:
    put(store)

    clock.advance(10 * 60 + 60)
    at_the_limit = stands(store)
    clock.advance(60)

    assert at_the_limit.word == "ok"
    assert stands(store) == schedule_status.ScheduleStatus("missed", "its next run has been due for 2 m")


def test_a_backfill_that_waits_is_not_missed(store: Any, clock: Clock) -> None:
    put(store)
    schedule, now = store.schedules("s")[0].schedule, store.now()
    old = now - DAY
    store.add_ticks("s", [ticks.Tick(old, now, schedule.job(old, now), kind="backfill")])

    clock.advance(30)

    assert stands(store).word == "ok"
    assert store.schedules("s")[0].next_due_at == now


def test_an_alarm_holds_until_a_later_run_is_done(store: Any, clock: Clock) -> None:
    put(store)
    clock.advance(10 * 60)
    assert store.raise_alarm("s", clock.now)

    alarmed = stands(store)
    (job,) = begin(store)
    end(store, job, "done")
    store.plan(ticks.decide)

    assert alarmed.is_bad
    assert alarmed.detail == "its run of 2026-03-01 12:10:00 UTC was missed, and no later one has been done"
    assert stands(store).word == "ok"


def test_a_run_that_takes_too_long_is_late(store: Any, clock: Clock) -> None:
    put(store, alert_after=MINUTE)
    clock.advance(10 * 60)
    assert begin(store)

    clock.advance(90)
    store.watch()

    assert stands(store) == schedule_status.ScheduleStatus(
        "late", "its run of 2026-03-01 12:10:00 UTC was not done in time, and no later one has been done"
    )


def test_a_definition_that_cannot_be_read_here_is_stuck_and_still_shown(store: Any) -> None:
    put(store, name="good")
    text = store.schedules("good")[0].definition.replace('"UTC"', '"Mars/Base"')
    store.put_schedule("s", "shop", text, replace=False)
    store.plan(ticks.decide, "s")

    found = stands(store)

    assert found.word == "stuck"
    assert "Mars/Base" in found.detail
    assert schedule_status.reading(store.schedules("s")[0])[0] is None


@pytest.mark.parametrize(
    ("options", "word", "detail"),
    [
        ({"enabled": False}, "off", "it was made with enabled=False"),
        ({"end": START - DAY}, "over", "it ended 2026-02-28 12:00:00 UTC"),
        ({"when": "0 0 1 1 *", "end": START + DAY}, "over", "it ended 2026-03-02 12:00:00 UTC"),
    ],
)
def test_a_schedule_without_ticks_says_why(store: Any, options: dict[str, Any], word: str, detail: str) -> None:
    put(store, **options)

    assert stands(store) == schedule_status.ScheduleStatus(word, detail)  # type: ignore[arg-type]


def test_a_schedule_that_has_had_its_runs_is_over_when_the_last_is(store: Any, clock: Clock) -> None:
    put(store, max_runs=1)

    planned = stands(store).word
    clock.advance(10 * 60)
    (job,) = begin(store)
    running = stands(store).word
    end(store, job, "done")

    assert (planned, running) == ("ok", "ok")
    assert stands(store) == schedule_status.ScheduleStatus("over", "it has had its 1 run")


def test_what_no_living_code_declares_is_retired(store: Any) -> None:
    definition = Schedule("s", "add", timing_of("@daily", "UTC", name="s")).dumps()
    for number, definitions in enumerate(({"s": definition}, {}), start=1):
        generation = schedule_module.generation("shop", definitions)
        store.declare("shop", generation, definitions)
        store.register(WorkerCard(uuid.UUID(int=number), "box", 7, ("*",), 1, "threads", "1", generation))
        store.reconcile()
        store.forget(uuid.UUID(int=number - 1))
    store.reconcile()

    assert stands(store) == schedule_status.ScheduleStatus("retired", "just now: no live worker's code declares it")


# health --schedules, on both stores


def complaints(store: Any) -> list[tuple[str | None, bool, str]]:
    return [(found.schedule, found.ok, found.detail) for found in health.of_schedules(store)]


def test_a_planned_run_that_was_cancelled_by_hand_is_named_and_no_trouble(store: Any) -> None:
    schedule = Schedule("nightly", "add", timing_of("30 2 * * *", "UTC", name="nightly"))
    store.put_schedule("nightly", "shop", schedule.dumps(), replace=False)
    store.plan(ticks.decide)
    [job] = store.find(states=["queued"])
    store.cancel(job.id)
    store.plan(ticks.decide)

    [summary, finding] = health.of_schedules(store)

    assert (summary.ok, finding.ok, finding.schedule) == (True, True, "nightly")
    assert finding.detail == (
        "its run of 2026-03-02 02:30:00 UTC was cancelled by hand before it began;"
        " the next is due 2026-03-03 02:30:00 UTC"
    )


def test_schedules_are_healthy_when_none_is_in_trouble_and_paused_ones_are_named(store: Any) -> None:
    put(store, name="a")
    put(store, name="b")
    store.pause_schedule("b")

    assert complaints(store) == [
        (None, True, "2 schedules, none in trouble"),
        ("b", True, "paused just now; to go on: pgcron schedules resume b"),
    ]


def test_a_failed_run_is_a_complaint_until_one_is_done_whatever_is_skipped_meanwhile(store: Any, clock: Clock) -> None:
    put(store, "* * * * *", catch_up="skip")
    clock.advance(60)
    (job,) = begin(store)
    end(store, job, "failed")

    failed = complaints(store)
    # The next tick is not served in time, and is left out.
    clock.advance(180)
    store.plan(ticks.decide)
    begin(store)
    for tick in store.ticks("s"):
        if tick.outcome is None and tick.started_at is not None:
            end(store, store.get(tick.job_id), "cancelled")
    skipped = [tick.outcome for tick in store.ticks("s")]
    still = complaints(store)
    clock.advance(60)
    store.plan(ticks.decide)
    for job in begin(store):
        end(store, job, "done")

    why = f"pgcron jobs show {job_id(store)}"
    assert failed[1] == ("s", False, f"its run of 2026-03-01 12:01:00 UTC failed; to see why: {why}")
    assert "skipped" in skipped
    assert still[1:] == failed[1:]
    assert [ok for _, ok, _ in complaints(store)] == [True]


def job_id(store: Any) -> int:
    """The job of the oldest tick."""
    found: int = store.ticks("s")[-1].job_id
    return found


def test_schedules_in_trouble_are_counted_and_named(store: Any, clock: Clock) -> None:
    put(store, name="a")
    put(store, "@daily", name="b")

    clock.advance(15 * 60)

    assert complaints(store) == [
        (None, False, "2 schedules, 1 in trouble"),
        ("a", False, "missed, its next run has been due for 5 m"),
    ]


# list, show


@pytest.mark.usefixtures("in_force")
def test_schedules_are_listed_with_their_state_next_and_last_run_and_origin(
    run: Run, pg_url: str, folder: Path
) -> None:
    run("schedules", "add", "daily", "30 2 * * *", "shop.digest", "ada", "--tz", "Asia/Tokyo")
    run("schedules", "run", "broken")
    drain(folder, pg_url)

    heading, *rows = run("schedules", "list").stdout.splitlines()

    assert re.split("  +", heading) == [
        "NAME", "STATE", "NEXT (UTC)", "LAST (UTC)", "OUTCOME", "FROM", "TASK", "WHEN"
    ]  # fmt: skip
    cells = {row.split()[0]: re.split("  +", row) for row in rows}
    assert list(cells) == ["broken", "daily", "leap", "rare"]
    assert re.fullmatch(r"\d{4}-02-29 00:00:00, in \d+ d( \d+ h)?", cells["broken"][2])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", cells["broken"][3])
    assert cells["broken"][4:] == ["failed", "code", "shop.boom", "at 00:00 on day 29 of February, UTC"]
    assert cells["daily"][3:] == ["-", "-", "run time", "shop.digest", "at 02:30 every day, Asia/Tokyo"]
    assert cells["rare"][1:] == ["off", "-", "-", "-", "code", "shop.rare", "every 3650d"]


@pytest.mark.usefixtures("in_force")
def test_schedules_are_objects_for_programs(run: Run, pg_url: str) -> None:
    found = {each["schedule"]: each for each in objects(run("schedules", "list", "--json"))}

    assert list(found) == ["broken", "leap", "rare"]
    leap = found["leap"]
    assert {key: leap[key] for key in ("state", "origin", "app", "task", "args", "timing", "tz", "words", "runs")} == {
        "state": "ok", "origin": "code", "app": "shop", "task": "shop.leap", "args": {}, "timing": "0 0 29 2 *",
        "tz": "Europe/Berlin", "words": "at 00:00 on day 29 of February", "runs": 1,
    }  # fmt: skip
    assert re.fullmatch(r"\d{4}-02-28T23:00:00Z", leap["next_tick"])
    assert found["rare"]["state"] == "off"
    assert objects(run("schedules", "show", "leap", "--json")) == [leap]


@pytest.mark.usefixtures("in_force")
def test_only_those_named_are_listed_and_who_is_not_there_is_told(run: Run, pg_url: str) -> None:
    answer = run("schedules", "list", "leap", "brokn")

    assert answer.returncode == 1
    assert [line.split()[0] for line in answer.stdout.splitlines()] == ["NAME", "leap"]
    assert answer.stderr == "there is no schedule 'brokn'; did you mean 'broken'?\n"


def test_what_is_declared_and_not_in_force_is_told(run: Run, pg_url: str, folder: Path) -> None:
    before = run("schedules", "list")
    run("schedules", "add", "leap", "@daily", "shop.digest", "ada")
    drain(folder, pg_url)
    in_force = run("schedules", "list")
    (folder / "shop.py").write_text(SHOP.replace('"0 0 29 2 *", name="broken"', '"0 0 28 2 *", name="broken"'))
    changed = run("schedules", "list")

    assert before.stdout == ""
    assert "no schedules yet" in before.stderr
    assert "(declared in the code here, in force when its next worker starts: broken, leap, rare)" in before.stderr
    assert in_force.stderr == "(declared in the code here, but made at run time as well, which is in force: leap)\n"
    assert "in force when its next worker starts: broken)" in changed.stderr


@pytest.mark.usefixtures("in_force")
def test_what_is_wrong_is_explained_below_the_table(run: Run, pg_url: str) -> None:
    with psycopg.connect(pg_url, autocommit=True) as conn:
        conn.execute("update pgcron.schedules set trouble = E'no \\x1b[31mway' where name = 'leap'")
        conn.execute(
            "update pgcron.schedules set alarm = 'missed', alarm_tick = '2026-01-01 00:00Z' where name = 'broken'"
        )

    answer = run("schedules", "list")

    assert answer.stdout.splitlines()[-3:] == [
        "",
        "broken is missed: its run of 2026-01-01 00:00:00 UTC was missed, and no later one has been done",
        r"leap is stuck: no \x1b[31mway",
    ]


def test_show_says_everything_about_a_schedule(run: Run, pg_url: str) -> None:
    run(
        "schedules", "add", "s", "30 2 * * mon", "shop.digest", "ada", "--tz", "Europe/Berlin", "--start-within", "1h",
        "--overlap", "queue", "--catch-up", "all", "--jitter", "5m", "--max-runs", "7", "--alert-after", "10m",
        "--ping", "https://example.org/secret", "--start", "2026-01-01", "--queue", "mail", "--priority", "0",
        "--max-attempts", "2", "--tag", "a",
    )  # fmt: skip

    lines = dict(line.strip().split("  ", 1) for line in run("schedules", "show", "s").stdout.splitlines())
    said = {name: text.strip() for name, text in lines.items()}

    assert said.pop("s") == "ok"
    assert " UTC, in " in said.pop("next")
    assert said == {
        "runs": "at 02:30 on Mondays, Europe/Berlin", "so far": "1 run, with those planned",
        "timing": "30 2 * * mon, Europe/Berlin", "within": "from 2025-12-31 23:00:00 UTC", "task": "shop.digest",
        "arguments": '{"to":"ada"}', "queue": "mail, priority 0, 2 attempts", "tags": "a", "overlap": "queue",
        "catch up": "all, within 1h", "jitter": "up to 5m", "most runs": "7", "alert": "10m after it was due",
        "pings": "yes", "from": "made at run time, app shop",
    }  # fmt: skip
    assert "secret" not in run("schedules", "list", "--json").stdout


@pytest.mark.usefixtures("in_force")
def test_operators_see_and_pause_schedules_without_the_code(run: Run, pg_url: str, folder: Path) -> None:
    (folder / "shop.py").unlink()

    listed = run("schedules", "list", "--json")
    done = [run("schedules", verb, "leap") for verb in ("pause", "resume", "run", "next")]

    assert (names(listed), listed.stderr) == (["broken", "leap", "rare"], "")
    assert [answer.returncode for answer in done] == [0, 0, 0, 0]


# next, history


@pytest.mark.usefixtures("in_force")
def test_next_shows_both_clocks_and_what_changes_the_time(run: Run, pg_url: str) -> None:
    run("schedules", "add", "put-off", "@daily", "shop.digest", "ada", "--jitter", "10m")

    leap = objects(run("schedules", "next", "leap", "--count", 3, "--json"))
    put_off = run("schedules", "next", "put-off", "--count", 4)

    assert [tick["local"][4:] for tick in leap] == ["-02-29T00:00:00+01:00"] * 3
    assert all(tick["due_at"] == tick["tick"] and tick["schedule"] == "leap" for tick in leap)
    heading, *rows = put_off.stdout.splitlines()
    assert heading.split() == ["LOCAL", "OFFSET", "UTC", "NOTE"]
    assert len(rows) == 4
    assert all(re.search(r"put off by (\d+ m )?\d+ m?s of jitter$", row) for row in rows)


@pytest.mark.usefixtures("in_force")
def test_next_says_why_there_will_be_no_run(run: Run, pg_url: str) -> None:
    run("schedules", "pause", "leap")

    paused, off = run("schedules", "next", "leap"), run("schedules", "next", "rare")

    assert "(leap is paused: " in paused.stderr
    assert "to go on: pgcron schedules resume leap)" in paused.stderr
    assert off.stderr == "(rare is off: it was made with enabled=False)\n"


def test_next_leaves_out_a_run_that_was_called_off_and_says_so(run: Run, pg_url: str) -> None:
    run("schedules", "add", "later", "0 0 1 1 *", "shop.digest", "ada")
    before = objects(run("schedules", "next", "later", "--count", 3, "--json"))
    [job] = objects(run("jobs", "list", "--json"))

    run("jobs", "cancel", job["id"])
    after = run("schedules", "next", "later", "--count", 2, "--json")
    run("jobs", "retry", job["id"])
    retried = run("schedules", "next", "later", "--count", 2)

    assert [each["tick"] for each in objects(after)] == [each["tick"] for each in before[1:]]
    gone = f"the run of {before[0]['tick'][:4]}-01-01 00:00:00 UTC"
    retry = f"to run it now: pgcron jobs retry {job['id']}"
    assert after.stderr == f"(not listed: {gone} was cancelled by hand; {retry})\n"
    assert retried.stderr == f"(not listed: {gone} was retried by hand before its time; its job is {job['id']})\n"


@pytest.mark.usefixtures("in_force")
def test_a_run_that_waits_for_the_one_before_it_says_so(run: Run, pg_url: str) -> None:
    for _ in range(2):
        run("schedules", "run", "leap")
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    [first] = store.claim(uuid.UUID(int=1), uuid.uuid4(), ["*"], ["shop.leap"], 1)
    store.admit([first.id])
    [second] = store.claim(uuid.UUID(int=1), uuid.uuid4(), ["*"], ["shop.leap"], 1)
    wait = store.admit([second.id])[second.id].wait
    assert second.claim is not None
    store.settle([Outcome(second.id, second.claim, "queued", delay=wait, gives_back=True)])
    store.close()

    waiting, running = objects(run("schedules", "history", "leap", "--json"))
    shown = run("jobs", "show", second.id)
    listed = run("jobs", "list")
    [row] = [each for each in objects(run("jobs", "list", "--json")) if each["id"] == second.id]

    waits, runs = listed.stdout.splitlines()[1:3]
    assert waits.endswith("waits for the run before it to end")
    assert "running" in runs
    assert row["execute_after"] > row["created_at"]
    assert (running["outcome"], running["reason"]) == ("running", None)
    assert (waiting["outcome"], waiting["reason"]) == ("waiting", "for the run before it to end")
    assert "waits for a run of schedule 'leap' that is under way, and begins when that has ended" in shown.stdout


@pytest.mark.usefixtures("in_force")
def test_history_shows_what_became_of_each_tick(run: Run, pg_url: str, folder: Path) -> None:
    run("schedules", "run", "broken")
    drain(folder, pg_url)

    answer = run("schedules", "history", "broken")
    [manual] = objects(run("schedules", "history", "broken", "--json"))
    newest = run("schedules", "history", "broken", "--limit", 1)

    heading, *rows = answer.stdout.splitlines()
    assert re.split("  +", heading) == [
        "TICK (UTC)", "KIND", "OUTCOME", "LATE", "STARTED (UTC)", "TOOK", "JOB", "NOTE"
    ]  # fmt: skip
    assert re.search(r"manual +failed +\d+ m?s .* ValueError: bad luck$", rows[0])
    assert len(rows) == 1  # what is still to come is no history
    assert (manual["outcome"], manual["reason"]) == ("failed", "ValueError: bad luck")
    assert manual["late_seconds"] >= 0
    assert "(the newest 1; --limit shows more)" in newest.stderr


def test_history_shows_a_planned_run_that_was_called_off(run: Run, pg_url: str, folder: Path) -> None:
    run("schedules", "add", "later", "0 0 1 1 *", "shop.digest", "ada")
    drain(folder, pg_url)
    [job] = [job for job in objects(run("jobs", "list", "--json")) if "-01-01T00:00:00" in job["execute_after"]]
    before = objects(run("schedules", "history", "later", "--json"))

    run("jobs", "cancel", job["id"])

    [called_off] = objects(run("schedules", "history", "later", "--json"))
    assert (before, called_off["outcome"], called_off["job"]) == ([], "cancelled", job["id"])


def test_the_history_of_a_schedule_outlives_it(run: Run, pg_url: str, folder: Path) -> None:
    run("schedules", "add", "s", "0 0 29 2 *", "shop.digest", "ada")
    run("schedules", "run", "s")
    drain(folder, pg_url)
    run("schedules", "remove", "s", "--yes")

    assert [tick["outcome"] for tick in objects(run("schedules", "history", "s", "--json"))] == ["done"]
    never = run("schedules", "history", "never")
    assert (never.returncode, never.stderr) == (1, "Error: there is no schedule 'never'.\n")


# run, pause, resume, backfill


@pytest.mark.usefixtures("in_force")
def test_run_prints_the_job_and_how_to_look_at_it(run: Run, pg_url: str) -> None:
    answer = run("schedules", "run", "leap")

    (number,) = re.findall(r"^shop\.leap#(\d+)\n$", answer.stdout)
    assert answer.stderr == f"To see its outcome: pgcron jobs show {number}\n"
    assert objects(run("jobs", "show", number, "--json"))[0]["headers"]["pgcron-schedule"] == "leap"


@pytest.mark.usefixtures("in_force")
def test_run_waits_for_the_result_if_asked_to(run: Run, pg_url: str, folder: Path) -> None:
    with process(folder, pg_url, "worker"):
        done = run("schedules", "run", "leap", "--wait", "--timeout", "30s")
        failed = run("schedules", "run", "broken", "--wait", "--timeout", "30s")
    in_vain = run("schedules", "run", "leap", "--wait", "--timeout", "0.2")

    assert (done.returncode, done.stdout) == (0, '"jumped"\n')
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "failed: ValueError: bad luck. See: pgcron jobs show" in failed.stderr
    assert in_vain.returncode == 1
    assert "is still queued after 0.2 s; it goes on" in in_vain.stderr


@pytest.mark.usefixtures("in_force")
def test_schedules_are_paused_and_resumed_and_the_others_are_done_all_the_same(run: Run, pg_url: str) -> None:
    paused = run("schedules", "pause", "leap", "nope", "broken")
    again = run("schedules", "pause", "leap")
    states = {each["schedule"]: each["state"] for each in objects(run("schedules", "list", "--json"))}
    resumed, unpaused = run("schedules", "resume", "leap", "broken"), run("schedules", "resume", "leap")

    assert (paused.returncode, paused.stderr) == (1, "there is no schedule 'nope'.\n")
    assert paused.stdout.splitlines() == [
        "schedule 'leap' is paused. To go on: pgcron schedules resume leap",
        "schedule 'broken' is paused. To go on: pgcron schedules resume broken",
    ]
    assert "'leap' was paused already" in again.stdout
    assert states == {"broken": "paused", "leap": "paused", "rare": "off"}
    assert re.fullmatch(
        r"(schedule '\w+' goes on; next at \d{4}-02-2[89] \d\d:00:00 UTC, in \d+ d( \d+ h)?\n){2}", resumed.stdout
    )
    assert "'leap' was not paused; next at" in unpaused.stdout


def test_backfill_runs_what_has_not_run_by_the_clock_of_the_schedule(run: Run, pg_url: str) -> None:
    run("schedules", "add", "s", "0 0 29 2 *", "shop.digest", "ada", "--tz", "Asia/Tokyo")

    first = run("schedules", "backfill", "s", "--since", "2016-02-29", "--until", "2020-02-29")
    rest = run("schedules", "backfill", "s", "--since", "2016-02-28T15:00Z", "--until", "2021-01-01")
    nothing = run("schedules", "backfill", "s", "--since", "2016-02-29", "--until", "2020-03-01")
    recent = run("schedules", "backfill", "s", "--since", "1s")

    assert re.fullmatch(r"1 run of 's' enqueued, #\d+\n", first.stdout)
    assert first.stderr == "To see the outcomes: pgcron schedules history s\n"
    assert re.fullmatch(r"1 run of 's' enqueued, #\d+\n", rest.stdout)
    for answer in (nothing, recent):
        assert (answer.returncode, answer.stdout) == (0, "")
        assert "no tick in this time that has not run or is not planned" in answer.stderr
    history = objects(run("schedules", "history", "s", "--json"))
    assert [(tick["tick"], tick["kind"]) for tick in history] == [
        ("2020-02-28T15:00:00Z", "backfill"), ("2016-02-28T15:00:00Z", "backfill"),
    ]  # fmt: skip


# add, remove


@pytest.mark.parametrize(
    ("words", "args"),
    [
        (["ada"], {"to": "ada"}),
        (["12", "copies=3"], {"to": "12", "copies": 3}),
        (["ada", "bob"], {"to": "ada", "*more": ["bob"]}),
        (["--args", '["ada", "bob"]'], {"to": "ada", "*more": ["bob"]}),
        (["--args", '{"to": "ada", "copies": -1}'], {"to": "ada", "copies": -1}),
    ],
)
def test_a_schedule_is_added_with_arguments_as_for_enqueue(
    run: Run, pg_url: str, words: list[str], args: dict[str, Any]
) -> None:
    answer = run("schedules", "add", "s", "0 7 * * mon-fri", "shop.digest", *words, "--tz", "Europe/Berlin")

    assert answer.returncode == 0, answer.stderr
    assert re.fullmatch(
        r"schedule 's' added: at 07:00, Monday to Friday, Europe/Berlin; next at .* UTC, in .*\n", answer.stdout
    )
    assert objects(run("schedules", "list", "s", "--json"))[0]["args"] == args


def test_every_option_of_a_schedule_can_be_given(run: Run, pg_url: str) -> None:
    answer = run("schedules", "add", "s", "every 90s", "shop.digest", "ada", "--after-finish", "--priority", "-3",
                 "--end", "2099-01-01", "--tag", "a", "--tag", "b")  # fmt: skip

    (found,) = objects(run("schedules", "list", "--json"))
    assert answer.returncode == 0, answer.stderr
    assert {key: found[key] for key in ("timing", "after_finish", "priority", "end", "tags")} == {
        "timing": "every 1m30s", "after_finish": True, "priority": -3, "end": "2099-01-01T00:00:00Z",
        "tags": ["a", "b"],
    }  # fmt: skip


def test_a_schedule_is_replaced_only_when_that_is_said_and_then_as_often_as_wanted(run: Run, pg_url: str) -> None:
    words = ("schedules", "add", "s", "@daily", "shop.digest")

    answers = [run(*words, "ada"), run(*words, "bob"), run(*words, "bob", "--replace"), run(*words, "bob", "--replace")]

    assert [answer.returncode for answer in answers] == [0, 2, 0, 0]
    assert "there is a schedule 's' already; --replace gives it another definition" in answers[1].stderr
    assert "schedule 's' replaced: " in answers[2].stdout
    assert objects(run("schedules", "list", "--json"))[0]["args"] == {"to": "bob"}


@pytest.mark.usefixtures("in_force")
def test_only_what_was_made_at_run_time_is_removed_and_not_without_asking(run: Run, pg_url: str) -> None:
    run("schedules", "add", "s", "@daily", "shop.digest", "ada")

    unanswered = run("schedules", "remove", "s")
    removed = run("schedules", "remove", "leap", "s", "--yes")

    assert unanswered.returncode == 1
    assert "Remove 's'? [y/N]" in unanswered.stderr
    assert removed.returncode == 1
    assert removed.stdout == "schedule 's' removed\n"
    assert removed.stderr == "schedule 'leap' is declared in code: remove it there, or pause it here\n"
    assert names(run("schedules", "list", "--json")) == ["broken", "leap", "rare"]


def test_who_removes_what_stood_in_the_way_of_the_code_is_told_what_holds_then(
    run: Run, pg_url: str, folder: Path
) -> None:
    run("schedules", "add", "leap", "@daily", "shop.digest", "ada")
    drain(folder, pg_url)

    removed = run("schedules", "remove", "leap", "--yes")

    assert re.fullmatch(
        r"schedule 'leap' removed; the one declared in code is in force: at 00:00 on day 29 of February, Europe/Berlin;"
        r" next at \d{4}-02-28 23:00:00 UTC, in .*\n",
        removed.stdout,
    )
    assert {each["schedule"]: each["origin"] for each in objects(run("schedules", "list", "--json"))}["leap"] == "code"


@pytest.mark.usefixtures("in_force")
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ("schedules lst", 2, "there is no command 'lst'; did you mean 'list'?"),
        ("schedules run leep", 1, "there is no schedule 'leep'; did you mean 'leap'?"),
        ("schedules run leap --timeout 3", 2, "--timeout goes with --wait"),
        ("schedules next leep", 1, "did you mean 'leap'?"),
        ("schedules pause", 2, "Missing argument 'NAME...'"),
        ("schedules backfill leap", 2, "Missing option '--since'"),
        ("schedules backfill leap --since soon", 2, "'soon' is not a time from 1970 on"),
        ("schedules backfill leap --since 2x", 2, "has the unit 'x'"),
        ("schedules backfill leap --since 2020-01-01 --until 2999-01-01", 2, "still to come need no backfill"),
        ("schedules add x @dayly shop.digest a", 2, "did you mean '@daily'?"),
        ("schedules add x @daily shop.digst a", 2, "no task named 'shop.digst' on app 'shop'; did you mean"),
        ("schedules add x @daily shop.digest", 2, "cannot be called without arguments"),
        ("schedules add x @daily shop.digest a z=1", 2, "shop.digest has no parameter 'z'"),
        ("schedules add x @daily shop.digest a --args [1]", 2, "--args gives all the arguments"),
        ("schedules add x @daily shop.digest --args 3", 2, "--args: expected an object"),
        ("schedules add x @daily shop.digest a b copies=2", 2, "give these arguments as JSON: --args"),
        ("schedules add x @daily shop.digest a --tz Berlin", 2, "did you mean 'Europe/Berlin'?"),
        ("schedules add x @daily shop.digest a --overlap no", 2, "'no' is not one of"),
        ("schedules add x @daily shop.digest a --start-within soon", 2, "start_within='soon' is not a duration"),
        ("schedules add x @daily shop.digest a --after-finish", 2, "use it with every"),
        ("schedules add x @daily shop.digest a --end never", 2, "Invalid value for --end"),
        ("schedules add leap @daily shop.digest a --replace", 2, "is declared in code: change it there"),
    ],
)
def test_what_is_asked_wrongly_is_answered_in_a_sentence(
    run: Run, pg_url: str, words: str, code: int, says: str
) -> None:
    answer = run(*words.split())

    assert answer.returncode == code, answer.stderr
    assert says in " ".join(answer.stderr.split())
    assert "Traceback" not in answer.stderr
    assert answer.stdout == ""
    assert "x" not in names(run("schedules", "list", "--json"))


# Who keeps schedules


def test_a_scheduler_keeps_schedules_runs_no_jobs_and_stops_like_a_worker(run: Run, pg_url: str, folder: Path) -> None:
    run("enqueue", "shop.digest", "ada")
    with process(folder, pg_url, "scheduler") as child:
        eventually(lambda: names(run("schedules", "list", "--json")) == ["broken", "leap", "rare"], within=30)
        (listed,) = objects(run("workers", "list", "--json"))
        table, unhealthy, waits = run("workers", "list").stdout, run("health"), run("jobs", "show", 1).stdout
        child.send_signal(signal.SIGTERM)
        assert child.wait(timeout=30) == 0
    first = run("scheduler", "--max-seconds", "0.5", "--log-format", "json")

    assert (listed["queues"], listed["slots"]) == ([], 1)
    assert "none, keeps schedules" in table
    assert unhealthy.returncode == 1
    assert "no worker is alive" in unhealthy.stdout
    assert "no worker serves the queue 'default'" in waits
    assert objects(run("jobs", "show", 1, "--json"))[0]["state"] == "queued"
    said = [json.loads(line)["msg"] for line in first.stdout.splitlines()]
    assert re.fullmatch(r"pgcron_lite \S+, app shop, scheduler \w{8}", said[0])
    assert re.fullmatch(r"  keeps schedules and runs no jobs, pid \d+", said[2])
    assert said[3] == "  declares: broken, leap, rare"
    assert (first.returncode, said[-1]) == (0, "stopped")


def test_a_worker_can_leave_the_schedules_to_others(run: Run, pg_url: str) -> None:
    run("enqueue", "shop.digest", "ada")

    answer = run("worker", "--no-scheduler", "--drain", "--log-format", "json")

    said = [json.loads(line)["msg"] for line in answer.stdout.splitlines()]
    assert "  keeps no schedules: another worker, or pgcron scheduler, has to" in said
    assert objects(run("jobs", "show", 1, "--json"))[0]["state"] == "done"
    assert names(run("schedules", "list", "--json")) == []


@pytest.mark.usefixtures("in_force")
def test_health_of_schedules_is_an_exit_code_and_lines(run: Run, pg_url: str, folder: Path) -> None:
    run("schedules", "pause", "leap")
    with process(folder, pg_url, "worker", "--log-level", "critical"):
        eventually(lambda: objects(run("workers", "list", "--json")), within=30)
        well = run("health", "--schedules", "--json")
        run("schedules", "run", "broken", "--wait")
        unasked, asked, failed = run("health"), run("health", "--schedules"), run("health", "--schedules", "--json")

    *_, summed_up, paused = objects(well)
    assert (summed_up["check"], summed_up["ok"], summed_up["detail"]) == (
        "schedules", True, "3 schedules, none in trouble"
    )  # fmt: skip
    assert (paused["schedule"], paused["ok"]) == ("leap", True)
    assert (unasked.returncode, asked.returncode, failed.returncode) == (0, 1, 1)
    assert re.search(r"^FAIL  schedules  3 schedules, 1 in trouble$", asked.stdout, re.MULTILINE)
    assert re.search(
        r"^FAIL  schedule   broken: its run of .* UTC failed; to see why: pgcron jobs show \d+$", asked.stdout,
        re.MULTILINE,
    )  # fmt: skip
    assert [json.loads(line)["ok"] for line in failed.stdout.splitlines()][-3:] == [False, False, True]
