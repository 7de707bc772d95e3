"""Jobs and data that are committed together. Run: python transactions.py"""

import psycopg

from pgcron_lite import PgCron, current_job

app = PgCron("transactions")


def database() -> psycopg.Connection[tuple[int]]:
    return psycopg.connect(app.settings.url())


@app.task
def book(order: int) -> None:
    with database() as conn:  # commits at the end of the block, or rolls back
        conn.execute("insert into bookings values (%s)", [order])
        current_job.complete(conn)  # the booking and the end of the job are one: it happens exactly once


def buy(order: int, card_is_good: bool) -> None:
    with database() as conn:
        conn.execute("insert into orders values (%s)", [order])
        book.options(conn=conn).delay(order)  # a worker sees it when the block has been committed
        if not card_is_good:
            raise ValueError("the card was refused")  # neither the order nor the job has ever existed


if __name__ == "__main__":
    with database() as conn:
        conn.execute("drop table if exists orders, bookings")
        conn.execute("create table orders (id int)")
        conn.execute("create table bookings (id int)")
    buy(1, card_is_good=True)
    try:
        buy(2, card_is_good=False)
    except ValueError as error:
        print(f"order 2: {error}")
        # prints: order 2: the card was refused

    @app.on("worker_stopped")
    def report() -> None:
        with database() as conn:
            print("orders:", [n for (n,) in conn.execute("select id from orders")])
            print("bookings:", [n for (n,) in conn.execute("select id from bookings")])

    app.run_worker(drain=True)
    # prints: orders: [1]
    # prints: bookings: [1]
