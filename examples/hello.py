"""The smallest program. `pgcron dev` starts a database for it; then: python hello.py, and: pgcron worker"""

from pgcron_lite import PgCron

app = PgCron("hello")


@app.task
def hello(name: str) -> str:
    return f"Hello, {name}!"


if __name__ == "__main__":
    print(hello.delay("world").result(timeout=60))
    # prints: Hello, world!
