"""The app of the tests about schedules: `python time_tasks.py '{"slots": 4}'` runs a worker of it.

FAULT_SCHEDULES says what its code declares, and FAULT_CLOCK by how many seconds this process's clocks are wrong.
"""

import json
import logging
import os
import sys
from datetime import datetime, timedelta

from pgcron_lite import PgCron, current_job

app = PgCron("time")


@app.task
def note(word: str = "") -> str:
    """One line of the journal: which tick, and what was said with it."""
    entry = {"tick": str(current_job.tick), "job": current_job.id, "pid": os.getpid(), "what": word}
    journal = os.open(os.environ["FAULTS_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, json.dumps(entry).encode() + b"\n")
    os.close(journal)
    return word


for said in json.loads(os.environ["FAULT_SCHEDULES"]):
    app.schedule(said.pop("when"), **said)(note)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    wrong = float(os.environ.get("FAULT_CLOCK", "0"))
    if wrong:
        import freezegun

        freezegun.freeze_time(datetime.now() + timedelta(seconds=wrong), tick=True).start()
    app.run_worker(**json.loads(sys.argv[1]))
