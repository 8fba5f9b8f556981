"""``python -m tests.acks late worker -Q nap:5``: the jobq command, whose Celery acknowledges messages late (or early).

No setting of jobq chooses this, and no promise may depend on it: tests of faults run with both.
"""

import sys

from celery import Celery

from jobq.cli import main
from jobq.settings import Settings
from workers import app

make_celery = app.make_celery


def _with_acks(settings: Settings) -> Celery:
    celery = make_celery(settings)
    celery.conf.task_acks_late = LATE
    return celery


if __name__ == "__main__":
    LATE = {"late": True, "early": False}[sys.argv.pop(1)]
    app.make_celery = _with_acks
    sys.exit(main())
