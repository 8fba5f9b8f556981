"""A job that exists if, and only if, the order exists that it belongs to: both are one transaction.

Run it: python examples/transactional_enqueue.py
"""

import sqlalchemy as sa
from shop import PLUGINS, Confirm

from jobq import JobQ, Settings
from jobq.testing import running

orders = sa.Table(
    "orders", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("item", sa.Text, nullable=False)
)


def place_order(engine: sa.Engine, jobq: JobQ, item: str) -> int:
    """The shop's own code, on the shop's own connection. No job is seen, let alone run, before the commit."""
    with engine.begin() as connection:
        order: int = connection.execute(orders.insert().values(item=item).returning(orders.c.id)).scalar_one()
        jobq.enqueue(Confirm(order=order), kind="CONFIRM", name=f"confirm-{order}", connection=connection)
        if item == "unicorn":
            raise LookupError("unicorns are out of stock")
    return order


def main() -> None:
    # Elsewhere this is JobQ(), which reads JOBQ_DATABASE_URL; here jobs run in this very process.
    with running(Settings(plugins=PLUGINS)) as jobq:
        engine = sa.create_engine(jobq.settings.database_url)
        orders.create(engine)

        order = place_order(engine, jobq, "teapot")
        job = jobq.wait(jobq.list().items[0].id, timeout=10)
        print(f"order {order}: {job.name} is {job.status}")

        try:
            place_order(engine, jobq, "unicorn")
        except LookupError as error:
            print(f"no order: {error}")
        with engine.connect() as connection:
            count = connection.execute(sa.select(sa.func.count()).select_from(orders)).scalar()
        print(f"{count} order, {len(jobq.list().items)} job")
        engine.dispose()


if __name__ == "__main__":
    main()

# Prints:
# order 1: confirm-1 is COMPLETED
# no order: unicorns are out of stock
# 1 order, 1 job
