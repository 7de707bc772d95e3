"""Starts the fault tests' worker as a shell starts what is to run in the background, and then waits to be killed."""

import subprocess
import sys
from pathlib import Path

command = [sys.executable, str(Path(__file__).with_name("fault_tasks.py")), *sys.argv[1:]]
subprocess.Popen(command, start_new_session=True).wait()
