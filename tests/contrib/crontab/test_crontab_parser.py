"""A crontab is read as cron reads it, and what cannot be taken over is told line by line."""

import re
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcron_lite.contrib.crontab.parser import CrontabEntry, Problem, read
from pgcron_lite.errors import OptionError
from pgcron_lite.schedules.cron import parser


def entries(text: str, **how) -> list[CrontabEntry]:
    """The jobs of a crontab in which nothing is wrong."""
    found, problems = read(text, **how)
    assert problems == []
    return found


def only(text: str, **how) -> CrontabEntry:
    [entry] = entries(text, **how)
    return entry


def problem(text: str, **how) -> Problem:
    """What is wrong with the one line of which there is something to say."""
    [found] = read(text, **how)[1]
    return found


def test_a_whole_crontab():
    found = entries(
        dedent("""\
        # m h dom mon dow command
        SHELL=/bin/bash
        PATH = "/usr/local/bin:/usr/bin"

        CRON_TZ=Europe/Berlin
        30 2 * * mon-FRI   backup.sh --full
        \t@daily\treport 2>&1 | tee /tmp/report
        HOME='/srv/shop'
        */5 * * JAN,Jul *  cd /srv && ./poll
        """)
    )

    tz, before = "Europe/Berlin", {"SHELL": "/bin/bash", "PATH": "/usr/local/bin:/usr/bin"}
    assert found == [
        CrontabEntry(6, "30 2 * * mon-FRI", "backup.sh --full", None, before, tz, None),
        CrontabEntry(7, "@daily", "report 2>&1 | tee /tmp/report", None, before, tz, None),
        CrontabEntry(9, "*/5 * * JAN,Jul *", "cd /srv && ./poll", None, {**before, "HOME": "/srv/shop"}, tz, None),
    ]


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n  # at all\n", " \t \n\r\n", "\ufeff"])
def test_there_may_be_no_jobs_at_all(text):
    assert read(text) == ([], [])


@pytest.mark.parametrize("text", ["@daily a\r\nX=1\r\n@hourly b\r\n", "\ufeff@daily a\nX=1\n@hourly b"])
def test_ends_of_lines_may_be_those_of_windows_or_missing(text):
    found = entries(text)

    assert [(entry.line, entry.command, entry.environment) for entry in found] == [(1, "a", {}), (3, "b", {"X": "1"})]


def test_only_a_newline_ends_a_line():
    assert only("@daily printf 'a\x0bb\x85c\u2028d'").command == "printf 'a\x0bb\x85c\u2028d'"


def test_a_number_sign_later_in_a_line_is_no_comment():
    assert only("@daily backup # every night").command == "backup # every night"


def test_a_minus_in_front_only_keeps_cron_from_logging():
    assert only("-*/15 * * * * poll").expression == "*/15 * * * *"


# Settings

@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("A=b", "A", "b"),
        ("  A =  b c  ", "A", "b c"),
        ("A=", "A", ""),
        ("A=''", "A", ""),
        ('A=" b "', "A", " b "),
        ("A='it is \"b\"'", "A", 'it is "b"'),
        ('"A"=b', "A", "b"),
        ("'A' = 'b'", "A", "b"),
        ("A=b 'c'", "A", "b 'c'"),
        ("A=b # c", "A", "b # c"),
        ("A=b=c", "A", "b=c"),
        ("A=$HOME/b", "A", "$HOME/b"),
        ("A=50%", "A", "50%"),
        ("_a1=b", "_a1", "b"),
    ],
)
def test_a_setting(line, name, value):
    assert only(f"{line}\n@daily x").environment == {name: value}


def test_settings_hold_for_the_lines_after_them():
    found = entries("@daily a\nX=1\n@daily b\nX=2\n@daily c\n")

    assert [entry.environment for entry in found] == [{}, {"X": "1"}, {"X": "2"}]


@pytest.mark.parametrize("line", ["X='b", "X='b' c", 'X="', "X='a' 'b'"])
def test_a_value_whose_quotes_do_not_match_is_told(line):
    found = problem(f"{line}\n@daily x")

    assert (found.line, found.text) == (1, line)
    assert "quote" in found.why


def test_an_assignment_in_a_command_is_no_setting():
    assert only("@daily LEVEL=3 backup").environment == {}


def test_mail_is_told_once():
    found, problems = read("MAILTO=ops@example.org\n@daily a\nMAILTO=b\nMAILFROM=c\n@daily b\n")

    assert [entry.environment for entry in found] == [{}, {}]
    assert [told.line for told in problems] == [1]
    assert "MAILTO is not imported" in problems[0].why
    assert "job_failed" in problems[0].why


@pytest.mark.parametrize("line", ['MAILTO=""', "MAILTO=", "RANDOM_DELAY=0"])
def test_what_asks_for_nothing_is_not_told(line):
    assert only(f"{line}\n@daily a").environment == {}


def test_a_random_delay_is_jitter_here():
    assert "jitter='45m'" in problem("RANDOM_DELAY=45\n@daily a").why


# Time zones

def test_times_are_those_of_the_zone_given_until_the_crontab_names_one():
    found = entries(
        dedent("""\
        @daily a
        CRON_TZ=Asia/Tokyo
        @daily b
        CRON_TZ=
        @daily c
        """),
        tz="Europe/Paris",
    )

    assert [entry.tz for entry in found] == ["Europe/Paris", "Asia/Tokyo", "Europe/Paris"]
    assert [entry.environment for entry in found] == [{}, {}, {}]


def test_tz_is_for_both_and_the_difference_to_cron_is_told():
    found, problems = read("TZ=Asia/Tokyo\n@daily a\n")

    assert (found[0].tz, found[0].environment) == ("Asia/Tokyo", {"TZ": "Asia/Tokyo"})
    assert [told.line for told in problems] == [1]
    assert "CRON_TZ=UTC" in problems[0].why


def test_tz_is_for_the_commands_alone_beside_cron_tz():
    entry = only("CRON_TZ=Europe/Rome\nTZ=Asia/Tokyo\n@daily a\n")

    assert (entry.tz, entry.environment) == ("Europe/Rome", {"TZ": "Asia/Tokyo"})


def test_tz_that_changes_nothing_is_not_told():
    assert only("TZ=Europe/Rome\n@daily a\n", tz="Europe/Rome").tz == "Europe/Rome"


@pytest.mark.parametrize("name", ["CRON_TZ", "TZ"])
def test_no_job_is_taken_into_another_zone_because_its_own_is_unknown(name):
    found, problems = read(f"{name}=Europe/Berln\n@daily a\n{name}=Europe/Berlin\n@daily b\n")

    assert [entry.command for entry in found] == ["b"]
    assert "did you mean 'Europe/Berlin'?" in problems[0].why
    assert "the time zone in line 1" in problems[1].why


def test_an_unknown_zone_of_the_caller_is_refused_at_once():
    with pytest.raises(OptionError, match="Nowhere"):
        read("", tz="Nowhere")


# Commands

@pytest.mark.parametrize(
    ("written", "command", "stdin"),
    [
        ("cat", "cat", None),
        ("cat%", "cat", ""),
        ("cat%a", "cat", "a\n"),
        ("cat%a%b", "cat", "a\nb\n"),
        ("cat%a%", "cat", "a\n"),
        ("cat%%a", "cat", "\na\n"),
        (r"date +\%F", "date +%F", None),
        (r"date +\%F%a\%b%c", "date +%F", "a%b\nc\n"),
        (r"echo \\%a", r"echo \\", "a\n"),
        (r"echo \\\%a", r"echo \\%a", None),
        (r"echo \n 'a\\b'", r"echo \n 'a\\b'", None),
        (r"cat%\n\\%x", "cat", "\\n\\%x\n"),
        ("cat%a\\", "cat", "a\\\n"),
        ("echo a\\", "echo a\\", None),
        ("echo a   ", "echo a   ", None),
    ],
)
def test_percent_signs(written, command, stdin):
    entry = only(f"@daily {written}\n")

    assert (entry.command, entry.stdin) == (command, stdin)


@pytest.mark.parametrize("line", ["@daily", "@daily   ", "1 2 * * *", "1 2 * * * \t", "1 2 * * * %a"])
def test_a_line_without_a_command_is_told(line):
    assert "no command" in problem(line).why


def test_reboot_is_run_on_start_here():
    assert "run_on_start=True" in problem("@reboot warm-up").why
    assert "run_on_start=True" in problem("@reboot root warm-up", system=True).why


@pytest.mark.parametrize("expression", ["61 * * * *", "* * * * FRX", "0 0 30 2 *", "@dayly", "5~9 * * * *"])
def test_what_is_wrong_with_an_expression_is_told_in_its_own_words(expression):
    with pytest.raises(OptionError) as refusal:
        parser.read(expression)

    assert problem(f"\n  {expression} x\n") == Problem(2, f"  {expression} x", str(refusal.value))


@pytest.mark.parametrize("line", ["hello", "hello world", "* * *"])
def test_a_line_that_is_nothing_of_the_kind_is_told(line):
    assert "expected five" in problem(line).why


def test_six_fields_are_told():
    assert "no field for seconds" in problem("0 */5 * * * * backup").why


@pytest.mark.parametrize(
    ("line", "hint"), [("@daily echo \0", "NUL"), ("@daily echo \udcff", "UTF-8"), ("X=\udcff", "UTF-8")]
)
def test_what_no_command_can_hold_is_told(line, hint):
    assert hint in problem(line).why


def test_a_line_that_cannot_be_taken_leaves_the_others_alone():
    found, problems = read("@daily a\n99 * * * * b\n@daily c\n")

    assert [entry.command for entry in found] == ["a", "c"]
    assert [told.line for told in problems] == [2]


# System crontabs

def test_a_system_crontab_names_a_user():
    found = entries("17 *\t* * *\troot\tcd / && run-parts /etc/cron.hourly\n@daily www:www a b\n", system=True)

    assert [(entry.user, entry.command) for entry in found] == [
        ("root", "cd / && run-parts /etc/cron.hourly"),
        ("www:www", "a b"),
    ]


@pytest.mark.parametrize("line", ["1 2 * * * backup", "@daily backup", "@daily backup  "])
def test_a_users_crontab_is_not_taken_for_a_system_one(line):
    assert "a user and a command" in problem(line, system=True).why


def test_a_system_crontab_is_not_taken_for_a_users():
    assert "system crontab" in problem("17 * * * * root run-parts /etc/cron.hourly").why


# Names

@pytest.mark.parametrize(
    ("command", "slug"),
    [
        ("/usr/local/bin/backup.sh --full", "backup-sh"),
        ("cd /srv/shop && LEVEL=3 ./backup.sh", "backup-sh"),
        ("A=1 B='x' Report_Daily", "report-daily"),
        ("( ps; ls )", "ps"),
        ('"/opt/my tool"', "my"),
        ("cd /srv", "cd"),
        ("???", "command"),
        ("über", "ber"),
        ("x" * 500, "x" * 30),
        ("cd" + " " * 100_000, "cd"),
    ],
)
def test_a_name_begins_with_the_program(command, slug):
    assert re.fullmatch(re.escape(slug) + "-[0-9a-f]{8}", only(f"@daily {command}").name)


def test_names_never_change():
    entry = only("CRON_TZ=Europe/Rome\nX=1\n*/5 * * * * backup%a")

    assert entry.name == "backup-99a68a99"


def test_a_name_depends_on_what_the_job_is_and_not_on_where_it_stands():
    before, after = only("X=1\nY=2\n1 2 * * * a"), only("# more\nY=2\n\nX=1\n1  2 *\t* * a\n")

    assert before.name == after.name


def test_jobs_that_differ_in_anything_have_names_of_their_own():
    found = entries(
        dedent("""\
        1 2 * * * a
        1 3 * * * a
        1 2 * * * a b
        1 2 * * * a%
        1 2 * * * a%b
        X=1
        1 2 * * * a
        CRON_TZ=Europe/Rome
        1 2 * * * a
        """)
    )
    found += entries("1 2 * * * x a\n1 2 * * * y a\n", system=True)

    assert len({entry.name for entry in found}) == len(found) == 9


def test_the_same_job_twice_is_taken_once_and_told():
    found, problems = read("@daily a\n@hourly a\n@daily  a\n")

    assert [entry.line for entry in found] == [1, 2]
    assert [told.line for told in problems] == [3]
    assert "line 1" in problems[0].why


# Any text

PIECES = st.sampled_from(
    ["@daily ", "@reboot", "*", "1", "/", " ", "\t", "\n", "\r", "%", "\\", "=", "'", '"', "X", "MAILTO", "TZ",
     "UTC", "Europe/Rome", "1 2 * * * ", "root ", "cmd", "#", "\0", "\udc80", "-", "~", "é", "\u2028", "RANDOM_DELAY=",
     "CRON_TZ"]
)  # fmt: skip
TEXTS = st.one_of(st.text(st.characters()), st.lists(PIECES, max_size=40).map("".join))


@given(TEXTS, st.booleans())
def test_reading_never_fails(text, system):
    found, problems = read(text, system=system)

    lines = text.split("\n")
    assert all(1 <= told.line <= len(lines) and told.why for told in problems)
    assert len({entry.name for entry in found}) == len(found)
    for entry in found:
        parser.read(entry.expression)
        assert entry.command.strip()
        assert (entry.user is not None) is system
        assert re.fullmatch(r"[a-z0-9-]{1,30}-[0-9a-f]{8}", entry.name)
        # They are to be arguments of a job.
        stored = "".join([entry.command, entry.stdin or "", entry.user or "", *sum(entry.environment.items(), ())])
        assert b"\0" not in stored.encode()


@given(TEXTS)
def test_reading_twice_comes_to_the_same(text):
    once, twice = read(text), read(text.replace("\n", "\r\n") if "\r" not in text else text)

    assert [entry.name for entry in once[0]] == [entry.name for entry in twice[0]]
