"""Sources in tests: ``SourceContract`` is what each of them must hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from unittest import SkipTest

from jobq.connectors import Batch, Read, Source
from jobq.specs import Spec
from jobq.testing.connectors import (
    Record,
    Secrecy,
    Seen,
    canonical,
    json_text,
    nothing,
    read_all,
    run_and_close,
    seen_by,
    through_json,
)


class SourceContract(Secrecy):
    """What every source must hold: subclass it in your tests, and pytest runs the rest.

    ``source`` and ``expected`` are required. ``change``, ``broken_source`` and ``entity`` bring further tests.
    """

    rereads: ClassVar[int] = 0
    """Records that an incremental read may give although they were seen: those as new as the newest one."""
    resumes: ClassVar[bool] = True
    """False: the source gives no cursors; who is interrupted reads everything again."""

    def source(self) -> Any:
        """A new source; all of them read the same records."""
        raise NotImplementedError("a contract test says which source it is about")

    def expected(self) -> Sequence[Record]:
        """The records that it gives, in any order. Five or more make the best test."""
        raise NotImplementedError("a contract test knows what its source holds")

    def change(self) -> Record | None:
        """Add or change one record behind the source's back, and return it as the source will give it."""
        return None

    def broken_source(self) -> Any | None:
        """A source that cannot be read: a wrong password, a page or table that is not there."""
        return None

    def entity(self) -> tuple[str, Record] | None:
        """The key of one record and that record, if the source can pick one."""
        return None

    # --- helpers

    def _read(self, **request: Any) -> Seen:
        return read_all(self.source(), Read(**request))

    def _assert_rest(self, whole: Seen, number: int, batch_size: int) -> None:
        """Reading on behind batch ``number`` gives exactly what came behind it, and ends in the same state."""
        if whole.batches[number].cursor is None:
            assert not self.resumes, "a cursor is None, but the source says that it resumes"
            return
        rest = self._read(cursor=through_json(whole.batches[number].cursor), batch_size=batch_size)
        expected = [record for batch in whole.batches[number + 1 :] for record in batch.records]
        assert [json_text(record) for record in rest.records] == [json_text(record) for record in expected]
        if whole.state is not None:  # even where nothing is left to read: an empty batch can say it
            assert json_text(rest.state) == json_text(whole.state), "reading on ends in another state"

    # --- reading

    def test_it_is_a_source_and_its_config_is_a_spec(self) -> None:
        source = self.source()
        assert isinstance(source, Source)
        assert issubclass(type(source).config, Spec)
        run_and_close(source, nothing)

    def test_every_record_is_read_once(self) -> None:
        seen = self._read()
        assert canonical(seen.records) == canonical(self.expected())

    def test_records_cursors_and_states_are_json_values(self) -> None:
        for batch in self._read(batch_size=2).batches:
            for record in batch.records:
                assert isinstance(record, Mapping)
                assert through_json(record) == record
            assert through_json(batch.cursor) == batch.cursor
            assert through_json(batch.state) == batch.state

    def test_no_batch_is_larger_than_asked_for(self) -> None:
        for size in (1, 2, 3, 1000):
            seen = self._read(batch_size=size)
            assert max(len(batch.records) for batch in seen.batches) <= size
            assert canonical(seen.records) == canonical(self.expected())

    def test_reading_on_from_every_cursor_gives_exactly_the_rest(self) -> None:
        for size in (1, 2, 1000):
            whole = self._read(batch_size=size)
            for number in range(len(whole.batches)):
                self._assert_rest(whole, number, size)

    def test_reading_on_with_another_batch_size_loses_nothing(self) -> None:
        whole = self._read(batch_size=2)
        for number in range(len(whole.batches)):
            self._assert_rest(whole, number, 3)

    def test_jobs_read_side_by_side_in_one_source(self) -> None:
        source = self.source()
        both = run_and_close(
            source, lambda: asyncio.gather(*(seen_by(source, Read(batch_size=size)) for size in (1, 2, 500)))
        )
        assert [canonical(seen.records) for seen in both] == [canonical(self.expected())] * 3

    def test_a_read_that_is_given_up_leaves_the_source_usable(self) -> None:
        source = self.source()

        async def give_up_and_read() -> Seen:
            reading: AsyncIterator[Batch] = source.read(Read(batch_size=1))
            await anext(reading)
            await reading.aclose()  # type: ignore[attr-defined]  # the generators that sources are have it
            return await seen_by(source, Read())

        assert canonical(run_and_close(source, give_up_and_read).records) == canonical(self.expected())

    def test_one_entity_can_be_read_alone(self) -> None:
        if (given := self.entity()) is None:
            raise SkipTest("no entity is given")
        key, record = given
        assert canonical(self._read(entity=key).records) == canonical([record])
        assert self._read(entity="no such key").records == []

    # --- incremental

    def test_what_was_seen_does_not_come_again(self) -> None:
        state = self._read().state
        if state is None:
            raise SkipTest("the source reads everything each time")
        again = self._read(state=through_json(state))
        assert len(again.records) <= self.rereads
        if again.batches:
            assert again.state is not None, "a run without news must not forget the state"

    def test_only_what_is_newer_comes_after_a_change(self) -> None:
        state = self._read().state
        if (changed := self.change()) is None or state is None:
            raise SkipTest("no change is given")
        after = self._read(state=through_json(state), batch_size=1)
        assert json_text(changed) in canonical(after.records)
        assert len(after.records) <= 1 + self.rereads
        last = self._read(state=through_json(after.state))
        assert len(last.records) <= max(1, self.rereads)

    def test_an_incremental_read_goes_on_at_its_cursors(self) -> None:
        state = self._read().state
        if self.change() is None or state is None:
            raise SkipTest("no change is given")
        whole = self._read(state=through_json(state), batch_size=1)
        for number, batch in enumerate(whole.batches):
            if batch.cursor is None:
                continue
            rest = self._read(state=through_json(state), cursor=through_json(batch.cursor), batch_size=1)
            expected = [record for behind in whole.batches[number + 1 :] for record in behind.records]
            assert canonical(rest.records) == canonical(expected)

    # --- ends

    def test_it_can_be_closed_twice(self) -> None:
        source = self.source()

        async def read_and_close() -> None:
            await seen_by(source, Read())
            await source.close()

        run_and_close(source, read_and_close)

    def test_a_source_that_cannot_be_read_says_why(self) -> None:
        if (source := self.broken_source()) is None:
            raise SkipTest("no broken_source is given")
        self._assert_fails_well(lambda: read_all(source))

    def test_its_secrets_are_shown_nowhere(self) -> None:
        source = self.source()
        seen = run_and_close(source, lambda: seen_by(source, Read(batch_size=2)))
        shown = [json_text([batch.cursor, batch.state]) for batch in seen.batches]
        self._assert_secret(repr(source), str(source), *shown, *(str(problem) for problem in seen.problems))
