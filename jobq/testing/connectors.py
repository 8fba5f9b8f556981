"""Connectors in tests: ``SourceContract`` and ``TargetContract`` are what every source and target must hold.

    class TestCountries(SourceContract):
        def source(self):
            return CountrySource(CountryConfig(), Access(Policy()))

        def expected(self):
            return [{"id": "BE"}, {"id": "NL"}]

Each test makes connectors of its own, runs them on an event loop of its own, and closes them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar
from unittest import SkipTest

from jobq.connectors import Batch, ConnectorError, Entity, FileTarget, Problem, Read, Source, Target, Written
from jobq.specs import Spec

Result = TypeVar("Result")
Record = Mapping[str, Any]

HOSTILE = (
    "plain", "with space", "ünï-ключ-鍵-🗝", "../../etc/passwd", "..\\..\\boot.ini", "a/b/c", "%2e%2e%2f", ".hidden",
    "quote\"and'quote", "line\nbreak\r\n", "tab\t", "semi;colon--", "a,b", "=1+1", "{key}", "?q=1&r=2#f", "-rf *",
    "x" * 300, "<b>&amp;</b>", "$(id)`id`", "null", "0", " ",
)  # fmt: skip
"""Keys and texts that have broken somebody's connector."""


@dataclass(slots=True)
class Seen:
    """What was read."""

    batches: list[Batch] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        """All records, in the order in which they came."""
        return [record for batch in self.batches for record in batch.records]

    @property
    def problems(self) -> list[Problem]:
        """All problems, in the order in which they came."""
        return [problem for batch in self.batches for problem in batch.problems]

    @property
    def state(self) -> Any:
        """What the last batch says has been seen."""
        return self.batches[-1].state if self.batches else None


def read_all(source: Any, request: Read | None = None) -> Seen:
    """Read a source to its end and close it. Not for use within a running event loop."""
    return _run(source, lambda: _read(source, request or Read()))


async def _read(source: Any, request: Read) -> Seen:
    return Seen([batch async for batch in source.read(request)])


def _run(connector: Any, work: Callable[[], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        try:
            return await work()
        finally:
            await connector.close()

    return asyncio.run(run())


def _canonical(records: Sequence[Record]) -> list[str]:
    return sorted(_json(record) for record in records)


def _json(value: object) -> str:
    text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    text.encode()  # no halves of surrogate pairs
    return text


def _through_json(value: Any) -> Any:
    """As it comes back from the database."""
    return json.loads(_json(value))


class _Secrecy:
    """What nobody may ever see."""

    secrets: ClassVar[Sequence[str]] = ()
    """Values of the secrets that the connectors of this suite are given: they must not show anywhere."""

    def logged(self) -> str:
        """What the connectors of this test have logged, as far as it was kept."""
        return ""

    def _assert_secret(self, *texts: str) -> None:
        for text in (*texts, self.logged()):
            for secret in self.secrets:
                assert secret not in text, "a secret is shown"

    def _assert_fails_well(self, run: Callable[[], object]) -> None:
        failure: BaseException | None = None
        try:
            run()
        except ConnectorError as error:
            failure = error
        assert isinstance(failure, ConnectorError), "it did not fail"
        assert str(failure), "a person reads the message"
        assert failure.error_class, "reports name the error class"
        while failure is not None:
            self._assert_secret(str(failure), repr(failure))
            failure = failure.__cause__ or (None if failure.__suppress_context__ else failure.__context__)


class SourceContract(_Secrecy):
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
        rest = self._read(cursor=_through_json(whole.batches[number].cursor), batch_size=batch_size)
        expected = [record for batch in whole.batches[number + 1 :] for record in batch.records]
        assert [_json(record) for record in rest.records] == [_json(record) for record in expected]
        if whole.state is not None:  # even where nothing is left to read: an empty batch can say it
            assert _json(rest.state) == _json(whole.state), "reading on ends in another state"

    # --- reading

    def test_it_is_a_source_and_its_config_is_a_spec(self) -> None:
        source = self.source()
        assert isinstance(source, Source)
        assert issubclass(type(source).config, Spec)
        _run(source, _nothing)

    def test_every_record_is_read_once(self) -> None:
        seen = self._read()
        assert _canonical(seen.records) == _canonical(self.expected())

    def test_records_cursors_and_states_are_json_values(self) -> None:
        for batch in self._read(batch_size=2).batches:
            for record in batch.records:
                assert isinstance(record, Mapping)
                assert _through_json(record) == record
            assert _through_json(batch.cursor) == batch.cursor
            assert _through_json(batch.state) == batch.state

    def test_no_batch_is_larger_than_asked_for(self) -> None:
        for size in (1, 2, 3, 1000):
            seen = self._read(batch_size=size)
            assert max(len(batch.records) for batch in seen.batches) <= size
            assert _canonical(seen.records) == _canonical(self.expected())

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
        both = _run(source, lambda: asyncio.gather(*(_read(source, Read(batch_size=size)) for size in (1, 2, 500))))
        assert [_canonical(seen.records) for seen in both] == [_canonical(self.expected())] * 3

    def test_a_read_that_is_given_up_leaves_the_source_usable(self) -> None:
        source = self.source()

        async def give_up_and_read() -> Seen:
            reading: AsyncIterator[Batch] = source.read(Read(batch_size=1))
            await anext(reading)
            await reading.aclose()  # type: ignore[attr-defined]  # the generators that sources are have it
            return await _read(source, Read())

        assert _canonical(_run(source, give_up_and_read).records) == _canonical(self.expected())

    def test_one_entity_can_be_read_alone(self) -> None:
        if (given := self.entity()) is None:
            raise SkipTest("no entity is given")
        key, record = given
        assert _canonical(self._read(entity=key).records) == _canonical([record])
        assert self._read(entity="no such key").records == []

    # --- incremental

    def test_what_was_seen_does_not_come_again(self) -> None:
        state = self._read().state
        if state is None:
            raise SkipTest("the source reads everything each time")
        again = self._read(state=_through_json(state))
        assert len(again.records) <= self.rereads
        if again.batches:
            assert again.state is not None, "a run without news must not forget the state"

    def test_only_what_is_newer_comes_after_a_change(self) -> None:
        state = self._read().state
        if (changed := self.change()) is None or state is None:
            raise SkipTest("no change is given")
        after = self._read(state=_through_json(state), batch_size=1)
        assert _json(changed) in _canonical(after.records)
        assert len(after.records) <= 1 + self.rereads
        last = self._read(state=_through_json(after.state))
        assert len(last.records) <= max(1, self.rereads)

    def test_an_incremental_read_goes_on_at_its_cursors(self) -> None:
        state = self._read().state
        if self.change() is None or state is None:
            raise SkipTest("no change is given")
        whole = self._read(state=_through_json(state), batch_size=1)
        for number, batch in enumerate(whole.batches):
            if batch.cursor is None:
                continue
            rest = self._read(state=_through_json(state), cursor=_through_json(batch.cursor), batch_size=1)
            expected = [record for behind in whole.batches[number + 1 :] for record in behind.records]
            assert _canonical(rest.records) == _canonical(expected)

    # --- ends

    def test_it_can_be_closed_twice(self) -> None:
        source = self.source()

        async def read_and_close() -> None:
            await _read(source, Read())
            await source.close()

        _run(source, read_and_close)

    def test_a_source_that_cannot_be_read_says_why(self) -> None:
        if (source := self.broken_source()) is None:
            raise SkipTest("no broken_source is given")
        self._assert_fails_well(lambda: read_all(source))

    def test_its_secrets_are_shown_nowhere(self) -> None:
        source = self.source()
        seen = _run(source, lambda: _read(source, Read(batch_size=2)))
        shown = [_json([batch.cursor, batch.state]) for batch in seen.batches]
        self._assert_secret(repr(source), str(source), *shown, *(str(problem) for problem in seen.problems))


class TargetContract(_Secrecy):
    """What every target must hold: subclass it in your tests, and pytest runs the rest.

    ``target`` and ``stored`` are required. ``broken_target`` brings a further test, and so does ``file`` for a target
    that takes files.
    """

    hostile: ClassVar[Sequence[str]] = HOSTILE
    """Keys and texts; leave out only what the other side cannot hold."""
    writers: ClassVar[int] = 20

    def target(self) -> Any:
        """A new target; all of them write to the same place, which is empty when a test begins."""
        raise NotImplementedError("a contract test says which target it is about")

    def stored(self) -> Mapping[str, Record]:
        """What the other side holds now: payloads by key."""
        raise NotImplementedError("a contract test looks at the other side")

    def payload(self, key: str, text: str) -> dict[str, Any]:
        """A payload that the other side takes, for this key, with this text."""
        return {"id": key, "text": text}

    def broken_target(self) -> Any | None:
        """A target that cannot be written: a wrong password, a table or folder that is not there."""
        return None

    def file(self, domain: str) -> Sequence[Record] | None:
        """The records in the file of this domain; None: there is no such file."""
        raise NotImplementedError("a target that takes files shows them to its contract test")

    # --- helpers

    def _entity(self, key: str, text: str, external_id: str | None = None, job: str | None = None) -> Entity:
        return Entity(key, self.payload(key, text), job or f"job-{abs(hash((key, text)))}", external_id)

    def _write(self, *entities: Entity) -> list[Written]:
        """One after the other, by one target."""
        target = self.target()

        async def write() -> list[Written]:
            return [await target.write(entity) for entity in entities]

        return _run(target, write)

    # --- writing

    def test_it_is_a_target_and_its_config_is_a_spec(self) -> None:
        target = self.target()
        assert isinstance(target, Target)
        assert issubclass(type(target).config, Spec)
        assert not getattr(target, "takes_files", False) or isinstance(target, FileTarget)
        _run(target, _nothing)

    def test_an_entity_arrives(self) -> None:
        (written,) = self._write(self._entity("k1", "hello"))
        assert dict(self.stored()) == {"k1": self.payload("k1", "hello")}
        assert written.created in (True, None)

    def test_writing_twice_leaves_one_entity(self) -> None:
        entity = self._entity("k1", "hello")
        first, second = self._write(entity, entity)
        assert dict(self.stored()) == {"k1": self.payload("k1", "hello")}
        assert (first.external_id, second.external_id)[0] == second.external_id
        assert second.created in (False, None)

    def test_a_changed_payload_arrives(self) -> None:
        (first,) = self._write(self._entity("k1", "before"))
        (second,) = self._write(self._entity("k1", "after", first.external_id))
        assert dict(self.stored()) == {"k1": self.payload("k1", "after")}
        assert second.created in (False, None)

    def test_the_external_id_is_stable(self) -> None:
        (first,) = self._write(self._entity("k1", "before"))
        (second,) = self._write(self._entity("k1", "after", first.external_id))
        assert first.external_id is None or isinstance(first.external_id, str)
        assert second.external_id == first.external_id

    def test_entities_do_not_touch_each_other(self) -> None:
        self._write(self._entity("k1", "one"), self._entity("k2", "two"), self._entity("k1", "three"))
        assert dict(self.stored()) == {"k1": self.payload("k1", "three"), "k2": self.payload("k2", "two")}

    def test_hostile_keys_and_texts_arrive_as_they_are(self) -> None:
        self._write(*(self._entity(text, text) for text in self.hostile))
        assert dict(self.stored()) == {text: self.payload(text, text) for text in self.hostile}

    def test_many_write_side_by_side_in_one_target(self) -> None:
        target = self.target()
        keys = [f"k{number}" for number in range(self.writers)]
        _run(target, lambda: asyncio.gather(*(target.write(self._entity(key, key)) for key in keys)))
        assert dict(self.stored()) == {key: self.payload(key, key) for key in keys}

    def test_writing_one_entity_side_by_side_leaves_one(self) -> None:
        target = self.target()
        entity = self._entity("k1", "hello")
        _run(target, lambda: asyncio.gather(*(target.write(entity) for _ in range(self.writers))))
        assert dict(self.stored()) == {"k1": self.payload("k1", "hello")}

    # --- files

    def test_a_domain_becomes_one_file(self) -> None:
        records = [self.payload(f"k{number}", text) for number, text in enumerate(self.hostile)]
        written = self._write_file("customers", records[:5], records[5:])
        assert list(self.file("customers") or ()) == records
        assert written.external_id, "the address of the file"
        self._write_file("customers", records[:1])
        assert list(self.file("customers") or ()) == records[:1]

    def test_half_a_file_is_never_seen(self) -> None:
        before = [self.payload("k1", "before")]
        self._write_file("customers", before)
        for domain, left in (("customers", before), ("others", None)):
            try:
                self._write_file(domain, [self.payload("k2", "after")], LookupError("the source failed"))
            except LookupError:
                assert self.file(domain) == left
            else:
                raise AssertionError("an error while the records come must end the writing")

    def _write_file(self, domain: str, *batches: Sequence[Record] | Exception) -> Written:
        target = self.target()

        async def come() -> AsyncIterator[Sequence[Record]]:
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                yield batch

        async def write() -> Written:
            if not getattr(target, "takes_files", False):
                raise SkipTest("the target takes no files")
            written: Written = await target.write_file(domain, come())
            return written

        return _run(target, write)

    # --- ends

    def test_it_can_be_closed_twice(self) -> None:
        target = self.target()

        async def write_and_close() -> None:
            await target.write(self._entity("k1", "hello"))
            await target.close()

        _run(target, write_and_close)

    def test_a_target_that_cannot_be_written_says_why(self) -> None:
        if (target := self.broken_target()) is None:
            raise SkipTest("no broken_target is given")
        self._assert_fails_well(lambda: _run(target, lambda: target.write(self._entity("k1", "hello"))))

    def test_its_secrets_are_shown_nowhere(self) -> None:
        target = self.target()
        written = _run(target, lambda: target.write(self._entity("k1", "hello")))
        self._assert_secret(repr(target), str(target), str(written))


async def _nothing() -> None:
    """Only close."""
