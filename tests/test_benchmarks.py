"""The benchmarks count rightly, and say plainly when they cannot. What they measure is nobody's to assert."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]

# `pytest` does not see the checkout it lies in. At the end, so that an installed package is not shadowed.
sys.path.append(str(ROOT))

from benchmarks import venvs  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.catalogue import Contestant, Family, UnknownName, choose, contestants  # noqa: E402
from benchmarks.chart import chart  # noqa: E402
from benchmarks.contest import Contest  # noqa: E402
from benchmarks.requests import StatementLog, split  # noqa: E402
from benchmarks.results import Score, Standing  # noqa: E402
from benchmarks.server import Server  # noqa: E402
from benchmarks.table import number, table  # noqa: E402
from benchmarks.trial import share  # noqa: E402
from benchmarks.workload import Size, Workload  # noqa: E402
from benchmarks.workloads import ALL  # noqa: E402

needs_postgres = pytest.mark.skipif(
    os.environ.get("PGCRON_TEST_STORE") == "memory", reason="PGCRON_TEST_STORE=memory: there is no PostgreSQL"
)
SVG = "{http://www.w3.org/2000/svg}"
TINY = Size(
    seconds=0.1, bulk=300, beats=5, idle_seconds=0.5, starts=1, deep=500, due=300, passing=1000, schedules=20,
    tick_seconds=2, rounds=1, kept=100,
)  # fmt: skip


def workload(**options: object) -> Workload:
    return Workload("drain-1", "Drain", "jobs/s", lambda trial, size: {}, **options)  # type: ignore[arg-type]


@pytest.fixture
def standing() -> Standing:
    return Standing(workload(), [
        Score("pgcron", [{"jobs/s": 90.0, "CPU": 3.0}, {"jobs/s": 100.0, "CPU": 5.0}, {"jobs/s": 150.0, "CPU": 4.0}]),
        Score("broken", trouble="it <fell> & broke"),
        Score("other", [{"jobs/s": 25.0}, {"jobs/s": 75.0}]),
    ])  # fmt: skip


# Statistics


def test_a_score_is_the_median_of_its_rounds(standing: Standing) -> None:
    ours, _, other = standing.scores

    assert ours.main() == 100.0
    assert ours.medians() == {"jobs/s": 100.0, "CPU": 4.0}
    assert other.main() == 50.0


def test_a_ratio_compares_with_us(standing: Standing) -> None:
    assert [standing.ratio(score) for score in standing.scores] == [1.0, None, 0.5]


def test_there_is_no_ratio_without_us() -> None:
    alone = Standing(workload(), [Score("other", [{"jobs/s": 25.0}])])

    assert alone.ratio(alone.scores[0]) is None


@pytest.mark.parametrize(("less_is_better", "order"), [(False, ["pgcron", "other"]), (True, ["other", "pgcron"])])
def test_the_best_is_ranked_first_and_who_failed_last(
    standing: Standing, less_is_better: bool, order: list[str]
) -> None:
    ranked = Standing(workload(less_is_better=less_is_better), standing.scores).ranked()

    assert [score.contestant for score in ranked] == [*order, "broken"]


def test_a_share_is_the_value_below_which_so_many_lie() -> None:
    values = [float(n) for n in range(101)]

    assert (share(values, 50), share(values, 95), share(values, 99)) == (50.0, 95.0, 99.0)
    assert share([7.0], 99) == 7.0


# Tables and charts


def test_a_table_shows_every_run_and_why_somebody_is_missing(standing: Standing) -> None:
    title, head, first, second, third, trouble = table(standing).splitlines()

    assert title == "Drain [drain-1]"
    assert head.split() == ["median", "jobs/s", "ratio", "to", "us", "runs", "CPU"]
    assert first.split() == ["pgcron", "100", "1.00", "90", "100", "150", "4"]
    assert second.split() == ["other", "50", "0.50", "25", "75", "-"]
    assert third.split() == ["broken", "-"]
    assert trouble == "broken: it <fell> & broke"


@pytest.mark.parametrize(
    ("value", "text"), [(36528.4, "36,528"), (160.4, "160"), (12.345, "12.3"), (1.2345, "1.23"), (3.0, "3")]
)
def test_a_number_has_the_digits_that_mean_something(value: float, text: str) -> None:
    assert number(value) == text


def test_a_chart_is_well_formed_and_its_bars_have_the_proportions_of_the_figures(standing: Standing) -> None:
    about = {"postgres": {"server_version": "18.4", "fsync": "on"}, "rounds": 3}

    svg = ET.fromstring(chart([standing], about, {"pgcron": "ours"}))

    texts = [element.text for element in svg.iter(f"{SVG}text")]
    assert {"Drain", "pgcron", "100", "other", "50", "it <fell> & broke"} <= {*texts}
    bars = [element for element in svg.iter(f"{SVG}rect") if element.get("height") == "15"]
    widths = [float(bar.get("width", 0)) for bar in bars]
    assert widths == pytest.approx([widths[0], widths[0] / 2], rel=0.01)
    width, height = float(svg.get("width", 0)), float(svg.get("height", 0))
    for element in [*svg.iter(f"{SVG}rect"), *svg.iter(f"{SVG}text")]:
        assert 0 <= float(element.get("x", 0)) < width
        assert 0 <= float(element.get("y", 0)) < height


def test_a_figure_may_have_a_panel_of_its_own() -> None:
    both = workload(panels=(("statements/s", "Statements"), ("RSS MB", "Memory")))
    standing = Standing(both, [Score("pgcron", [{"statements/s": 0.0, "RSS MB": 40.5}])])

    texts = [element.text for element in ET.fromstring(chart([standing], {}, {})).iter(f"{SVG}text")]

    assert {"Statements", "0", "Memory", "40.5"} <= {*texts}


# Counting statements


def test_statements_of_one_database_are_counted_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    log = StatementLog(tmp_path / "log", "trial_1")

    found = log.statements(
        "trial_1|LOG:  statement: begin; select ';' -- a; b\n\t, 2; commit\n"
        "trial_1|DETAIL:  Parameters: $1 = 'x'\n"
        "trial_1|LOG:  execute _pg3_0: select $1;\n"
        "trial_2|LOG:  statement: select 3\n"
        "|LOG:  checkpoint starting: time\n"
        "trial_1|LOG:  duration: 3 ms\n"
    )

    assert len(found) == 4
    assert found[3] == "select $1"


def test_semicolons_in_texts_and_functions_end_no_statement() -> None:
    assert len(split("do $x$ begin a; b; end $x$; select 'it''s; here'; ;")) == 2


# Names


def test_an_unknown_workload_is_refused_with_the_near_miss() -> None:
    answer = CliRunner().invoke(main, ["long-transactoin", "--with", "pgcron"])

    assert answer.exit_code == 2
    assert "there is no workload 'long-transactoin'; did you mean 'long-transaction'?" in answer.output


def test_an_unknown_contestant_is_refused_with_the_near_miss() -> None:
    answer = CliRunner().invoke(main, ["drain-1", "--with", "pgcorn"])

    assert answer.exit_code == 2
    assert "there is no contestant 'pgcorn'; did you mean 'pgcron'?" in answer.output


def test_what_is_chosen_comes_in_the_usual_order() -> None:
    assert choose("workload", ["b", "a"], {"a": 1, "b": 2, "c": 3}) == [1, 2]
    with pytest.raises(UnknownName, match="see --list"):
        choose("workload", ["quite something else"], {"a": 1})


def test_the_list_names_all() -> None:
    answer = CliRunner().invoke(main, ["--list"])

    assert answer.exit_code == 0
    for name in (*ALL, *contestants()):
        assert re.search(rf"^  {name} ", answer.output, re.MULTILINE)


# Descriptions


def test_every_description_has_its_program_and_names_workloads_there_are() -> None:
    for contestant in contestants().values():
        assert contestant.family.program.exists()
        assert contestant.family.requirements
        assert {*(contestant.workloads or ())} <= {*ALL}


def test_we_and_the_bare_limit_come_first() -> None:
    kinds = [contestant.kind for contestant in contestants().values()]

    assert kinds == sorted(kinds, key=["ours", "limit", "neighbour"].index)
    assert next(iter(contestants())) == "pgcron"


def test_the_pace_says_how_many_jobs_last_so_long() -> None:
    contestant = Contestant("x", Family("x", "python", ()), pace={"drain": 500})

    assert contestant.jobs("drain", 3) == 1500
    assert contestant.jobs("drain", 0.1) == 200
    assert contestant.jobs("drain", 1000, most=20_000) == 20_000


def test_an_environment_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    family = Family("nothing", "python", ("-r /nowhere/at/all.txt",))

    with pytest.raises(venvs.BuildFailed, match="/nowhere/at/all"):
        venvs.build(family, tmp_path, lambda line: None)

    assert not (tmp_path / "nothing" / "built").exists()


# The whole


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> object:
    version = int(os.environ.get("PGCRON_TEST_PG", "18"))
    with Server(tmp_path_factory.mktemp("bench"), version, fsync="off") as server:
        yield server


@needs_postgres
@pytest.mark.parametrize("name", [*ALL])
def test_we_and_the_bare_limit_are_measured_in_every_workload(server: Server, name: str) -> None:
    known = contestants()
    chosen = [known["pgcron"], known["raw"]]
    contest = Contest(chosen, server, lambda c: venvs.here(c.family), TINY, rounds=1, say=lambda line: None)
    contest.admit()

    standing = contest.run(ALL[name])

    assert {score.contestant: score.trouble for score in standing.scores} == {
        contestant.name: "" for contestant in chosen if contestant.takes_part_in(name)
    }
    for score in standing.scores:
        assert all(value >= 0 for value in score.medians().values())
    json.dumps(standing.as_json())
    assert "pgcron" in table(standing)


@needs_postgres
def test_who_fails_is_named_with_the_reason_and_the_others_go_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = contestants()
    gone = Contestant("gone", Family("gone", "python", ("gone",)))
    contest = Contest(
        [known["pgcron"], gone, known["raw"]], server, lambda c: venvs.here(c.family), TINY, rounds=1,
        say=lambda line: None,
    )  # fmt: skip
    contest.admit()

    standing = contest.run(ALL["bulk"])

    troubles = {score.contestant: score.trouble for score in standing.scores}
    assert troubles["pgcron"] == troubles["raw"] == ""
    assert "benchmarks.contestants.gone" in troubles["gone"]
    assert "gone: not here" in table(standing)


@needs_postgres
def test_the_command_writes_results_that_can_be_read_again(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks", "enqueue-1", "--here", "--with", "pgcron,raw", "--rounds", "2",
         "--seconds", "0.1", "--out", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert answer.returncode == 0, answer.stderr
    assert "pgcron" in answer.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["postgres"]["fsync"] == results["postgres"]["synchronous_commit"] == "on"
    scores = {score["contestant"]: score for score in results["standings"][0]["scores"]}
    assert [len(scores[name]["rounds"]) for name in ("pgcron", "raw")] == [2, 2]
    assert scores["pgcron"]["ratio_to_us"] == 1.0
    ET.parse(tmp_path / "results.svg")
    assert (tmp_path / "results.txt").read_text().count("pgcron") >= 1


def test_the_manual_names_workloads_and_contestants_that_there_are() -> None:
    page = (ROOT / "docs" / "performance.md").read_text("utf-8").replace("\\\n", " ")
    commands = re.findall(r"^python -m benchmarks (.+)$", page, re.MULTILINE)

    assert len(commands) >= 4
    for command in commands:
        words = command.split()
        for name in words[words.index("--with") + 1].split(",") if "--with" in words else ():
            assert name in contestants(), command
        options = [word for word in words if word.startswith("--")]
        values = {words[words.index(option) + 1] for option in ("--with", "--rounds", "--seconds") if option in words}
        assert set(words) - set(options) - values <= set(ALL), command
        assert set(options) <= {option for parameter in main.params for option in parameter.opts}, command
