"""Customers of a web service go into a SQL table, into a folder of CSV files, and to a newsletter that is slow to take them.

Run it: python examples/customers_sync.py
"""

import sqlite3
import tempfile
import threading
from contextlib import closing
from pathlib import Path

from customers_service import TOKEN, Service, server

from jobq import JobQ, Settings
from jobq.testing import running

KEY = "a key that only this example knows"  # JOBQ_SECRET_KEY, elsewhere: it seals the secrets in the database


def customers(service: str, folder: Path) -> dict:
    """What to read, what to make of it, and where to write it."""
    return {
        "domain": "customers",
        "source": {
            "type": "http",
            "config": {
                "url": f"{service}/customers",
                "auth": {"type": "bearer", "secret": "token"},
                "records": "items",
                "pagination": {"type": "page", "more": "more"},
            },
            "secrets": {"token": "crm-token"},  # a name: no job row ever holds the value
        },
        "conditions": ["active"],
        "mapping": {
            "id": {"path": "id", "type": "string"},
            "name": "join(' ', [name.first, name.last])",
            "email": {"path": "email", "type": "string", "transform": ["strip", "lower"]},
            "newsletter": "newsletter",
        },
        "targets": [
            {
                "name": "table",
                "type": "sql",
                "config": {"url": f"sqlite:///{folder}/shop.db", "table": "customers", "key": "id"},
                "mapping": {"id": "id", "name": "name", "email": "email"},
            },
            {
                "name": "files",
                "type": "csv",
                "config": {"area": f"{folder}/customers", "columns": ["id", "name", "email"]},
            },
            {
                "name": "newsletter",
                "type": "http",
                "config": {"url": f"{service}/subscribers/{{key}}", "external_id": "number"},
                "conditions": ["newsletter"],
                "mapping": {"email": "email"},
                "after": ["table"],
            },
        ],
    }


def show(jobq: JobQ, spec: dict) -> None:
    job = jobq.wait(jobq.enqueue(spec, kind="SYNC").id, timeout=30)
    counts = jobq.fanout(job.id)
    print(f"{counts.read} read: {counts.new} new, {counts.filtered} filtered")
    print(f"{counts.total} children: {counts.completed} completed, {counts.skipped} skipped, {counts.failed} failed")
    for name, target in sorted(counts.targets.items()):
        print(f"  {name}: {target.success} new, {target.fail} failed, {target.skipped} skipped")
    waited = sum(child.requeues for child in jobq.children(job.id, limit=200).items)
    print(f"the newsletter asked for patience: {waited > 0}")
    print(f"{job.status}·{job.reason}: {job.message}")
    for report in jobq.exports(job.id, limit=200).items:
        if report.status == "fail":
            print(f"customer {report.key}, {report.target}: {report.error_class}")
            print(f"  {report.message}")

    Service.mended = True
    again = jobq.wait(jobq.retry(job.id).id, timeout=30)
    print(f"retried: {jobq.fanout(again.id).total} child, {again.status}")
    again = jobq.wait(jobq.enqueue(spec, kind="SYNC").id, timeout=30)
    print(f"once more: {jobq.fanout(again.id).existing} existing, {jobq.fanout(again.id).total} children")


def main() -> None:
    with tempfile.TemporaryDirectory() as name, server() as service:
        folder = Path(name)
        threading.Thread(target=service.serve_forever, daemon=True).start()
        with closing(sqlite3.connect(folder / "shop.db")) as shop:
            shop.execute("CREATE TABLE customers (id TEXT PRIMARY KEY, name TEXT, email TEXT)")
        # What the operator decides: which networks and which folders Syncs may reach.
        policy = {"probe_networks": ["127.0.0.0/8"], "areas": [str(folder)]}
        with running(Settings(policy=policy, secret_key=KEY)) as jobq:
            jobq.secrets.set("crm-token", TOKEN)
            show(jobq, customers(f"http://127.0.0.1:{service.server_port}", folder))
        with closing(sqlite3.connect(folder / "shop.db")) as shop:
            rows = shop.execute("SELECT count(*), min(name) FROM customers").fetchone()
        print(f"{rows[0]} rows, the first is {rows[1]}; {len(list((folder / 'customers').iterdir()))} files:")
        print((folder / "customers" / "1.csv").read_text().splitlines())
        service.shutdown()


if __name__ == "__main__":
    main()

# Prints:
# 15 read: 12 new, 3 filtered
# 36 children: 29 completed, 6 skipped, 1 failed
#   files: 12 new, 0 failed, 0 skipped
#   newsletter: 5 new, 1 failed, 6 skipped
#   table: 12 new, 0 failed, 0 skipped
# the newsletter asked for patience: True
# FAILED·partial: 1 of 36 replications failed
# customer 8, newsletter: InvalidPayload
#   PUT http://127.0.0.1:... was answered with 422 Unprocessable Entity: {"error": "no such address"}
# retried: 1 child, COMPLETED
# once more: 12 existing, 0 children
# 12 rows, the first is Ada No. 1; 12 files:
# ['id,name,email', '1,Ada No. 1,ada@example.org']
