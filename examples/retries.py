"""Ways for a task to fail: wait and try again, come back later, give up. Run: python retries.py"""

from pgcron_lite import Backoff, Cancel, JobCancelled, JobFailed, PgCron, Retry, Snooze, current_job

app = PgCron("retries")


@app.task(max_attempts=5, backoff=Backoff(first="100ms", factor=2, max="1s"), discard_on=ValueError)
def fetch(url: str) -> str:
    if not url.startswith("https://"):
        raise ValueError(f"{url!r} is no address")  # trying again would not help: it fails at once
    if current_job.attempt < 3:
        raise ConnectionError("the other side is down")  # again in 100 ms, then in 200 ms
    return f"{url} fetched at attempt {current_job.attempt}"


@app.task
def poll(export: str) -> str:
    if "seen" not in asked:
        asked.append("seen")
        raise Snooze("200ms")  # not ready; that was no failure, so it costs no attempt
    return f"{export} ready at attempt {current_job.attempt}"


@app.task
def obey(limit: str) -> str:
    if current_job.attempt == 1:
        raise Retry("300ms")  # the service itself has set the delay
    raise Cancel("no longer needed")


asked: list[str] = []

if __name__ == "__main__":
    import threading

    handles = [fetch.delay("https://example.org"), fetch.delay("mailto:ada"), poll.delay("export"), obey.delay("1/s")]

    def report() -> None:
        for handle in handles:
            try:
                print(handle.result(timeout=60))
            except (JobFailed, JobCancelled) as error:
                print(type(error).__name__, "-", handle.job().error)

    waiting = threading.Thread(target=report)
    waiting.start()
    app.run_worker(max_seconds=3)
    # prints: https://example.org fetched at attempt 3
    # prints: JobFailed - ValueError: 'mailto:ada' is no address
    # prints: export ready at attempt 1
    # prints: JobCancelled - no longer needed
