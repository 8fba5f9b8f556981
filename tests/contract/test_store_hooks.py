"""Hooks: found by their digests while they are valid, and counted against their rate, however many ask at once."""

import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from jobq.client import JobQ
from jobq.models import Workflow
from jobq.settings import Settings
from jobq.store import hooks, workflows
from jobq.store.hooks import StoredHook
from jobq.store.jobs import new_id
from jobq.store.tables import hooks as hook_table
from tests.stores import Store


def made(store: Store, workflow: Workflow, digest: str = "d", **fields: object) -> StoredHook:
    defaults = {
        "tenant": "acme", "workflow_id": workflow.id, "name": "github", "start": "jobq_hook_abc", "digest": digest,
        "signature": "none", "sealed": None, "replay_window": None, "rate_limit": None, "envelope": False,
        "created_by": "ann",
    }  # fmt: skip
    return store.do(hooks.create, new_id(), {**defaults, **fields})


def found(store: Store, digest: str) -> UUID | None:
    row = store.look(hooks.find, digest)
    return None if row is None else row.id


def test_a_hook_is_found_by_its_digest_until_it_is_revoked(store: Store) -> None:
    flow = store.workflow()
    one, other = made(store, flow, "one"), made(store, flow, "other")
    assert (found(store, "one"), found(store, "other"), found(store, "third")) == (one.id, other.id, None)
    first, again = (store.do(hooks.revoke, flow.id, one.id) for _ in range(2))
    assert first == again, "revoking twice changes nothing"
    assert (found(store, "one"), found(store, "other")) == (None, other.id)
    assert [each.id for each in store.look(hooks.list_of, flow.id)] == [other.id, one.id]


def test_a_hook_belongs_to_its_workflow_and_goes_with_it(store: Store) -> None:
    flow, other = store.workflow(), store.workflow()
    hook = made(store, flow, "one")
    assert store.do(hooks.revoke, other.id, hook.id) is None
    assert found(store, "one") == hook.id
    store.do(workflows.delete, "acme", flow.id, "ann")
    assert found(store, "one") is None
    with store.database.read() as conn:
        assert conn.scalar(sa.select(sa.func.count()).select_from(hook_table)) == 0


def test_making_a_hook_again_is_the_same_hook(store: Store) -> None:
    flow, hook_id = store.workflow(), new_id()
    fields = {
        "tenant": "acme", "workflow_id": flow.id, "name": "n", "start": "s", "digest": "d", "signature": "none",
        "envelope": False, "created_by": "ann",
    }  # fmt: skip
    assert store.do(hooks.create, hook_id, fields) == store.do(hooks.create, hook_id, fields)


def test_a_rate_is_exact_for_any_number_of_processes(store: Store) -> None:
    """Two jobs a minute, asked for by twelve threads at once on connections of their own."""
    hook = made(store, store.workflow(), rate_limit=2)
    waits: list[float] = []
    threads = [
        threading.Thread(target=lambda: waits.append(store.do(hooks.take, hook.id, hook.rate_limit))) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(waits)[:2] == [0.0, 0.0]
    assert all(20 < wait <= 30 for wait in sorted(waits)[2:])


def test_the_bucket_fills_again_with_time(store: Store) -> None:
    hook = made(store, store.workflow(), rate_limit=2)
    assert [store.do(hooks.take, hook.id, 2) for _ in range(2)] == [0.0, 0.0]
    with store.database.begin() as conn:
        conn.execute(sa.update(hook_table).values(busy_until=hooks.later(29)))
    assert [store.do(hooks.take, hook.id, 2) == 0.0 for _ in range(2)] == [True, False]


def test_what_rolls_back_was_not_counted(store: Store) -> None:
    hook = made(store, store.workflow(), rate_limit=1)
    for _ in range(3):
        with store.database.engine.connect() as conn:
            assert hooks.take(conn, hook.id, 1) == 0.0
            conn.rollback()


def test_the_use_of_a_hook_is_noted(store: Store) -> None:
    flow = store.workflow()
    for number, rate in enumerate((None, 60)):
        hook = made(store, flow, str(number), rate_limit=rate)
        assert hook.last_used_at is None
        store.do(hooks.take, hook.id, rate)
    assert all(each.last_used_at is not None for each in store.look(hooks.list_of, flow.id))


def door(store: Store) -> JobQ:
    url = store.database.engine.url.render_as_string(hide_password=False)
    return JobQ(settings=Settings(database_url=url, secret_key="a pepper of sixteen"), tenant="acme")


def test_one_delivery_that_comes_many_times_at_once_starts_one_job(store: Store) -> None:
    flow, started = store.workflow(), []
    with door(store) as jobq:
        token = jobq.hooks.create(flow.id, "n", rate_limit=1).token
        threads = [
            threading.Thread(
                target=lambda: started.append(jobq.hooks.receive(token, b"1", headers={"webhook-id": "a"}))
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [job.id for job in started] == [store.jobs_of(flow)[0].id] * 8


def test_a_commit_whose_reply_was_lost_starts_one_job_and_is_counted_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = store.workflow()
    with door(store) as jobq:
        token = jobq.hooks.create(flow.id, "n", rate_limit=1).token
        run = jobq.database.run

        def twice(work: Callable[[Any], Any], **how: Any) -> Any:
            run(work, **how)
            return run(work, **how)

        monkeypatch.setattr(jobq.database, "run", twice)
        job = jobq.hooks.receive(token, b"1")
    assert [one.id for one in store.jobs_of(flow)] == [job.id]
