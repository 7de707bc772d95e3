"""A command runs to its end, is bounded in every way, and leaves nothing behind that nobody watches."""

import contextlib
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import eventually, python, running

from pgcron_lite import PgCron
from pgcron_lite.contrib.crontab import shell
from pgcron_lite.contrib.crontab.shell import CommandFailed, CommandTimedOut, Output
from pgcron_lite.errors import OptionError, PgCronError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PATIENCE = 30.0


def output(command: str, **how) -> str:
    """What `command` prints."""
    return shell.run(command, **how)["output"]


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it is more than a zombie that its parent does not ask for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def pid_in(path: Path) -> int:
    """The number that a command writes into the file, as soon as it is there."""
    return int(eventually(lambda: path.exists() and path.read_text().strip(), within=PATIENCE))


@contextlib.contextmanager
def killed(path: Path) -> Iterator[None]:
    """End the process whose pid is in the file, whatever has become of it."""
    try:
        yield
    finally:
        if path.exists() and path.read_text().strip():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)


# What comes back

def test_a_command_that_ends_well():
    answer = shell.run("echo out; echo err >&2; exit 0")

    assert answer.pop("seconds") >= 0
    assert answer == {"exit_code": 0, "output": "out\nerr\n"}


def test_there_is_no_input_unless_it_is_given():
    assert output("cat; echo end") == "end\n"
    assert output("cat", stdin="") == ""
    assert output("cat", stdin="äöü\n") == "äöü\n"


def test_a_command_reads_and_writes_more_than_pipes_hold():
    text = "x" * 3_000_000

    assert output("wc -c", stdin=text).strip() == "3000000"
    assert "bytes left out" in output("cat", stdin=text)


@pytest.mark.parametrize(
    "command", ["exit 0", "exec <&-; sleep 0.2", "head -c 10 >/dev/null", "exec >&- 2>&-; cat >/dev/null"]
)
def test_a_command_need_not_read_its_input(command):
    assert output(command, stdin="x" * 1_000_000) == ""


SECRETS = (
    "DATABASE_URL", "SHOP_DATABASE_URL", "PGCRON_DATABASE_URL", "PGCRON_DIRECT_URL", "PGCRON_SLOTS", "PGPASSWORD",
    "PGPASSFILE", "AWS_SECRET_ACCESS_KEY", "SECRET_KEY",
)


def variables(**how) -> dict[str, str]:
    """The environment of a command, but for what the shell itself adds."""
    lines = output("env", **how).splitlines()
    found = dict(line.split("=", 1) for line in lines)
    return {name: value for name, value in found.items() if name not in ("PWD", "OLDPWD", "SHLVL", "_")}


def test_a_command_gets_what_programs_need_and_no_secret(monkeypatch):
    for name in list(os.environ):
        monkeypatch.delenv(name)
    needed = {
        "PATH": os.defpath, "HOME": "/h", "USER": "u", "LOGNAME": "u", "LANG": "C.UTF-8", "LC_TIME": "C", "TZ": "UTC",
        "TMPDIR": "/tmp",
    }  # fmt: skip
    for name in SECRETS:
        monkeypatch.setenv(name, "canary")
    for name, value in needed.items():
        monkeypatch.setenv(name, value)

    assert variables() == {**needed, "SHELL": "/bin/sh"}


def test_the_environment_given_is_added_and_wins(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")

    found = variables(environment={"GIVEN": "b", "TZ": "Europe/Berlin", "DATABASE_URL": "of the crontab"})

    assert (found["GIVEN"], found["TZ"], found["DATABASE_URL"]) == ("b", "Europe/Berlin", "of the crontab")


def test_an_app_may_pass_variables_on_by_their_names(monkeypatch):
    monkeypatch.setenv("BACKUP_DIR", "/b")
    monkeypatch.setenv("DATABASE_URL", "named")
    monkeypatch.setenv("OTHER", "canary")
    app = PgCron("shop", url="memory://")
    task = app.enable_shell(env=["BACKUP_DIR", "DATABASE_URL", "NOT_SET"])

    printed = task('echo "$BACKUP_DIR $DATABASE_URL $OTHER$NOT_SET $GIVEN"', environment={"GIVEN": "g"})["output"]

    assert printed == "/b named  g\n"
    assert inspect.signature(task.function) == inspect.signature(shell.run)


@pytest.mark.parametrize("env", ["BACKUP_DIR", ["A=canary"], [""], [1], {"A": "canary"}, None])
def test_what_names_no_variables_is_refused_and_not_shown(env):
    with pytest.raises(OptionError, match="expected names of variables") as refused:
        PgCron("shop", url="memory://").enable_shell(env=env)

    assert "canary" not in str(refused.value)


def test_the_shell_is_that_of_the_environment_given(monkeypatch, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text('#!/bin/sh\necho "mine: $1 $2"\n')
    mine.chmod(0o755)
    monkeypatch.setenv("SHELL", "/nowhere")

    assert output("a b", environment={"SHELL": str(mine)}) == "mine: -c a b\n"
    assert output("echo $SHELL") == "/bin/sh\n"


def test_the_directory_may_be_given(tmp_path):
    assert output("pwd -P", cwd=str(tmp_path)) == f"{tmp_path.resolve()}\n"


def test_descriptors_of_ours_are_not_handed_on():
    fd = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        assert output(f"if [ -e /proc/self/fd/{fd} ]; then echo there; fi") == ""
    finally:
        os.close(fd)


# What fails

def test_an_exit_code_is_an_error_that_shows_what_was_said():
    with pytest.raises(CommandFailed) as raised:
        shell.run("echo no such table >&2; exit 3")

    assert str(raised.value) == "exit code 3:\nno such table"
    assert (raised.value.exit_code, raised.value.output) == (3, "no such table\n")
    assert isinstance(raised.value, PgCronError)


def test_an_error_shows_the_end_of_what_was_said():
    with pytest.raises(CommandFailed) as raised:
        shell.run("seq 1 100000; echo the reason; exit 1")

    assert str(raised.value).startswith("exit code 1:\n…")
    assert str(raised.value).endswith("100000\nthe reason")
    assert len(str(raised.value)) < 2_000
    assert raised.value.output.startswith("1\n2\n")


def test_an_error_without_output_is_one_line():
    with pytest.raises(CommandFailed) as raised:
        shell.run("false")

    assert str(raised.value) == "exit code 1"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_named(number):
    with pytest.raises(CommandFailed, match=f"ended by {number.name}") as raised:
        shell.run(f"kill -{int(number)} $$")

    assert raised.value.exit_code is None


def test_a_signal_that_has_no_name_is_told_by_its_number():
    with pytest.raises(CommandFailed, match="ended by signal 40"):
        shell.run("kill -40 $$")


def test_a_command_that_is_not_found_is_told_by_the_shell():
    with pytest.raises(CommandFailed, match=r"exit code 127:\n.*no-such-program"):
        shell.run("no-such-program")


@pytest.mark.parametrize("how", [{"cwd": "/nowhere"}, {"environment": {"SHELL": "/nowhere/sh"}}])
def test_what_cannot_be_started_is_told(how):
    with pytest.raises(CommandFailed, match=r"cannot be started.*nowhere") as raised:
        shell.run("true", **how)

    assert raised.value.exit_code is None


@pytest.mark.parametrize(
    "how",
    [
        {"command": "echo \0"},
        {"command": "true", "environment": {"A": "\0"}},
        {"command": "true", "environment": {"A=B": "c"}},
        {"command": "true", "environment": {"A": 1}},
        {"command": "cat", "stdin": 1},
        {"command": "cat", "stdin": "\ud800"},
        {"command": "true", "timeout": -1},
        {"command": "true", "timeout": float("nan")},
    ],
)
def test_what_can_never_be_right_is_refused(how):
    with pytest.raises(OptionError):
        shell.run(**how)


def test_nothing_stays_open():
    def descriptors() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    before = descriptors()
    for how in ({"stdin": "x"}, {"stdin": "x", "environment": {"SHELL": "/nowhere"}}, {"command": "exit 1"}):
        with contextlib.suppress(CommandFailed):
            shell.run(**{"command": "true", **how})

    # One for the look itself, which may have another number each time.
    assert len(descriptors()) == len(before)
    assert not shell._groups


# Output

def test_much_output_is_cut_in_the_middle_and_counted():
    said = output("seq -w 1 1000000")

    head, _, tail = said.partition("\n… ")
    left_out, _, tail = tail.partition(" bytes left out …\n")
    assert head.startswith("0000001\n0000002\n")
    assert tail.endswith("0999999\n1000000\n")
    assert len(head) + int(left_out) + len(tail) == 8_000_000
    assert 31_900 < len(said) < 32_768


def test_output_is_not_cut_before_it_has_to_be():
    assert output(f"head -c {shell.MAX_OUTPUT} /dev/zero | tr '\\0' x") == "x" * shell.MAX_OUTPUT


def test_endless_output_does_not_fill_the_memory():
    program = """\
        import resource
        from pgcron_lite.contrib.crontab import shell

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = shell.run("head -c 400000000 /dev/zero | tr '\\\\0' x")
        print(len(answer["output"]) < 33_000, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40_000)
        """

    assert python(program) == "True True\n"


def test_bytes_that_are_no_text_are_spelt():
    assert output(r"printf 'a\000b\377c\303\244'") == "a\\x00b\\xffcä"


def test_a_character_that_is_not_finished_is_spelt():
    assert output(r"printf 'a\303'") == "a\\xc3"


@given(st.lists(st.binary(max_size=50)), st.integers(2, 40))
def test_output_is_the_same_however_it_arrives(pieces, most):
    whole, parts = Output(most), Output(most)

    whole.add(b"".join(pieces))
    for piece in pieces:
        parts.add(piece)

    text = parts.text()
    assert text == whole.text()
    assert "\0" not in text
    assert len(text.encode()) <= most + 60


@given(st.text(), st.integers(2, 40))
def test_output_that_is_cut_is_never_cut_within_a_character(text, most):
    told = Output(most)

    told.add(text.encode("utf-8", "backslashreplace"))

    whole = text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    head, cut, tail = told.text().partition("\n… ")
    if len(whole.encode()) <= most // 2 * 2:
        assert told.text() == whole
    else:
        tail = tail.partition(" bytes left out …\n")[2]
        assert cut
        assert whole.startswith(head)
        assert whole.endswith(tail)


# What goes on in the background

def test_a_child_in_the_background_does_not_hold_it_up(tmp_path):
    noted = tmp_path / "pid"
    with killed(noted):
        said = output(f"sleep 300 & echo $! > {noted}; echo done")

        # Listening until the sleep has ended would have taken five minutes, and the test with it.
        assert said == "done\n"
        assert is_alive(pid_in(noted))


def test_a_child_in_the_background_that_never_stops_talking_does_not_hold_it_up(tmp_path):
    noted = tmp_path / "pid"
    with killed(noted):
        assert output(f"echo first; yes & echo $! > {noted}").startswith("first\n")


def test_all_that_the_command_says_is_heard_though_the_pipe_stays_open(tmp_path):
    noted = tmp_path / "pid"
    with killed(noted):
        said = output(f"sleep 300 & echo $! > {noted}; head -c 30000 /dev/zero | tr '\\0' x; echo end")

    assert said == "x" * 30_000 + "end\n"


def test_a_command_that_closes_its_output_is_waited_for(tmp_path):
    assert output(f"exec >&- 2>&-; sleep 0.5; echo late > {tmp_path}/file") == ""
    assert (tmp_path / "file").read_text() == "late\n"


# Too late

@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file: as soon as something is in it, hours have passed, and it is too late for any command."""
    path = tmp_path / "late"

    def monotonic() -> float:
        return time.monotonic() + (100_000 if path.exists() and path.read_text().strip() else 0)

    monkeypatch.setattr(shell, "monotonic", monotonic)
    return path


def test_after_the_timeout_the_whole_group_is_ended(late):
    with killed(late):
        with pytest.raises(CommandTimedOut, match="not done within 3600 s") as raised:
            shell.run(f"echo begun; sleep 300 & echo $! > {late}; wait")

        assert raised.value.output == "begun\n"
        eventually(lambda: not is_alive(pid_in(late)), within=PATIENCE)


def test_a_command_is_asked_to_end_before_it_is_killed(monkeypatch, late):
    monkeypatch.setattr(shell, "GRACE_SECONDS", PATIENCE)

    with pytest.raises(CommandTimedOut, match="tidied up"):
        shell.run(f"trap 'echo tidied up; exit 0' TERM; echo $$ > {late}; while :; do sleep 0.1; done")


def test_a_command_may_say_a_lot_as_it_ends(monkeypatch, late):
    monkeypatch.setattr(shell, "GRACE_SECONDS", PATIENCE)

    with pytest.raises(CommandTimedOut, match="the end"):
        shell.run(f"trap 'seq 1 200000; echo the end; exit' TERM; echo $$ > {late}; while :; do sleep 0.1; done")


def test_children_have_the_grace_as_well_when_the_shell_has_ended_at_once(monkeypatch, late, tmp_path):
    monkeypatch.setattr(shell, "GRACE_SECONDS", PATIENCE)
    tidy = tmp_path / "tidy"
    slow = f"trap 'sleep 1; echo tidied up > {tidy}; exit' TERM; echo $$ > {late}; while :; do sleep 0.1; done"

    with pytest.raises(CommandTimedOut):
        shell.run('sh -c "$SLOW"; true', environment={"SLOW": slow})

    assert tidy.read_text() == "tidied up\n"


def test_who_does_not_end_when_asked_is_killed(monkeypatch, late):
    monkeypatch.setattr(shell, "GRACE_SECONDS", 0.5)
    with killed(late):
        with pytest.raises(CommandTimedOut):
            shell.run(f"trap '' TERM; sleep 300 & echo $$ > {late}; while :; do sleep 0.1; done")

        assert not is_alive(pid_in(late))


@pytest.mark.parametrize("patch", ["", "import gevent.monkey; gevent.monkey.patch_all()"], ids=["threads", "gevent"])
def test_the_first_process_of_a_container_keeps_no_zombies(patch):
    program = f"""\
        {patch}
        import ctypes, os
        from pgcron_lite.contrib.crontab import shell

        PR_SET_CHILD_SUBREAPER = 36  # orphans become ours, as they are the first process's
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
        # The first one ends when it is asked to, which has to be noticed.
        for command in ("sleep 300 & sleep 300 & wait", "trap '' TERM; (sleep 300; sleep 300) & wait"):
            shell.GRACE_SECONDS = 1.0 if "trap" in command else 300.0
            try:
                shell.run(command, timeout=0.5)
            except shell.CommandTimedOut:
                try:
                    print(os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG))
                except ChildProcessError:
                    print("none")
        """

    assert python(program, timeout=60) == "none\nnone\n"


def test_a_timeout_may_be_written_as_elsewhere():
    with pytest.raises(CommandTimedOut, match=r"within 0\.3 s"):
        shell.run("sleep 300", timeout="300ms")


# Interrupted

class Interruption(BaseException):
    """As gevent.Timeout is: no Exception."""


def test_a_command_is_killed_when_the_task_is_interrupted(monkeypatch, tmp_path):
    noted = tmp_path / "pid"
    look, children = shell._Child._look, []

    def interrupted(child: shell._Child, seconds: float) -> None:
        look(child, seconds)
        children.append(child)
        if noted.exists() and noted.read_text().strip():
            raise Interruption

    monkeypatch.setattr(shell._Child, "_look", interrupted)
    with killed(noted):
        with pytest.raises(Interruption):
            shell.run(f"trap '' TERM; sleep 300 & echo $! > {noted}; wait; sleep 300")

        eventually(lambda: not is_alive(pid_in(noted)), within=PATIENCE)
        assert not shell._groups
        # Reaped as well.
        assert children[0].process.returncode == -signal.SIGKILL


def test_a_command_is_killed_when_the_task_is_interrupted_as_it_is_asked_to_end(monkeypatch, late):
    def interrupted(child: shell._Child) -> bool:
        raise Interruption

    monkeypatch.setattr(shell._Child, "_is_alive", interrupted)
    with killed(late):
        with pytest.raises(Interruption):
            shell.run(f"trap '' TERM; echo $$ > {late}; while :; do sleep 0.1; done")

        assert not is_alive(pid_in(late))


def test_a_command_is_killed_when_the_task_is_interrupted_as_it_starts(monkeypatch):
    started = []
    popen = shell.subprocess.Popen

    class Interrupted(popen):
        def __init__(self, *args, **how) -> None:
            super().__init__(*args, **how)
            started.append(self)
            raise Interruption

    monkeypatch.setattr(shell.subprocess, "Popen", Interrupted)

    with pytest.raises(Interruption):
        shell.run("sleep 300")

    assert started[0].returncode == -signal.SIGKILL


def test_ctrl_c_as_the_process_is_made_leaves_nothing_behind(monkeypatch):
    made = []
    fork_exec = shell.subprocess._fork_exec

    def interrupted(*how):
        made.append(fork_exec(*how))
        signal.raise_signal(signal.SIGINT)
        return made[0]

    monkeypatch.setattr(shell.subprocess, "_fork_exec", interrupted)

    with pytest.raises(KeyboardInterrupt):
        shell.run("sleep 300")

    assert not is_alive(made[0])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_in_the_main_thread_leaves_nothing_behind(tmp_path):
    program = """\
        import sys
        from pgcron_lite.contrib.crontab import shell

        try:
            shell.run(f"sleep 300 & echo $! > {sys.argv[1]}; wait")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    noted = tmp_path / "pid"
    with killed(noted), running(program, noted) as process:
        pid = pid_in(noted)

        process.send_signal(signal.SIGINT)

        assert process.stdout.read() == "interrupted\n"
        eventually(lambda: not is_alive(pid), within=PATIENCE)


# Seconds from when the command runs until its starter comes to know it, on a machine with other things to do.
@pytest.mark.parametrize("late", [0, 0.5], ids=["started", "starting"])
@pytest.mark.parametrize("end", ["pass", "shell.kill_all(); os._exit(0)"])
def test_what_runs_when_the_process_ends_is_killed(tmp_path, end, late):
    program = f"""\
        import os, sys, threading, time
        from pgcron_lite.contrib.crontab import shell

        fork_exec = shell.subprocess._fork_exec
        shell.subprocess._fork_exec = lambda *how: (fork_exec(*how), time.sleep({late}))[0]

        command = f"sleep 300 & echo $! > {{sys.argv[1]}}; wait"
        threading.Thread(target=shell.run, args=(command,), daemon=True).start()
        while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read().strip():
            time.sleep(0.02)
        {end}
        """
    noted = tmp_path / "pid"
    with killed(noted):
        python(program, noted)

        eventually(lambda: not is_alive(pid_in(noted)), within=PATIENCE)


def test_nothing_is_started_any_more_when_the_process_ends(tmp_path):
    program = """\
        import sys
        from pgcron_lite.contrib.crontab import shell

        shell.kill_all()
        try:
            shell.run(f"echo > {sys.argv[1]}")
        except shell.CommandFailed as error:
            print(error)
        """
    started = tmp_path / "started"

    assert python(program, started) == "this process is ending, and starts no more commands\n"
    assert not started.exists()


def test_a_fork_of_this_process_kills_nothing_of_it(tmp_path):
    program = """\
        import os, sys, threading, time
        from pgcron_lite.contrib.crontab import shell

        command = f"echo > {sys.argv[1]}/begun; while [ ! -e {sys.argv[1]}/go ]; do sleep 0.05; done; echo well"
        thread = threading.Thread(target=lambda: print(shell.run(command)["output"], end=""))
        thread.start()
        while not os.path.exists(f"{sys.argv[1]}/begun"):
            time.sleep(0.02)
        if not (child := os.fork()):
            shell.kill_all()
            os._exit(0)
        os.waitpid(child, 0)
        open(f"{sys.argv[1]}/go", "w").close()
        thread.join()
        """

    assert python(program, tmp_path, timeout=60) == "well\n"


# Many at once

def test_many_threads_run_commands_at_once():
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = output(f"cat; echo {number}", stdin=f"{number}\n")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert answers == {number: f"{number}\n{number}\n" for number in range(20)}


GEVENT = """\
    import gevent.monkey
    gevent.monkey.patch_all()
    import os, sys, time
    import gevent
    from pgcron_lite.contrib.crontab import shell
"""


def test_under_gevent_greenlets_run_commands_at_once(tmp_path):
    program = GEVENT + """\
    turns = 0

    def turn():
        global turns
        while True:
            turns += 1
            if turns == 6:
                open(os.path.join(sys.argv[1], "turned"), "w").close()
            gevent.sleep(0.01)

    gevent.spawn(turn)
    # Each waits for all the others to have begun, and for the greenlet beside them to have had its turns.
    meet = "touch %d; while [ $(ls | wc -l) -lt 6 ]; do sleep 0.05; done; cat; echo %d"
    asked = [gevent.spawn(shell.run, meet % (n, n), "x" * 200_000, cwd=sys.argv[1]) for n in range(5)]
    print([task.get()["output"][-2:] for task in asked], turns > 5)
    """

    said = python(program, tmp_path, timeout=60)

    assert said == "['0\\n', '1\\n', '2\\n', '3\\n', '4\\n'] True\n"


def test_under_gevent_it_fails_and_is_late_as_elsewhere():
    program = GEVENT + """\
    for command, timeout in (("echo a; exit 3", 60), ("echo b; sleep 300", 3), ("kill -9 $$", 60)):
        try:
            shell.run(command, timeout=timeout)
        except shell.CommandFailed as error:
            print(type(error).__name__, error.exit_code, repr(str(error)))
    try:
        shell.run("true", environment={"SHELL": "/nowhere"})
    except shell.CommandFailed as error:
        print("/nowhere" in str(error))
    print(shell.run("sleep 5 & echo c")["output"], end="")
    """

    assert python(program, timeout=60) == (
        "CommandFailed 3 'exit code 3:\\na'\n"
        "CommandTimedOut None 'not done within 3 s, and ended:\\nb'\n"
        "CommandFailed None 'ended by SIGKILL'\n"
        "True\nc\n"
    )


@pytest.mark.parametrize("how", ["deadline", "kill"])
def test_under_gevent_a_command_is_killed_with_its_greenlet(tmp_path, how):
    program = GEVENT + """\
    path = sys.argv[1]
    command = f"trap '' TERM; sleep 300 & echo $! > {path}; wait; sleep 300"
    task = gevent.spawn(shell.run, command)
    while not os.path.exists(path) or not open(path).read().strip():
        gevent.sleep(0.02)
    if sys.argv[2] == "kill":
        task.kill()
    else:
        task.kill(gevent.Timeout(1))
    print(task.dead, shell._groups)
    """
    noted = tmp_path / "pid"
    with killed(noted):
        said = python(program, noted, how, timeout=60)

        assert said.endswith("True {}\n")
        eventually(lambda: not is_alive(pid_in(noted)), within=PATIENCE)


def test_under_gevent_a_deadline_that_goes_off_as_it_starts_leaves_nothing_behind():
    # Starting is where gevent's Popen waits for the child; every one of these is thrown into some point of it.
    program = GEVENT + """\
    for number in range(60):
        with gevent.Timeout(number / 4000, False):
            shell.run(f"sleep 300.{os.getpid()}")
    print(os.getpid(), shell._groups)
    """

    pid, groups = python(program, timeout=100).split()

    assert groups == "{}"
    eventually(lambda: not with_words(f"sleep 300.{pid}"), within=PATIENCE)


def with_words(words: str) -> list[str]:
    """The processes that were started with these words."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if words in path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"):
                found.append(path.parent.name)
    return found


