"""Targets in tests: ``TargetContract`` is what each of them must hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from unittest import SkipTest

from jobq.connectors import Entity, FileTarget, Target, Written
from jobq.specs import Spec
from jobq.testing.connectors import Record, Secrecy, nothing, run_and_close

HOSTILE = (
    "plain", "with space", "ünï-ключ-鍵-🗝", "../../etc/passwd", "..\\..\\boot.ini", "a/b/c", "%2e%2e%2f", ".hidden",
    "quote\"and'quote", "line\nbreak\r\n", "tab\t", "semi;colon--", "a,b", "=1+1", "{key}", "?q=1&r=2#f", "-rf *",
    "x" * 300, "<b>&amp;</b>", "$(id)`id`", "null", "0", " ",
)  # fmt: skip
"""Keys and texts that have broken somebody's connector."""


class TargetContract(Secrecy):
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

        return run_and_close(target, write)

    # --- writing

    def test_it_is_a_target_and_its_config_is_a_spec(self) -> None:
        target = self.target()
        assert isinstance(target, Target)
        assert issubclass(type(target).config, Spec)
        assert not getattr(target, "takes_files", False) or isinstance(target, FileTarget)
        run_and_close(target, nothing)

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
        run_and_close(target, lambda: asyncio.gather(*(target.write(self._entity(key, key)) for key in keys)))
        assert dict(self.stored()) == {key: self.payload(key, key) for key in keys}

    def test_writing_one_entity_side_by_side_leaves_one(self) -> None:
        target = self.target()
        entity = self._entity("k1", "hello")
        run_and_close(target, lambda: asyncio.gather(*(target.write(entity) for _ in range(self.writers))))
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

        return run_and_close(target, write)

    # --- ends

    def test_it_can_be_closed_twice(self) -> None:
        target = self.target()

        async def write_and_close() -> None:
            await target.write(self._entity("k1", "hello"))
            await target.close()

        run_and_close(target, write_and_close)

    def test_a_target_that_cannot_be_written_says_why(self) -> None:
        if (target := self.broken_target()) is None:
            raise SkipTest("no broken_target is given")
        self._assert_fails_well(lambda: run_and_close(target, lambda: target.write(self._entity("k1", "hello"))))

    def test_its_secrets_are_shown_nowhere(self) -> None:
        target = self.target()
        written = run_and_close(target, lambda: target.write(self._entity("k1", "hello")))
        self._assert_secret(repr(target), str(target), str(written))
