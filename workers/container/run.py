"""One attempt of one container job: create, start, follow, stop, remove.

The container never outlives the attempt: it is removed at the end of every path, also when the coroutine is
canceled. One that has run is removed only when its end is on record: a worker that dies before that leaves the
container to the next, which finds the exit code and the rest of the log in it. The two exceptions are a drain, which
leaves it running for the worker that recovers it, and an engine that does not answer, where the reaper of orphans
does it later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar

from jobq.errors import InvalidInput
from jobq.models import Outcome
from jobq.plugins import Context, Stop
from jobq.settings import Settings
from jobq.specs import Container
from workers.container import files, refusals, registry
from workers.container.config import Claim, create_body
from workers.container.end import Ended, Why, instant, outcome
from workers.container.engine import DockerEngine, EngineAway, EngineError, EngineOverdue, EngineRefused
from workers.container.hold import Gone, Hold, NameTaken, StartInDoubt, to_the_end
from workers.container.log import ContainerLog
from workers.container.usage import Usage

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
END_AFTER_STOP = 10.0

Found = TypeVar("Found")


@dataclass(slots=True)
class Place:
    """What all attempts of one worker share."""

    engine: DockerEngine
    settings: Settings
    worker_id: str
    host: str | None
    starts: asyncio.Semaphore
    """Starts under way at once: more than the engine can use only queue inside it."""


class ContainerRun:
    """The life of one container, from the claim of its job to the outcome."""

    def __init__(self, place: Place, spec: Container, ctx: Context) -> None:
        self.place = place
        self.spec = spec
        self.ctx = ctx
        self.hold = Hold(place.engine, Claim(ctx.job.id, ctx.job.attempt), place.settings.env_id)
        self._login: registry.Login | None = None
        self._why: Why | None = None
        self._ended = False
        """It ran and has ended: there is nothing to lose but its trace."""
        saved = ctx.checkpoint
        self._before = saved if saved.get("attempt") == ctx.job.attempt else {}
        """What the previous owner of this attempt saved; of an earlier attempt nothing counts."""

    async def execute(self) -> Outcome:
        """Run a new container to its end."""
        return await self._then_removed(self._execute())

    async def _execute(self) -> Outcome:
        return await self._prepare() or await self._start() or await self._watch()

    async def recover(self) -> Outcome:
        """Take over the container that another worker began for this very attempt, wherever it stands."""
        outcome = await self._then_removed(self._take_over())
        # Nothing ran yet, and whether its files were put is unknown: begin anew under the plain name.
        return outcome or await ContainerRun(self.place, self.spec, self.ctx).execute()

    async def _take_over(self) -> Outcome | None:
        """The outcome of the container that another worker began; None: it had not begun one, or not started it."""
        try:
            hold = self.hold
            state = (await hold.patiently(hold.take_over, hold.engine.patience))["State"]
            if state["Status"] == "created":
                return refusals.start_in_doubt() if await hold.patiently(hold.has_output) else None
        except Gone:
            self.hold.let_go()
            # Nobody removes one that ran before its end is on record, and one that runs is noted within a second.
            began = "container" in self._before
            return Outcome.lost("the container is gone: nobody can say how it ended") if began else None
        except EngineError as error:
            self.hold.let_go()
            return Outcome.lost(f"the container cannot be taken over: {error}")
        ran = (datetime.now(UTC) - instant(state["StartedAt"])).total_seconds() if state["Running"] else 0.0
        return await self._watch(max(0.0, ran))

    async def _then_removed(self, work: Coroutine[Any, Any, Found]) -> Found:
        """Do the work; the container goes at its end, or once that is on record where it tells what became of it."""
        try:
            found = await work
        except BaseException:
            await to_the_end(self._remove())
            raise
        if self._ended and self._why is not Why.FENCED and self.ctx.afterwards is not None:
            self.ctx.afterwards.append(self._remove)
        else:
            with self.ctx.step("remove") if self.hold.ours else nullcontext():
                await to_the_end(self._remove())
        return found

    # --- prepare: pull, create, files --------------------------------------------------------------------------------

    async def _prepare(self) -> Outcome | None:
        """Bring the container into being; an Outcome if that cannot be done, or the job was told to stop."""
        deadline = time.monotonic() + self.place.settings.prepare_timeout.total_seconds()
        try:
            self._login = self._read_login()
            if self.hold.claim.attempt > 1:
                await self.hold.remove_older()
            if self.spec.pull == "always" and (failed := await self._pull(deadline)):
                return failed
            if failed := await self._create(deadline):
                return failed
            if files.wants_files(self.spec) and not self.hold.ran_before:
                await self._put_files()
        except files.SecretMissing as missing:
            return Outcome.invalid(f"there is no secret {str(missing)!r}: store it with `jobq secret set`")
        except InvalidInput as unusable:
            return Outcome.invalid(str(unusable))
        except EngineError as error:
            return self._failed_before_start(error)
        return None

    def _read_login(self) -> registry.Login | None:
        """The login for the image's registry; read before anything is asked, whether or not a pull will follow."""
        if (name := self.spec.registry_secret) is None:
            return None
        if name not in self.ctx.secrets:
            raise files.SecretMissing(name)
        return registry.read_login(name, self.ctx.secrets[name])

    async def _pull(self, deadline: float) -> Outcome | None:
        image = self.spec.image
        auth = registry.auth_header(image, self._login) if self._login else ""
        self.ctx.log(f"pulling {image}")
        try:
            with self.ctx.step("pull"):
                left = max(0.1, deadline - time.monotonic())
                done = await self._unless_stopped(self.place.engine.pull(image, deadline=left, auth=auth))
        except EngineOverdue:
            return refusals.pull_overdue(image, self.place.settings.prepare_timeout.total_seconds())
        except EngineRefused as refused:
            said = EngineRefused(refused.status, registry.masked(refused.message, self._login))
            return refusals.pull_refused(image, said, self.spec.registry_secret)
        return None if done else self._not_started()

    async def _create(self, deadline: float) -> Outcome | None:
        """Create the container; an image that is missing is pulled only then, which spares the usual job a call."""
        settings = self.place.settings
        body = create_body(
            self.spec, self.ctx.job, env_id=settings.env_id, worker_id=self.place.worker_id,
            now=datetime.now(UTC), max_log_bytes=settings.max_log_bytes,
        )  # fmt: skip
        try:
            with self.ctx.step("create"):
                await self.hold.create(body)
        except NameTaken as taken:
            message = f"a foreign container has the name {taken}: remove it"
            return Outcome.failed(message, error_class="container_name_taken")
        except EngineRefused as refused:
            if refused.status != 404:
                return refusals.create_refused(refused, self.spec.cpus)
            if self.spec.pull == "never" or any(step.name == "pull" for step in self.ctx.steps):
                return refusals.image_missing(self.spec.image)
            return await self._pull(deadline) or await self._create(deadline)
        return None

    async def _put_files(self) -> None:
        with self.ctx.step("files"):
            owner = await files.owner_of(self.place.engine, self.hold.name, self.spec.user)
            details = files.details_at_start(
                self.spec, self.ctx.job, env_id=self.hold.env_id, host=self.place.host, now=datetime.now(UTC)
            )
            await self.hold.put(files.pack(self.spec, self.ctx.secrets, details, owner))

    # --- start -------------------------------------------------------------------------------------------------------

    async def _start(self) -> Outcome | None:
        """Start it; an Outcome if it does not start, or the job was told to stop before."""
        try:
            async with self.place.starts:
                if self.ctx.stop is not None:
                    return self._not_started()
                with self.ctx.step("start"):
                    await self.hold.start()
        except StartInDoubt:
            return refusals.start_in_doubt()
        except EngineRefused as refused:
            return refusals.start_refused(refused)
        except EngineError as error:
            failed = self._failed_while_running if self.hold.may_have_started else self._failed_before_start
            return failed(error)
        return None

    def _not_started(self) -> Outcome:
        """Nothing ran: a drain gives the job back, instead of leaving work behind that a worker could recover."""
        if self.ctx.stop is Stop.DRAIN:
            message = "the worker went away before the container started"
            return Outcome.requeued(timedelta(0), message, error_class="drained")
        return Outcome.stopped("stopped before the container started")

    def _failed_before_start(self, error: EngineError) -> Outcome:
        if not isinstance(error, EngineRefused):
            self.hold.let_go()  # an engine that does not answer will not remove anything now
        return refusals.before_start(error)

    # --- run ---------------------------------------------------------------------------------------------------------

    async def _watch(self, ran: float = 0.0) -> Outcome:
        """Follow the running container to its end, its timeout, or a request to stop; ``ran``: seconds so far."""
        self.ctx.executing()
        self._log = ContainerLog(self.place.engine, self.hold.name, self.ctx, self._before, self._save)
        self._usage = Usage(self.hold.id)
        self._save()
        follower = asyncio.create_task(self._log.follow())
        waiter = asyncio.create_task(self.hold.exit_code())
        ticker = asyncio.create_task(self._tick())
        try:
            with self.ctx.step("run"):
                stop = await self._end_or_stop(waiter, ran)
            if stop is Stop.DRAIN:
                return self._leave()
            if stop is not None:
                await self._stop(Why(stop.value), waiter)
            return await self._conclude(await waiter, follower)
        except Gone:
            self.hold.let_go()
            return self._outcome(Ended(None))
        except EngineError as error:
            return self._failed_while_running(error)
        finally:
            await _cancel(follower, waiter, ticker)

    async def _end_or_stop(self, waiter: asyncio.Task[int], ran: float) -> Stop | Why | None:
        """None: it ended by itself; else why it must be stopped now."""
        timeout = self.ctx.job.timeout
        stopped = asyncio.create_task(self.ctx.stopped())
        try:
            left = None if timeout is None else max(0.0, timeout - ran)
            await asyncio.wait({waiter, stopped}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if waiter.done():
                return None
            return stopped.result() if stopped.done() else Why.TIMEOUT
        finally:
            await _cancel(stopped)

    async def _stop(self, why: Why, waiter: asyncio.Task[int]) -> None:
        """Stop it; why is kept first, for whoever finds the container if this worker dies meanwhile."""
        self._why = why
        self._save()
        with self.ctx.step("stop"):
            await self.hold.stop(self.place.settings.stop_grace.total_seconds())
            done, _ = await asyncio.wait({waiter}, timeout=END_AFTER_STOP)
        if not done:
            raise EngineOverdue(f"the container did not end within {END_AFTER_STOP:g} s of its kill")

    async def _conclude(self, code: int, follower: asyncio.Task[None]) -> Outcome:
        """The outcome of the ended container: its log complete, its output fetched, the cause asked for."""
        self._ended = True
        try:
            await self._log.drain(follower)
        except (EngineError, TimeoutError) as error:
            self.ctx.log(f"the end of the container's log could not be read: {str(error) or 'the engine is too slow'}")
        if self.hold.engine_lost:  # what the container writes meanwhile, nobody reads
            self.ctx.log("the Docker engine was away while the container ran: some of its output may be missing")
        self._save()
        result = None
        if self.spec.output and self._why is not Why.FENCED:
            result = {"artifacts": await self._fetch_artifacts(self.spec.output)}
        self._why = self._why or _why_before(self._before)
        ended = Ended(code) if code == 0 and self._why is None else await self._examine(code)
        return self._outcome(ended, result)

    def _outcome(self, ended: Ended, result: Any = None) -> Outcome:
        return outcome(
            ended, self.spec, why=self._why, timeout=self.ctx.job.timeout,
            grace=self.place.settings.stop_grace.total_seconds(), usage=self._usage.figures(), result=result,
        )  # fmt: skip

    async def _examine(self, code: int) -> Ended:
        """Ask why it ended. The kernel's out-of-memory notice may reach the engine after the exit: ask twice then."""
        ended = Ended(code, engine_lost=self.hold.engine_lost)
        try:
            for pause in (0.0, 0.1):
                await asyncio.sleep(pause)
                found = await self.place.engine.inspect(self.hold.name)
                ended = Ended.of(found, engine_lost=self.hold.engine_lost)
                if code != 137 or ended.out_of_memory or self._why:
                    break
        except EngineError as error:  # the exit code is known, and tells the most
            self.ctx.log(f"the cause of the container's end could not be asked for: {error}")
        return ended

    async def _fetch_artifacts(self, folder: str) -> list[dict[str, Any]]:
        """Hand the files of the output folder over, and list them."""
        with self.ctx.step("output"), SpooledTemporaryFile(max_size=files.MAX_ARTIFACT) as file:
            try:
                if not await files.fetch_output(self.place.engine, self.hold.name, folder, file):
                    return []
            except EngineError as error:
                self.ctx.log(f"the files in {folder} could not be fetched: {error}")
                return []
            found = await asyncio.to_thread(files.unpack, file)
        for name, content in found.files.items():
            self.ctx.save_artifact(name, content)
        for name in found.left_out:
            self.ctx.log(f"not kept as an artifact: {name}")
        return found.listing()

    # --- end ---------------------------------------------------------------------------------------------------------

    def _leave(self) -> Outcome:
        self._save()
        self.hold.let_go()
        return Outcome.stopped("left running for another worker", result={"left_running": self.hold.name})

    def _failed_while_running(self, error: EngineError) -> Outcome:
        if not isinstance(error, EngineRefused):
            self.hold.let_go()  # an engine that does not answer will not remove anything now
        if isinstance(error, EngineAway) and self._why in {Why.CANCEL, Why.FENCED}:
            return Outcome.stopped(f"given up: the container is stopped as soon as the engine is back: {error}")
        return refusals.while_running(error)

    async def _remove(self) -> None:
        try:
            await self.hold.remove()
        except EngineError as error:  # whatever it is, the reaper of orphans tries again
            log.warning("the container %s could not be removed now, it will be later: %s", self.hold.name, error)

    # --- small parts -------------------------------------------------------------------------------------------------

    async def _unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work; False: the job was told to stop first, and the work was canceled."""
        doing, stopped = asyncio.create_task(work), asyncio.create_task(self.ctx.stopped())
        try:
            await asyncio.wait({doing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if doing.done():
                doing.result()
            return doing.done()
        finally:
            await _cancel(doing, stopped)

    async def _tick(self) -> None:
        """Look at what the container uses, soon at first and then each second."""
        pause = 0.1
        while True:
            self._usage.look()
            await asyncio.sleep(pause)
            pause = min(LOOK_EVERY, pause * 2)

    def _save(self) -> None:
        """Keep what a successor needs. In the same breath as each piece of the log, so that both are stored together."""
        stopping = {"stopping": self._why.value} if self._why else {}
        whose = {"attempt": self.ctx.job.attempt, "container": self.hold.id}
        self.ctx.save({**whose, **self._log.position, **stopping})


def _why_before(saved: Mapping[str, Any]) -> Why | None:
    """Why the previous owner stopped the container, if it did and could not report it."""
    stopping = saved.get("stopping")
    return Why(stopping) if stopping in {Why.TIMEOUT, Why.CANCEL} else None


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """End tasks, and wait for it; what they raised was seen or does not matter any more."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
