"""The manual is true: its programs run and print what it says, its commands exist, and nothing public is missing.

How the pages are read:

- The ```python blocks of a page are programs. A block whose first line names a file (``# tasks.py``) begins a new one;
  the next blocks continue it. Each is run as a script, in a folder with the other files of its page, on a database
  with our schema. ``# prints: text`` in it is a line of its output, in this order.
- ``<!-- not run: reason -->`` on the line before a block leaves it out.
- `pgcron ...` and `flask jobs ...` in other blocks and in the text are commands with options that exist.

``python tests/test_docs.py --write`` brings the table of `docs/faults.md` up to date.
"""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest

import pgcron_lite
from pgcron_lite import config, errors, events

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
FAULTS = ROOT / "docs" / "faults.md"
PAGES = [page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if page.exists()]
COMMANDS = {"pgcron": "pgcron_lite.cli:pgcron", "flask jobs": "pgcron_lite.contrib.flask:jobs"}


# Reading pages.


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the number of its first line, and its text."""

    language: str
    line: int
    text: str
    not_run: str | None


@dataclass
class Program:
    """A file made of the blocks that continue one another."""

    file: str
    blocks: list[Block] = field(default_factory=list)

    @property
    def source(self) -> str:
        """The blocks on the lines they have in the page, so that a traceback points there."""
        lines: list[str] = []
        for block in self.blocks:
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.text.splitlines()
        return "\n".join(lines) + "\n"

    @property
    def prints(self) -> list[str]:
        return re.findall(r"# prints: (.*?)\s*$", self.source, re.MULTILINE)

    @property
    def command(self) -> list[str]:
        """How to run it. A file in a package is a module, and a package is imported."""
        module = self.file.removesuffix(".py").replace("/", ".")
        if module.endswith(".__init__"):
            return ["-c", f"import {module.removesuffix('.__init__')}"]
        return ["-m", module] if "/" in self.file else [self.file]


@functools.cache
def blocks(page: Path) -> list[Block]:
    found, before = [], ""
    lines = iter(enumerate(page.read_text("utf-8").splitlines(), start=1))
    for number, line in lines:
        if fence := re.match(r"( *)(```+)(\w*)", line):
            indent, ticks, language = fence.groups()
            inside = []
            for _, text in lines:
                if text.strip() == ticks:
                    break
                inside.append(text.removeprefix(indent))
            reason = re.fullmatch(r"\s*<!-- not run: (.+) -->", before)
            found.append(Block(language, number + 1, "\n".join(inside), reason and reason[1]))
        before = line or before
    return found


def programs(page: Path) -> list[Program]:
    found: list[Program] = []
    for block in blocks(page):
        if block.language != "python" or block.not_run:
            continue
        named = re.match(r"# ([\w/]+\.py)\b", block.text)
        if named or not found:
            # Not `gevent.py` for gevent.md: it would be imported in the library's place.
            found.append(Program(named[1] if named else f"{page.stem}_page.py"))
        found[-1].blocks.append(block)
    return found


@functools.cache
def code(page: Path) -> str:
    """Everything in the page that is set as code."""
    prose = re.sub(r"^( *)(```+).*?^\1\2 *$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*(block.text for block in blocks(page)), *re.findall(r"`([^`]+)`", prose)])


def mentioned() -> str:
    return "\n".join(map(code, PAGES))


# Programs.


@pytest.mark.parametrize("page", [p for p in PAGES if programs(p)], ids=lambda page: page.name)
def test_the_programs_of_a_page_run_and_print_what_it_says(page: Path, pg_url: str, tmp_path: Path) -> None:
    of_this_page = programs(page)
    for program in of_this_page:
        save(program, tmp_path)

    for program in of_this_page:
        save(program, tmp_path)  # again: a later block may show the same file after a change
        printed = run(program, tmp_path, pg_url)

        lines = iter(printed.splitlines())
        missing = [line for line in program.prints if line not in lines]
        assert not missing, f"{page.name}: {program.file} does not print {missing[0]!r}, but:\n{printed}"


@pytest.mark.parametrize("page", [p for p in PAGES if programs(p)], ids=lambda page: page.name)
def test_no_block_stands_after_the_worker_of_its_program(page: Path) -> None:
    for program in programs(page):
        for block in program.blocks[:-1]:
            assert "run_worker(" not in block.text, f"{page.name}:{block.line}: the process ends here"


def save(program: Program, folder: Path) -> None:
    file = folder / program.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(program.source, "utf-8")


def run(program: Program, folder: Path, url: str) -> str:
    """What the program prints; if it fails, so does the test."""
    ours = {"DATABASE_URL": url, "PGCRON_POLL": "0.5s", "PYTHONPATH": str(Path(pgcron_lite.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, *program.command],
        cwd=folder,
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if ended.returncode != 0:
        pytest.fail(f"{program.file} ended with {ended.returncode}:\n{ended.stdout}{ended.stderr}", pytrace=False)
    return ended.stdout


# Commands.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist_with_their_options(page: Path) -> None:
    wrong = {text: problem for text in commands(page) if (problem := complaint(text))}

    assert not wrong


def commands(page: Path) -> Iterator[str]:
    """The command lines in the page that are ours."""
    for block in blocks(page):
        if block.language not in ("python", "sql"):
            for line in block.text.replace("\\\n", " ").splitlines():
                yield from (found[1] for found in re.finditer(r"(?:^|[\s\"'=:])((?:pgcron|flask) [a-z-].*)", line))
    prose = page.read_text("utf-8")
    for text in re.findall(r"(?<!`)`((?:pgcron|flask) [^`]+)`(?!`)", prose):
        # An option that is only named there has no value.
        yield f"{text} VALUE" if text.split()[-1].startswith("-") else text


def complaint(text: str) -> str | None:
    """What is wrong with a command line; None if nothing is, or if it is not ours."""
    words = one_command(text)
    name = next((n for n in COMMANDS if without_options(words)[: len(n.split())] == n.split()), None)
    if name is None:
        return None
    while name.split()[-1] != words[0]:
        words = words[1:]
    return unknown_in(group(name), words[1:])


def one_command(text: str) -> list[str]:
    """The words of the first command in a shell's line."""
    for quote in "\"'":
        if text.count(quote) % 2:  # the end of another language's text
            text = text.rpartition(quote)[0]
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return [*itertools.takewhile(lambda word: word[0] not in "();<>|&" and word not in ("…", "..."), lexer)]


def without_options(words: list[str]) -> list[str]:
    """`flask --app shop jobs` begins like `flask jobs`."""
    if words[:2] == ["flask", "--app"]:
        return ["flask", *words[3:]]
    return words


def group(name: str) -> Any:
    module, _, attribute = COMMANDS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def unknown_in(command: click.Command, words: list[str]) -> str | None:
    """Follow `words` down the tree of commands. Nothing is called but the parsers of their options."""
    context = click.Context(command)
    try:
        _, rest, _ = command.make_parser(context).parse_args(list(words))
    except click.UsageError as error:
        return error.format_message()
    is_placeholder = bool(rest) and rest[0].isupper()  # `pgcron COMMAND --help`
    if not isinstance(command, click.Group) or not rest or is_placeholder:
        return None
    below = command.get_command(context, rest[0])
    return unknown_in(below, rest[1:]) if below else f"there is no command {rest[0]!r}"


def all_commands(command: click.Command, name: str) -> Iterator[str]:
    if command.hidden:
        return
    if isinstance(command, click.Group):
        context = click.Context(command)
        for word in command.list_commands(context):
            below = command.get_command(context, word)
            assert below is not None
            yield from all_commands(below, f"{name} {word}")
    else:
        yield name


# What is public is mentioned.


def test_every_event_is_documented() -> None:
    assert not [event for event in events.EVENTS if not is_mentioned(event)]


def test_every_setting_is_documented() -> None:
    assert not [name for name in map(config.variable, config.READERS) if not is_mentioned(name)]


def test_every_variable_of_the_manual_is_one_that_the_code_reads() -> None:
    source = "\n".join(file.read_text("utf-8") for file in (ROOT / "pgcron_lite").rglob("*.py"))
    read = {*map(config.variable, config.READERS), *re.findall(r"\bPGCRON_[A-Z_]+", source)}

    assert not sorted({*re.findall(r"\bPGCRON_[A-Z_]+[A-Z]", mentioned())} - read)


def test_every_public_name_is_documented() -> None:
    exports = ast.parse((ROOT / "pgcron_lite" / "__init__.py").read_text("utf-8"))
    names = [a.asname for node in exports.body if isinstance(node, ast.ImportFrom) for a in node.names if a.asname]

    assert names
    assert not [name for name in names if not is_mentioned(name)]


def test_every_public_name_is_in_the_reference() -> None:
    exports = ast.parse((ROOT / "pgcron_lite" / "__init__.py").read_text("utf-8"))
    modules = {a.asname: node.module for node in exports.body if isinstance(node, ast.ImportFrom) for a in node.names}
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    shown = {name.rpartition(".")[2] for name in re.findall(r"^\.\. auto\w+:: ([\w.]+)", page, re.MULTILINE)}

    # The exceptions are shown with their module.
    assert {name for name, module in modules.items() if module != "errors"} - shown == set()
    assert ".. automodule:: pgcron_lite.errors\n   :members:" in page


def test_every_exception_is_imported_from_the_package() -> None:
    tree = [errors.PgCronError]
    for known in tree:
        tree += known.__subclasses__()
    ours = {known.__name__ for known in tree if known.__module__ == errors.__name__}

    assert len(ours) > 15
    assert {name for name in ours if getattr(pgcron_lite, name, None) is not getattr(errors, name)} == set()


def test_the_programs_of_the_manual_import_from_the_package_itself() -> None:
    sources = [program.source for page in PAGES for program in programs(page)]

    assert any("from pgcron_lite import" in source for source in sources)
    assert not [m for source in sources for m in re.findall(r"(?:from|import) pgcron_lite\..*", source)]


def test_every_command_is_documented() -> None:
    known = list(all_commands(group("pgcron"), "pgcron"))

    assert known
    assert not [name for name in known if not is_mentioned(name)]


def is_mentioned(text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(text)}(?![\w-])", mentioned()) is not None


# What is promised is tested.


def test_every_test_that_the_manual_names_exists() -> None:
    known = {test.name for test in all_tests()}
    named = {name for page in PAGES for name in re.findall(r"tests/([\w/]+\.py::\w+)", page.read_text("utf-8"))}

    missing = sorted(named - known)
    assert not missing


def test_the_links_of_the_readme_lead_somewhere() -> None:
    readme = ROOT / "README.md"
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme.read_text("utf-8")) if readme.exists() else []

    assert not [link for link in links if not (ROOT / link).exists()]


@dataclass(frozen=True)
class Test:
    """A test by its place, and the rows of the fault catalogue that it holds."""

    __test__ = False

    name: str
    rows: frozenset[str]


@functools.cache
def all_tests() -> list[Test]:
    """Every test function of the suite, read and not imported."""
    found = []
    for file in sorted(TESTS.rglob("*.py")):
        tree = ast.parse(file.read_text("utf-8"))
        of_all = rows_in(node for node in tree.body if isinstance(node, ast.Assign))
        owners = [(tree, of_all), *((n, of_all | rows_in(n.decorator_list)) for n in ast.walk(tree) if is_class(n))]
        for owner, inherited in owners:
            for node in owner.body:
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    name = f"{file.relative_to(TESTS).as_posix()}::{node.name}"
                    found.append(Test(name, inherited | rows_in(node.decorator_list)))
    return found


def is_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef)


def rows_in(nodes: Any) -> frozenset[str]:
    """The rows named by `pytest.mark.row(...)`, on a function or on one of its parameter sets."""
    calls = [n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call)]
    marks = [call for call in calls if ast.unparse(call.func) == "pytest.mark.row"]
    return frozenset(str(arg.value) for call in marks for arg in call.args if isinstance(arg, ast.Constant))


# The table of faults. Its words are written by hand, the names of the tests are filled in.

NOT_YET = "Not covered yet"
SECTIONS = {
    "Workers end, hang or are stopped": range(1, 40),
    "Connections": range(40, 66),
    "The database": range(66, 85),
    "Schedules and time": range(85, 105),
    "Notifications": range(105, 114),
    "Jobs and their data": range(114, 200),
    "Attacks": range(1001, 1029),
}
COVERED_HEAD = "| Row | What goes wrong | What happens | Tested by |\n|---|---|---|---|"
NOT_YET_HEAD = "| Row | What goes wrong | What must happen | Why not yet |\n|---|---|---|---|"


def number(row: str) -> int:
    """The order of rows: those of the security catalogue, S1 and so on, come last."""
    return 1000 + int(row[1:]) if row.startswith("S") else int(row)


def words_of_rows(page: str) -> dict[str, list[str]]:
    """What the page says about each row: fault, effect, and what stands in the last column."""
    found = re.findall(r"^\| (S?\d+) \|(.*)\|$", page, re.MULTILINE)
    return {row: [cell.strip() for cell in cells.split(" | ")] for row, cells in found}


def holders_of_rows() -> dict[str, list[str]]:
    holders = defaultdict(list)
    for test in all_tests():
        for row in test.rows:
            holders[row].append(test.name)
    return dict(holders)


def rendered(page: str) -> str:
    """The page with the tests of today."""
    holders, words = holders_of_rows(), words_of_rows(page)
    parts = [page.partition("\n## ")[0].rstrip()]
    for title, span in SECTIONS.items():
        rows = sorted((row for row in holders if number(row) in span), key=number)
        if rows:
            told = {row: words.get(row, ["?", "?"])[:2] for row in rows}
            lines = [f"| {row} | {' | '.join([*told[row], held_by(holders[row])])} |" for row in rows]
            parts.append("\n".join([f"## {title}", "", COVERED_HEAD, *lines]))
    left = sorted((row for row in words if row not in holders), key=number)
    reasons = {row: "?" if words[row][-1].startswith("`tests/") else words[row][-1] for row in left}
    lines = [f"| {row} | {' | '.join([*words[row][:2], reasons[row]])} |" for row in left]
    parts.append("\n".join([f"## {NOT_YET}", "", NOT_YET_HEAD, *lines]))
    return "\n\n".join(parts) + "\n"


def held_by(names: list[str]) -> str:
    return "<br>".join(f"`tests/{name}`" for name in sorted(names))


def test_the_table_of_faults_names_tests_that_hold_their_rows() -> None:
    words, holders = words_of_rows(FAULTS.read_text("utf-8")), holders_of_rows()

    named = {(row, name) for row, cells in words.items() for name in re.findall(r"`tests/([^`]+)`", cells[-1])}
    stale = sorted(named - {(row, name) for row, names in holders.items() for name in names})
    assert named
    assert not stale, "run: python tests/test_docs.py --write"


def test_every_row_of_the_table_of_faults_has_words() -> None:
    words = words_of_rows(FAULTS.read_text("utf-8"))

    assert {str(n) for n in range(1, 141)} <= set(words)
    assert not [row for row, cells in words.items() if len(cells) != 3 or "?" in cells or "" in cells]


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python tests/test_docs.py --write")
    FAULTS.write_text(rendered(FAULTS.read_text("utf-8")), "utf-8")
