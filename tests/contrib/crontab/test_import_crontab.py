"""`app.enable_shell()` and `pgcron import-crontab`: which schedules a crontab becomes, and what is said of it."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import Run, names, objects, runner

from pgcron_lite import PgCron
from pgcron_lite.contrib.crontab import parser
from pgcron_lite.contrib.crontab.command import Import, take_over
from pgcron_lite.errors import OptionError, SetupFinished

SHOP = """
from pgcron_lite import PgCron

app = PgCron("shop")
app.enable_shell()
"""

DAY = timedelta(days=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def run(folder: Path, request: pytest.FixtureRequest) -> Run:
    return runner(folder, request)


# The task that runs commands


def test_no_app_has_a_shell_unless_it_says_so() -> None:
    app = PgCron("shop", url="memory://")

    before = list(app.tasks)
    task = app.enable_shell(queue="shell")

    assert before == []
    assert list(app.tasks) == ["pgcron.shell"]
    assert (task.settings.queue, task.settings.policy.most_attempts) == ("shell", 1)
    assert task("echo hello")["output"] == "hello\n"


def test_the_shell_is_enabled_twice_alike_tried_again_if_wanted_and_before_the_worker_starts() -> None:
    app = PgCron("shop", url="memory://")
    app.enable_shell()

    assert app.enable_shell(max_attempts=3).settings.policy.most_attempts == 3
    with pytest.raises(OptionError, match="no option 'slots'"):
        app.enable_shell(slots=3)
    app._freeze("its worker is running")
    with pytest.raises(SetupFinished):
        app.enable_shell()


# import-crontab


TAB = """\
# m h dom mon dow command
PATH=/usr/local/bin:/usr/bin:/bin
30 2 * * * ./backup.sh --all
CRON_TZ=Europe/Berlin
0 8 * * 1-5 mail -s 100\\% ada%Good morning%
"""


@pytest.fixture
def app(store: Any) -> PgCron:
    app = PgCron("shop", url="memory://")
    app.enable_shell()
    app._store = store
    return app


def imported(app: PgCron, text: str, how: Import | None = None, *, write: bool = True) -> dict[str, str]:
    """The commands of a crontab with what became of each, problems among them."""
    entries, problems = parser.read(text)
    there = {view.name: view for view in app.schedules.list()}
    reports = list(
        take_over(app, how or Import("cron-", DAY), entries, problems, there, app.store.now(), write=write)
    )
    return {**{report.command: report.change for report in reports}, **{p.text: p.why for p in problems}}


def test_each_job_of_a_crontab_becomes_a_schedule_that_does_what_cron_does(app: PgCron) -> None:
    imported(app, TAB)

    backup, mail = (view.schedule for view in app.schedules.list())
    assert re.fullmatch(r"cron-backup-sh-[0-9a-f]{8}", backup.name)
    assert (str(backup.timing), backup.task, backup.overlap, backup.catch_up, backup.max_attempts, backup.tags) == (
        "30 2 * * *", "pgcron.shell", "allow", "skip", 1, ("crontab:cron-",)
    )  # fmt: skip
    assert json.loads(backup.args) == {
        "command": "./backup.sh --all", "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin"}, "timeout": 86400.0,
    }
    assert getattr(mail.timing, "tz", None) == "Europe/Berlin"
    assert json.loads(mail.args)["command"] == "mail -s 100% ada"
    assert json.loads(mail.args)["stdin"] == "Good morning\n"


def test_the_same_crontab_again_changes_nothing(app: PgCron) -> None:
    first = imported(app, TAB)
    before = app.schedules.list()
    second = imported(app, "# moved down\n\n" + TAB)

    assert list(first.values()) == ["new", "new"]
    assert list(second.values()) == ["same", "same"]
    assert app.schedules.list() == before


def test_a_schedule_is_replaced_when_it_is_to_be_another_and_stays_paused(app: PgCron) -> None:
    imported(app, TAB)
    name = app.schedules.list()[0].name
    app.schedules.pause(name)

    again = imported(app, TAB, Import("cron-", DAY / 24))

    assert list(again.values()) == ["changed", "changed"]
    assert json.loads(app.schedules.get(name).schedule.args)["timeout"] == 3600.0
    assert app.schedules.get(name).paused_at is not None


def test_commands_run_in_the_home_of_the_crontab_or_where_it_is_said(app: PgCron) -> None:
    imported(app, "@daily a\nHOME=/srv\n@daily b\n")
    home = {json.loads(view.schedule.args)["command"]: view.schedule.args for view in app.schedules.list()}
    imported(app, "@daily c\n", Import("cron-", DAY, "/opt"))

    assert "cwd" not in json.loads(home["a"])
    assert json.loads(home["b"])["cwd"] == "/srv"
    assert [json.loads(v.schedule.args).get("cwd") for v in app.schedules.list() if "-c-" in v.name] == ["/opt"]


def test_a_dry_run_says_the_same_and_writes_nothing(app: PgCron) -> None:
    assert list(imported(app, TAB, write=False).values()) == ["new", "new"]
    assert app.schedules.list() == []


def test_a_schedule_that_no_import_has_made_is_left_alone(app: PgCron) -> None:
    (entry,), _ = parser.read("@daily a")
    app.schedules.add(f"cron-{entry.name}", "@hourly", "pgcron.shell", args={"command": "mine"})

    answer = imported(app, "@daily a\n@daily b\n")

    assert "that no import has made; choose another --prefix" in answer["a"]
    assert answer["b"] == "new"
    assert json.loads(app.schedules.get(f"cron-{entry.name}").schedule.args) == {"command": "mine"}


def test_what_cannot_be_stored_is_a_problem_of_its_line(app: PgCron) -> None:
    answer = imported(app, f"@daily echo {'x' * 300_000}\n@daily b\n")

    assert answer.pop("b") == "new"
    assert len(answer) == 1
    assert [view.name[:7] for view in app.schedules.list()] == ["cron-b-"]


def test_a_report_has_a_line_for_each_job(run: Run, pg_url: str, folder: Path) -> None:
    (folder / "tab").write_text(TAB)

    answer = run("import-crontab", "tab", "--tz", "Asia/Tokyo")

    heading, first, second = (re.split("  +", line.strip()) for line in answer.stdout.splitlines())
    assert heading == ["LINE", "CHANGE", "NAME", "NEXT (UTC)", "WHEN", "COMMAND"]
    assert first[:2] + first[4:] == ["3", "new", "at 02:30 every day, Asia/Tokyo", "./backup.sh --all"]
    assert second[:2] + second[4:] == ["5", "new", "at 08:00, Monday to Friday, Europe/Berlin", "mail -s 100% ada"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d 17:30:00, in .*", first[3])
    assert (answer.returncode, answer.stderr) == (0, "2 new\n")


def test_lines_that_cannot_be_taken_over_are_named_and_the_others_are_taken(
    run: Run, pg_url: str, folder: Path
) -> None:
    (folder / "tab").write_bytes(b"61 * * * * a\n@daily b\n@reboot c\n@daily caf\xe9\n")

    answer, listed = run("import-crontab", "tab"), names(run("schedules", "list", "--json"))
    said = [json.loads(line) for line in run("import-crontab", "tab", "--json").stdout.splitlines()]

    assert answer.returncode == 1
    assert [name[:7] for name in listed] == ["cron-b-"]
    problems = re.findall(r"^line (\d): (.*)\n    (.*)$", answer.stderr, re.MULTILINE)
    assert [(line, text) for line, _, text in problems] == [
        ("1", "61 * * * * a"), ("3", "@reboot c"), ("4", r"@daily caf\udce9"),
    ]  # fmt: skip
    assert "there is no minute 61" in problems[0][1]
    assert answer.stderr.endswith("\n1 new; 3 problems\n")
    assert [(each["line"], each["change"], "problem" in each) for each in said] == [
        (2, "same", False), (1, None, True), (3, None, True), (4, None, True),
    ]  # fmt: skip


def test_what_is_gone_from_the_file_goes_on_until_it_is_pruned(run: Run, pg_url: str) -> None:
    run("import-crontab", "-", stdin="@daily a\n@daily b\n")
    run("import-crontab", "-", "--prefix", "other-", stdin="@daily a\n")
    run("schedules", "add", "cron-mine", "@daily", "pgcron.shell", "echo")

    told = run("import-crontab", "-", stdin="@daily a\n")
    tried = run("import-crontab", "-", "--prune", "--dry-run", stdin="@daily a\n")
    kept = names(run("schedules", "list", "--json"))
    pruned = run("import-crontab", "-", "--prune", stdin="@daily a\n")

    assert re.search(r"no longer in the file, but scheduled until an import with --prune: cron-b-\w{8}\n", told.stderr)
    assert told.stderr.endswith("1 same\n")
    assert tried.stderr == "1 same, 1 gone (nothing was changed: --dry-run)\n"
    assert [name[:7] for name in kept] == ["cron-a-", "cron-b-", "cron-mi", "other-a"]
    assert re.search(r"- +gone +cron-b-\w{8} +- +at 00:00 every day, UTC +b$", pruned.stdout, re.MULTILINE)
    assert [name[:7] for name in names(run("schedules", "list", "--json"))] == ["cron-a-", "cron-mi", "other-a"]


def test_the_users_of_a_system_crontab_are_told_to_be_left_out(run: Run, pg_url: str) -> None:
    answer = run("import-crontab", "-", "--system", stdin="@daily root a\n@daily www b\n")

    assert answer.returncode == 0
    assert "the users are not imported (root, www): commands run as the user of the worker" in answer.stderr


def test_an_imported_job_runs_with_its_output_kept(run: Run, pg_url: str, folder: Path) -> None:
    run("import-crontab", "-", "--cwd", str(folder), stdin="WHO=ada\n0 0 29 2 * pwd; echo hello $WHO; cat%and more\n")
    (name,) = names(run("schedules", "list", "--json"))
    run("schedules", "run", name)
    run("worker", "--drain", "--log-level", "error")

    (job,) = objects(run("jobs", "list", "--state", "done", "--json"))
    assert job["result"]["exit_code"] == 0
    assert job["result"]["output"] == f"{folder.resolve()}\nhello ada\nand more\n"
    assert job["tags"] == ["crontab:cron-"]


def test_no_crontab_is_imported_into_an_app_without_the_shell(run: Run, pg_url: str, folder: Path) -> None:
    (folder / "shop.py").write_text(SHOP.replace("app.enable_shell()", ""))

    answer = run("import-crontab", "-", stdin=TAB)

    assert answer.returncode == 2
    assert "run as the task 'pgcron.shell', which app 'shop' does not have" in answer.stderr
    assert "write: app.enable_shell(). From then on anyone who may write to the queue" in answer.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("import-crontab nowhere", "No such file"),
        ("import-crontab - --tz Berlin", "did you mean 'Europe/Berlin'?"),
        ("import-crontab - --timeout soon", "'soon' is not a duration"),
        ("import-crontab", "Missing argument 'FILE'"),
    ],
)
def test_an_import_that_cannot_be_is_refused(run: Run, pg_url: str, words: str, says: str) -> None:
    answer = run(*words.split(), stdin=TAB)

    assert answer.returncode == 2
    assert says in answer.stderr


def test_a_crontab_without_jobs_is_said_to_be_so(run: Run, pg_url: str) -> None:
    answer = run("import-crontab", "-", stdin="# nothing yet\n")

    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "", "no jobs\n")
