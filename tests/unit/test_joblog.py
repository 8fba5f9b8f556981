"""The log of an attempt: every line as it was written, or a word on what is missing; never more than it may hold."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobq.store.logs import Chunk
from workers.joblog import MAX_LINE, Flushed, JobLog
from workers.redaction import Redaction

JOB = UUID("0199c0de-0000-7000-8000-000000000001")
PLENTY = 1024 * 1024


class Stored:
    """What the database holds after some flushes: first drop, then append, and a chunk never replaces another."""

    def __init__(self) -> None:
        self.chunks: dict[int, Chunk] = {}

    def take(self, flushed: Flushed) -> None:
        for first_line in flushed.drop:
            del self.chunks[first_line]
        for chunk in flushed.chunks:
            assert chunk.first_line not in self.chunks
            self.chunks[chunk.first_line] = chunk

    @property
    def lines(self) -> list[tuple[int, str, str]]:
        """Number, stream and text, in order."""
        return [
            (number, stream, text)
            for _, chunk in sorted(self.chunks.items())
            for number, (_, stream, text) in enumerate(chunk.body, chunk.first_line)
        ]

    @property
    def texts(self) -> list[str]:
        return [text for _, _, text in self.lines]


def written(*parts: str | bytes, budget: int = PLENTY, stream: str = "stdout") -> list[str]:
    """The lines of a log into which these parts were written."""
    log, stored = JobLog(JOB, 1, budget), Stored()
    for part in parts:
        log.write(part, stream)
    stored.take(log.close())
    return stored.texts


def size(text: str) -> int:
    return len(text.encode()) + 1


# --- lines -----------------------------------------------------------------------------------------------------------


def test_output_becomes_lines_numbered_from_one() -> None:
    log, stored = JobLog(JOB, 3, PLENTY), Stored()
    log.write("one\ntwo\n", "stdout")
    log.write(b"three\n", "stderr")
    stored.take(log.flush())
    assert stored.lines == [(1, "stdout", "one"), (2, "stdout", "two"), (3, "stderr", "three")]
    assert {(chunk.job_id, chunk.attempt) for chunk in stored.chunks.values()} == {(JOB, 3)}


def test_a_later_attempt_goes_on_behind_the_lines_of_the_earlier_ones() -> None:
    log, stored = JobLog(JOB, 2, PLENTY, first_line=7), Stored()
    log.write("one\n", "stdout")
    stored.take(log.flush())
    assert stored.lines == [(7, "stdout", "one")]


def test_numbers_go_on_from_flush_to_flush() -> None:
    log, stored = JobLog(JOB, 1, PLENTY), Stored()
    for text in ("a\nb\n", "c\n", "d\n"):
        log.write(text, "stdout")
        stored.take(log.flush())
    assert [number for number, _, _ in stored.lines] == [1, 2, 3, 4]


def test_a_part_of_a_line_waits_for_the_rest() -> None:
    log, stored = JobLog(JOB, 1, PLENTY), Stored()
    log.write("hal", "stdout")
    stored.take(log.flush())
    assert stored.lines == []
    log.write("f\nrest", "stdout")
    stored.take(log.flush())
    assert stored.texts == ["half"]
    stored.take(log.close())
    assert stored.texts == ["half", "rest"]


def test_parts_of_lines_of_two_streams_do_not_mix() -> None:
    log, stored = JobLog(JOB, 1, PLENTY), Stored()
    for text, stream in (("o", "stdout"), ("e", "stderr"), ("ut\n", "stdout"), ("rr\n", "stderr")):
        log.write(text, stream)
    stored.take(log.close())
    assert stored.lines == [(1, "stdout", "out"), (2, "stderr", "err")]


def test_empty_lines_are_lines_and_nothing_is_none() -> None:
    assert written("\n\n") == ["", ""]
    assert written("", b"") == []
    assert written("a\n\nb") == ["a", "", "b"]


def test_carriage_returns_at_the_end_of_a_line_are_dropped_and_others_stay() -> None:
    assert written("dos\r\n", "10%\r20%\r\n") == ["dos", "10%\r20%"]


def test_a_character_may_be_cut_between_two_parts() -> None:
    train = "🚆".encode()
    assert written(train[:1], train[1:3], train[3:] + b"\n") == ["🚆"]


def test_what_is_no_text_is_spelled_out() -> None:
    assert written(b"\xff\xfe\x80a\n", b"\xc3\n") == ["\\xff\\xfe\\x80a", "\\xc3"]
    assert written("\udcff\n") == ["\\udcff"]


def test_no_nul_reaches_the_database() -> None:
    assert written(b"a\x00b\n", "\x00\n") == ["a\\x00b", "\\x00"]


def test_lines_carry_the_instant_at_which_they_ended() -> None:
    log = JobLog(JOB, 1, PLENTY)
    log.write("a\nb\n", "stdout")
    (chunk,) = log.flush().chunks
    first, second = (at for at, _, _ in chunk.body)
    assert 1_700_000_000_000_000 < first <= second


def test_secrets_are_replaced_also_when_a_line_comes_in_parts() -> None:
    log, stored = JobLog(JOB, 1, PLENTY), Stored()
    log.redaction = Redaction(["hunter2-long", "hunter2"])
    log.write("token=hunt", "stdout")
    log.write("er2 hunter2-long\n", "stdout")
    stored.take(log.close())
    assert stored.texts == ["token=*** ***"]


def test_a_flush_without_news_hands_over_nothing() -> None:
    log = JobLog(JOB, 1, PLENTY)
    log.write("a\n", "stdout")
    log.flush()
    assert log.flush() == log.close() == Flushed([], [])


def test_closing_twice_ends_a_line_once() -> None:
    log = JobLog(JOB, 1, PLENTY)
    log.write("a", "stdout")
    assert len(log.close().chunks) == 1
    assert log.close().chunks == []


def test_a_burst_is_handed_over_in_chunks_of_two_thousand_lines() -> None:
    log = JobLog(JOB, 1, PLENTY)
    log.write("x\n" * 4500, "stdout")
    chunks = log.flush().chunks
    assert [(chunk.first_line, len(chunk.body), chunk.bytes) for chunk in chunks] == [
        (1, 2000, 4000), (2001, 2000, 4000), (4001, 500, 1000),
    ]  # fmt: skip


# --- long lines ------------------------------------------------------------------------------------------------------


def test_a_line_that_is_too_long_is_cut_and_says_so() -> None:
    first, second = written("x" * MAX_LINE + "y" * 10 + "\n", "next\n")
    assert first == "x" * MAX_LINE + "… [cut: the line is longer than 16 KiB]"
    assert second == "next"
    assert written("x" * MAX_LINE + "\n") == ["x" * MAX_LINE]


def test_a_line_of_a_hundred_megabytes_takes_little_memory() -> None:
    log, part = JobLog(JOB, 1, PLENTY), b"x" * 65_536
    tracemalloc.start()
    try:
        for _ in range(1600):
            log.write(part, "stdout")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (chunk,) = log.close().chunks
    assert peak < 1_000_000
    assert len(chunk.body) == 1
    assert len(chunk.body[0][2]) < MAX_LINE + 100


def test_output_that_nobody_flushes_takes_no_more_memory_than_the_log_may_hold() -> None:
    log, part = JobLog(JOB, 1, 100_000), b"y" * 99 + b"\n"
    tracemalloc.start()
    try:
        for _ in range(20_000):
            log.write(part, "stdout")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


# --- head and tail ---------------------------------------------------------------------------------------------------


def test_head_and_tail_are_kept_and_a_line_between_them_says_what_is_missing() -> None:
    log, stored = JobLog(JOB, 1, 200), Stored()
    log.write("".join(f"{number:09}\n" for number in range(1, 101)), "stdout")  # 10 bytes each
    stored.take(log.close())
    assert stored.lines == [
        *((number, "stdout", f"{number:09}") for number in range(1, 11)),
        (11, "system", "[800 bytes of output were dropped here: the log keeps its head and its tail]"),
        *((number + 1, "stdout", f"{number:09}") for number in range(91, 101)),
    ]


def test_the_line_between_them_is_kept_up_to_date() -> None:
    log, stored = JobLog(JOB, 1, 200), Stored()
    for number in range(1, 101):
        log.write(f"{number:09}\n", "stdout")
        stored.take(log.flush())
    kept = stored.lines
    assert [number for number, _, _ in kept[:10]] == list(range(1, 11))
    assert kept[10] == (11, "system", "[800 bytes of output were dropped here: the log keeps its head and its tail]")
    assert kept[-1] == (101, "stdout", "000000100")


def test_a_log_that_fits_has_no_such_line() -> None:
    assert written("x" * 99 + "\n", "y" * 99 + "\n", budget=200) == ["x" * 99, "y" * 99]


def test_a_line_that_is_longer_than_the_tail_is_kept_all_the_same() -> None:
    assert written("a\n", "b" * 500 + "\n", budget=100) == ["a", "b" * 500]


LINES = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\x00"), max_size=40), max_size=80)


@given(LINES, st.integers(2, 400), st.lists(st.booleans(), max_size=80))
@settings(max_examples=300, deadline=None)
def test_what_is_kept_is_a_head_and_a_tail_of_what_was_written(
    lines: list[str], budget: int, flushes: list[bool]
) -> None:
    log, stored = JobLog(JOB, 1, budget), Stored()
    for place, line in enumerate(lines):
        log.write(f"{line}\n", "stdout")
        if place < len(flushes) and flushes[place]:
            stored.take(log.flush())
    stored.take(log.close())
    numbers = [number for number, _, _ in stored.lines]
    assert numbers == sorted(set(numbers))
    seam = [number for number, stream, _ in stored.lines if stream == "system"]
    if not seam:
        assert stored.texts == lines
        return
    head = [text for number, _, text in stored.lines if number < seam[0]]
    tail = [text for number, _, text in stored.lines if number > seam[0]]
    assert len(seam) == 1
    assert head == lines[: len(head)]
    assert tail == lines[len(lines) - len(tail) :]
    # numbers of dropped lines are not used again
    assert numbers == [*range(1, len(head) + 2), *range(len(lines) + 2 - len(tail), len(lines) + 2)]
    missing = lines[len(head) : len(lines) - len(tail)]
    said = stored.texts[len(head)]
    assert re.fullmatch(r"\[[\d,]+ bytes of output were dropped here: .*\]", said)
    assert int(said[1:].split()[0].replace(",", "")) == sum(map(size, missing))


@given(LINES, st.integers(2, 400), st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_what_is_stored_is_bounded_in_bytes(lines: list[str], budget: int, every: int) -> None:
    log, stored = JobLog(JOB, 1, budget), Stored()
    longest = max(map(size, lines), default=0)
    for place, line in enumerate(lines):
        log.write(f"{line}\n", "stdout")
        if place % every == 0:
            stored.take(log.flush())
            kept = sum(size(text) for _, stream, text in stored.lines if stream != "system")
            # the head, the newest half, and the chunk in which that half begins
            assert kept <= budget // 2 + 2 * (budget - budget // 2) + longest
            assert kept == sum(chunk.bytes for chunk in stored.chunks.values())


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
@settings(max_examples=300, deadline=None)
def test_it_does_not_matter_how_the_output_is_cut_into_parts(output: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(output)) for cut in cuts), len(output)]
    parts = [output[begin:end] for begin, end in itertools.pairwise(places)]
    assert written(*parts) == written(output)


@pytest.mark.parametrize("budget", [0, 1, 2])
def test_a_log_that_may_hold_next_to_nothing_keeps_its_last_line(budget: int) -> None:
    kept = written(*(f"line {number}\n" for number in range(10)), budget=budget)
    assert kept[-1] == "line 9"
    assert len(kept) == 2
