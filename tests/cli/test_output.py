"""What the commands print: nothing that users wrote steers a terminal, and what is proposed can be pasted."""

import ast
import shlex
import subprocess
from pathlib import Path

import pytest
from commands import Run, runner

from pgcron_lite.cli import Refusal, output
from pgcron_lite.job import NewJob
from pgcron_lite.pg.store import PostgresStore
from pgcron_lite.pg.url import parse_url

CLI = Path(output.__file__).parent
HOSTILE = "a\x1b]0;owned\x07\x1b[2J\u202eb\x9b31m\rc\td"

APP = """
from pgcron_lite import PgCron

app = PgCron("shop")

@app.task(name="fail", max_attempts=1)
def fail():
    raise ValueError("a\\x1b]0;owned\\x07\\u202e\\nError: forged")

@app.task(name="tell")
def tell():
    return "a\\x1b]0;owned\\x07\\u202e"
"""


@pytest.fixture
def run(tmp_path: Path, request: pytest.FixtureRequest) -> Run:
    (tmp_path / "shop.py").write_text(APP)
    inner = runner(tmp_path, request)
    return lambda *words, **more: inner("--app", "shop", *words, **more)


def is_harmless(text: str) -> bool:
    return all(character.isprintable() or character == "\n" for character in text)


def test_all_commands_print_through_the_one_function_that_escapes() -> None:
    """`click.echo` stands in `output.echo`, and where an error is shown before anything else is loaded."""
    places = {
        file.name
        for file in CLI.glob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr in ("echo", "secho") and isinstance(node.value, ast.Name)
            and node.value.id == "click")
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
    }  # fmt: skip

    assert places == {"output.py", "__init__.py"}


def test_what_is_printed_is_escaped_and_further_lines_are_indented(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo(f"{HOSTILE}\nError: forged")

    assert is_harmless(capsys.readouterr().out.replace("\t", " "))
    output.echo("one\ntwo")
    assert capsys.readouterr().out == "one\n    two\n"


def test_an_error_is_escaped_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    Refusal(f"failed: {HOSTILE}\nError: forged", 1).show()

    shown = capsys.readouterr().err
    assert is_harmless(shown.replace("\t", " ").replace("\x1b[31m", "").replace("\x1b[0m", ""))
    assert "\nError" not in shown


@pytest.mark.parametrize("words", [("jobs", "list"), ("jobs", "show", 1), ("queues", "list"), ("tasks", "list")])
def test_texts_of_a_row_are_shown_and_do_nothing(run: Run, pg_url: str, words: tuple[object, ...]) -> None:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    store.enqueue([NewJob(HOSTILE, queue=HOSTILE, tags=(HOSTILE,), headers={HOSTILE: HOSTILE})])
    store.cancel(store.enqueue([NewJob("add")])[0], HOSTILE)
    store.close()

    answer = run(*words)

    assert answer.returncode == 0, answer.stderr
    assert is_harmless(answer.stdout), answer.stdout


@pytest.mark.parametrize(("task", "code"), [("fail", 1), ("tell", 0)])
def test_a_job_that_is_run_at_once_is_shown_escaped(run: Run, pg_url: str, task: str, code: int) -> None:
    answer = run("dev", "--run", task, PGCRON_NOTIFY="yes")

    assert answer.returncode == code, answer.stderr
    for line in (answer.stdout + answer.stderr).splitlines():
        assert is_harmless(line), line
        assert not line.startswith("Error: forged")


@pytest.mark.parametrize("queue", ["mail; touch owned", "-q", "it's", "$(touch owned)", "a\x1bb", "plain"])
def test_a_command_that_is_proposed_means_what_it_says(run: Run, pg_url: str, tmp_path: Path, queue: str) -> None:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    [job_id] = store.enqueue([NewJob("add", queue=queue)])
    store.pause(queue)
    store.close()

    answer = run("jobs", "show", job_id)

    [proposed] = [line.partition("resumed: pgcron ")[2] for line in answer.stdout.splitlines() if "resumed: " in line]
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {proposed}"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    assert [word for word in said if word != "--"] == ["queues", "resume", queue, ""]
    assert not (tmp_path / "owned").exists()


def test_a_plain_word_is_proposed_as_it_is() -> None:
    assert output.argument("mail") == shlex.quote("mail") == "mail"


def test_the_table_of_jobs_is_made_without_their_arguments(pg_url: str) -> None:
    store = PostgresStore(parse_url(pg_url, application="pgcron test"))
    store.enqueue([NewJob("add", '{"x":1}', headers={"a": "b"})])

    [bare] = store.find(with_payload=False)
    [full] = store.find()

    assert (bare.args, dict(bare.headers), bare.result) == ("{}", {}, None)
    assert (full.args, dict(full.headers)) == ('{"x":1}', {"a": "b"})
    assert bare.changed(args=full.args, headers=full.headers) == full
    store.close()
