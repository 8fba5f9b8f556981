"""The resolver: one lookup per name, bounded threads, and nobody waits for another's dead name."""

import asyncio
import socket
import threading
import time
from ipaddress import ip_address

import pytest

from jobq.net import Address
from jobq.outbound.resolver import Resolver, system_lookup

ONE = (ip_address("192.0.2.1"),)


class Names:
    """A name server that counts, and that answers names beginning with ``slow`` when it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = threading.Event()

    def __call__(self, name: str) -> tuple[Address, ...]:
        self.asked.append(name)
        if name.startswith("slow"):
            self.go_on.wait(10)
        if name.startswith("gone"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return ONE


async def test_a_thousand_askers_of_one_name_cost_one_lookup() -> None:
    names = Names()
    resolver = Resolver(names)
    answers = await asyncio.gather(*(resolver.resolve("example") for _ in range(1000)))
    assert set(answers) == {ONE}
    assert await resolver.resolve("example") == ONE
    assert names.asked == ["example"]
    resolver.close()


async def test_an_answer_is_asked_for_again_once_it_is_old() -> None:
    names = Names()
    resolver = Resolver(names, keep=0.0)
    for _ in range(3):
        assert await resolver.resolve("example") == ONE
    assert len(names.asked) == 3
    resolver.close()


async def test_a_failure_is_told_to_all_who_wait_and_not_kept() -> None:
    names = Names()
    resolver = Resolver(names)
    for times in (1, 2):
        told = await asyncio.gather(*(resolver.resolve("gone") for _ in range(9)), return_exceptions=True)
        assert all(isinstance(each, socket.gaierror) for each in told)
        assert len(names.asked) == times
    resolver.close()


async def test_a_name_that_hangs_holds_up_no_other_until_all_threads_hang() -> None:
    names = Names()
    resolver = Resolver(names, threads=2)
    slow = [asyncio.create_task(resolver.resolve(f"slow{n}")) for n in range(1)]
    assert await asyncio.wait_for(resolver.resolve("quick"), 5) == ONE
    slow += [asyncio.create_task(resolver.resolve(name)) for name in ("slow1", "slow2")]
    while len(names.asked) < 3:  # noqa: ASYNC110 - a thread of the resolver counts
        await asyncio.sleep(0.001)
    assert resolver.waits_for_thread("slow2")
    assert not resolver.waits_for_thread("slow1")
    assert not resolver.waits_for_thread("quick")
    names.go_on.set()
    assert await asyncio.gather(*slow) == [ONE] * 3
    assert not resolver.waits_for_thread("slow2")
    resolver.close()


async def test_an_asker_that_gives_up_does_not_end_the_lookup_for_the_others() -> None:
    names = Names()
    resolver = Resolver(names)
    hasty = asyncio.create_task(resolver.resolve("slow"))
    patient = asyncio.create_task(resolver.resolve("slow"))
    await asyncio.sleep(0)
    hasty.cancel()
    await asyncio.wait({hasty})
    names.go_on.set()
    assert await patient == ONE
    assert names.asked == ["slow"]
    resolver.close()


async def test_closing_tells_those_who_wait_and_ends_the_threads() -> None:
    names = Names()
    resolver = Resolver(names)
    waiting = asyncio.create_task(resolver.resolve("slow"))
    await asyncio.sleep(0)
    before = [thread for thread in threading.enumerate() if thread.name == "jobq-resolver"]
    resolver.close()
    with pytest.raises(socket.gaierror, match="closed"):
        await waiting
    names.go_on.set()
    deadline = time.monotonic() + 5
    while any(thread.is_alive() for thread in before) and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    assert before
    assert not any(thread.is_alive() for thread in before)


async def test_kept_answers_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobq.outbound.resolver.MAX_KEPT", 10)
    resolver = Resolver(Names())
    for number in range(50):
        await resolver.resolve(f"name{number}")
    assert len(resolver._kept) <= 10
    resolver.close()


def test_the_system_resolves_localhost_to_loopback_addresses_without_repeats() -> None:
    found = system_lookup("localhost")
    assert found
    assert all(address.is_loopback for address in found)
    assert len(set(found)) == len(found)
