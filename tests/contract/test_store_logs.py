"""Logs of jobs: numbered lines that a reader can follow, whatever is repeated or dropped."""

from datetime import UTC, datetime
from uuid import UUID

import pytest

from jobq.store import logs
from jobq.store.jobs import new_id
from jobq.store.logs import Chunk
from tests.stores import Store

JOB = UUID("0199c0de-0000-7000-8000-000000000001")
AT = 1_800_000_000_000_000  # microseconds


def chunk(first_line: int, *texts: str, job_id: UUID = JOB, attempt: int = 1) -> Chunk:
    body = [(AT + number, "stdout", text) for number, text in enumerate(texts, first_line)]
    return Chunk(job_id, attempt, first_line, sum(len(text) + 1 for text in texts), body)


def texts(store: Store, **where: int) -> list[tuple[int, str]]:
    return [(line.number, line.text) for line in store.look(logs.read, JOB, **where)]


def test_lines_come_back_in_order_with_their_number_instant_attempt_and_stream(store: Store) -> None:
    body = [(AT, "stdout", "ä 🚆"), (AT + 1, "stderr", ""), (AT + 2, "system", "\\x00 'quoted' \"{}\"")]
    store.do(logs.append, [Chunk(JOB, 2, 1, 9, body)])
    lines = store.look(logs.read, JOB)
    assert [(line.number, line.attempt, line.stream, line.text) for line in lines] == [
        (1, 2, "stdout", "ä 🚆"), (2, 2, "stderr", ""), (3, 2, "system", "\\x00 'quoted' \"{}\""),
    ]  # fmt: skip
    assert lines[1].at == datetime(2027, 1, 15, 8, 0, 0, 1, tzinfo=UTC)


def test_a_reader_goes_on_behind_the_last_line_it_saw(store: Store) -> None:
    store.do(logs.append, [chunk(1, "a", "b", "c"), chunk(4, "d", "e")])
    assert texts(store) == [(1, "a"), (2, "b"), (3, "c"), (4, "d"), (5, "e")]
    assert texts(store, after=2) == [(3, "c"), (4, "d"), (5, "e")]
    assert texts(store, after=2, limit=2) == [(3, "c"), (4, "d")]
    assert texts(store, after=3) == [(4, "d"), (5, "e")]
    assert texts(store, after=5) == []


def test_paging_one_line_at_a_time_sees_each_line_once(store: Store) -> None:
    store.do(logs.append, [chunk(1, "a", "b", "c"), chunk(4, "d"), chunk(9, "e", "f")])
    seen, after = [], 0
    while page := store.look(logs.read, JOB, after=after, limit=1):
        seen.append(page[0].number)
        after = page[0].number
    assert seen == [1, 2, 3, 4, 9, 10]


def test_appending_the_same_chunk_again_stores_nothing_twice(store: Store) -> None:
    for _ in range(2):
        store.do(logs.append, [chunk(1, "a"), chunk(2, "b")])
    store.do(logs.append, [chunk(2, "b"), chunk(3, "c")])
    assert texts(store) == [(1, "a"), (2, "b"), (3, "c")]
    assert store.look(logs.size, JOB) == 6


def test_one_call_stores_the_lines_of_many_jobs(store: Store) -> None:
    other = new_id()
    store.do(logs.append, [chunk(1, "mine"), chunk(1, "theirs", job_id=other)])
    assert texts(store) == [(1, "mine")]
    assert [line.text for line in store.look(logs.read, other)] == ["theirs"]


def test_appending_nothing_does_nothing(store: Store) -> None:
    store.do(logs.append, [])
    assert store.count("jobq_job_logs") == 0


def test_the_next_line_follows_the_last_one_that_is_stored(store: Store) -> None:
    assert store.look(logs.next_line, JOB) == 1
    store.do(logs.append, [chunk(1, "a", "b")])
    assert store.look(logs.next_line, JOB) == 3
    store.do(logs.append, [chunk(10, "c", attempt=2)])
    assert store.look(logs.next_line, JOB) == 11


def test_a_job_without_a_log_has_no_lines_and_no_size(store: Store) -> None:
    assert texts(store) == []
    assert store.look(logs.size, JOB) == 0


def test_dropped_chunks_leave_a_gap_in_the_numbers(store: Store) -> None:
    store.do(logs.append, [chunk(1, "head"), chunk(5, "old"), chunk(6, "tail")])
    for _ in range(2):  # dropping what is gone changes nothing
        store.do(logs.drop, JOB, [5, 77])
        assert texts(store) == [(1, "head"), (6, "tail")]
    assert texts(store, after=1) == [(6, "tail")]


def test_dropping_touches_one_job_only(store: Store) -> None:
    other = new_id()
    store.do(logs.append, [chunk(1, "a"), chunk(1, "b", job_id=other)])
    store.do(logs.drop, JOB, [1])
    assert texts(store) == []
    assert len(store.look(logs.read, other)) == 1


@pytest.mark.parametrize("count", [1, 2000])
def test_a_long_chunk_is_read_in_pages(store: Store, count: int) -> None:
    store.do(logs.append, [chunk(1, *(f"line {number}" for number in range(1, count + 1)))])
    assert texts(store, after=count - 1, limit=5) == [(count, f"line {count}")]
    assert len(texts(store, limit=10_000)) == count
