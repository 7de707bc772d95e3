"""The crontab beside this file as code: it runs on any worker, once, and is noticed when it does not.

    pgcron --app jobs.py dev
    pgcron --app jobs.py schedules list
"""

import gzip
import subprocess
import urllib.request
from pathlib import Path

from pgcron_lite import PgCron, current_job

app = PgCron("crontab")

# Lines that are not rewritten yet: pgcron --app jobs.py import-crontab crontab
app.enable_shell()


@app.cron("30 2 * * *", name="backup", grace="6h", alert_after="1h", max_attempts=3)
def back_up_database(folder: str = "/backups") -> str:
    """A dump with the day in its name. A failed one is tried again; one that is missing raises an alarm."""
    assert current_job.tick is not None
    target = Path(folder) / f"shop-{current_job.tick:%Y-%m-%d}.sql.gz"
    dump = subprocess.run(["pg_dump", "shop"], check=True, capture_output=True)
    target.write_bytes(gzip.compress(dump.stdout))
    return str(target)


@app.cron("*/15 * * * *", name="feeds", catch_up="skip", jitter="1m")
def refresh_feeds() -> int:
    """Nobody needs one that was missed; the next is near."""
    with urllib.request.urlopen("https://shop.example.org/feeds/refresh", timeout=30) as answer:
        return int(answer.status)


@app.cron("0 7 * * mon", name="weekly report", tz="Europe/Berlin")
def report() -> str:
    """What happened since the last report, however long that is ago."""
    return f"from {current_job.previous_tick} to {current_job.tick}"
