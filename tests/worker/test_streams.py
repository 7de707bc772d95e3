"""Standard output and error of a worker: streams that a task closes are reopened for other jobs and the log."""

import subprocess

import pytest
from support import running


@pytest.mark.parametrize(
    "harm",
    ["sys.stdout.close()", "os.close(1)", "sys.stdout.close(); other = os.open(os.devnull, os.O_WRONLY)",
     "sys.stdout.close(); sys.stderr.close()"],
    ids=["closed", "descriptor closed", "number taken over", "both closed"],
)
def test_output_and_log_lines_after_a_stream_was_closed_arrive(harm: str) -> None:
    program = f"""
    import logging, os, sys
    from pgcron_lite.worker.streams import Streams
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    streams = Streams()
    streams.save()
    {harm}
    streams.repair()
    print("printed")
    logging.warning("logged")
    print("error", file=sys.stderr)
    """

    with running(program, stderr=subprocess.PIPE) as process:
        out, err = process.communicate(timeout=60)

    assert (process.returncode, out, err) == (0, "printed\nlogged\n", "error\n")


def test_a_stream_that_a_program_has_replaced_is_unchanged() -> None:
    program = """
    import contextlib, io
    from pgcron_lite.worker.streams import Streams
    streams = Streams()
    streams.save()
    with contextlib.redirect_stdout(io.StringIO()) as text:
        streams.repair()
        print("inside")
    print(repr(text.getvalue()))
    """

    with running(program) as process:
        out, _ = process.communicate(timeout=60)

    assert out == "'inside\\n'\n"


def test_a_program_without_streams_can_save_them() -> None:
    program = """
    import os, sys
    from pgcron_lite.worker.streams import Streams
    sys.stdout = sys.stderr = None
    streams = Streams()
    streams.save()
    streams.repair()
    streams.close()
    os.write(1, b"well")
    """

    with running(program) as process:
        out, _ = process.communicate(timeout=60)

    assert out == "well"
