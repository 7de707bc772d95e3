"""The crontab beside this file as code: each job runs once, on any worker, and a missed run is reported.

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


@app.cron("30 2 * * *", name="backup", start_within="6h", alert_after="1h", max_attempts=3)
def back_up_database(folder: str = "/backups") -> str:
    """Write a dump with the day in its name. A failed run is tried again; a missing one raises an alarm."""
    assert current_job.tick is not None
    target = Path(folder) / f"shop-{current_job.tick:%Y-%m-%d}.sql.gz"
    dump = subprocess.run(["pg_dump", "shop"], check=True, capture_output=True)
    target.write_bytes(gzip.compress(dump.stdout))
    return str(target)


@app.cron("*/15 * * * *", name="feeds", catch_up="skip", jitter="1m")
def refresh_feeds() -> int:
    """Refresh the feeds. A missed run is not caught up: the next is near."""
    with urllib.request.urlopen("https://shop.example.org/feeds/refresh", timeout=30) as answer:
        return int(answer.status)


@app.cron("0 7 * * mon", name="weekly report", tz="Europe/Berlin")
def report() -> str:
    """Report the time since the last report, however long ago that was."""
    return f"from {current_job.previous_tick} to {current_job.tick}"
