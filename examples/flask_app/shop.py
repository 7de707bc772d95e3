"""A shop in Flask: an order and the job that confirms it are committed together."""

import os

from flask import Flask, request
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from pgcron_lite import PgCron


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
cron = PgCron("shop")


class Order(db.Model):  # type: ignore[name-defined,misc]
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]
    confirmed: Mapped[bool] = mapped_column(default=False)


@cron.task(max_attempts=8)
def confirm(order_id: int) -> str:
    # Each job has its own app context and its own session.
    order = db.session.get_one(Order, order_id)
    order.confirmed = True
    db.session.commit()
    return f"confirmed to {order.email}"


def create_app(database_url: str | None = None) -> Flask:
    app = Flask(__name__)
    url = database_url or os.environ["DATABASE_URL"]
    # SQLAlchemy needs the driver in the name; the queue uses the same database.
    app.config["SQLALCHEMY_DATABASE_URI"] = "postgresql+psycopg://" + url.partition("://")[2]
    db.init_app(app)
    cron.init_app(app)

    @app.post("/orders")
    def order() -> dict[str, int]:
        bought = Order(email=request.form["email"])
        db.session.add(bought)
        db.session.flush()
        confirm.options(conn=db.session).delay(bought.id)
        if "@" not in bought.email:
            raise ValueError("after the enqueue: neither the order nor the job will exist")
        db.session.commit()
        return {"order": bought.id}

    @app.get("/orders/<int:number>")
    def show(number: int) -> dict[str, bool]:
        return {"confirmed": db.get_or_404(Order, number).confirmed}

    @app.cli.command("create-tables")
    def create_tables() -> None:
        db.create_all()

    return app
