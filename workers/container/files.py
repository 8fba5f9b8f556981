"""What goes into a container before it starts, and what comes out of it after its end: tars, no mounts.

In: secrets below ``/run/secrets`` and the spec's files, readable by the container's user only, the empty output
folder, and ``/jobq/job_details.json``. Out: the regular files below the output folder, within bounds.
Putting anything in costs the engine about 50 ms (it mounts the file system), so a job that asks for none of it
gets none of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from jobq.details import Facts, job_details
from jobq.plugins import JobRef
from jobq.specs import Container, MiB
from jobq.states import Reason, Status
from workers.container.engine import DockerEngine, EngineRefused

SECRETS = "/run/secrets"
DETAILS = "/jobq/job_details.json"
MAX_ARTIFACT = MiB
MAX_ARTIFACTS = 16 * MiB
MAX_COUNT = 1000
_MAX_TRANSFER = 64 * MiB  # of the tar: files that are too large have to be passed over
_MAX_PASSWD = MiB
_MARK = re.compile(r"-[0-9a-f]{12}\Z")
"""What a worker adds to ``env_id``: see ``workers.service``."""

Owner = tuple[int, int]


class SecretMissing(Exception):
    """The spec names a secret that the tenant does not have."""


class _Enough(Exception):
    """Ends a transfer at its bound."""


# --- in --------------------------------------------------------------------------------------------------------------


def wants_files(spec: Container) -> bool:
    """True if something has to be put into the container before it starts."""
    return bool(spec.secrets or spec.files or spec.output)


def pack(spec: Container, secrets: Mapping[str, str], details: Mapping[str, Any], owner: Owner) -> bytes:
    """The tar to unpack at the container's root. Raises SecretMissing."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        _add_folder(tar, "/jobq", (0, 0))
        _add(tar, DETAILS, json.dumps(details, indent=2).encode(), 0o444, (0, 0))
        if spec.secrets:
            _add_folder(tar, SECRETS, (0, 0))
        for name, secret in spec.secrets.items():
            if secret not in secrets:
                raise SecretMissing(secret)
            _add(tar, f"{SECRETS}/{name}", secrets[secret].encode(), 0o400, owner)
        for path, text in spec.files.items():
            _add(tar, path, text.encode(), 0o700 if text.startswith("#!") else 0o600, owner)
        # A folder that everybody may write to keeps its mode; any other becomes the user's own.
        if spec.output and PurePosixPath(spec.output) not in {PurePosixPath(p) for p in ("/", "/tmp", "/var/tmp")}:  # noqa: S108 - a path in the container
            _add_folder(tar, spec.output, owner)
    return buffer.getvalue()


def _add_folder(tar: tarfile.TarFile, path: str, owner: Owner) -> None:
    entry = tarfile.TarInfo(path.strip("/"))
    entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    entry.uid, entry.gid = owner
    tar.addfile(entry)


def _add(tar: tarfile.TarFile, path: str, content: bytes, mode: int, owner: Owner) -> None:
    entry = tarfile.TarInfo(path.strip("/"))
    entry.size, entry.mode = len(content), mode
    entry.uid, entry.gid = owner
    tar.addfile(entry, io.BytesIO(content))


async def owner_of(engine: DockerEngine, container: str, user: str) -> Owner:
    """The numbers of the container's user; a name is looked up in the image's passwd file.

    A user that the image does not know gets root's: the start will fail with the engine's own words.
    """
    if not user:
        user = str((await engine.inspect(container))["Config"]["User"])
    name, _, group = user.partition(":")
    if name.isdecimal():
        return int(name), int(group) if group.isdecimal() else 0
    if not name:
        return 0, 0
    with SpooledTemporaryFile(max_size=_MAX_PASSWD) as file:
        try:
            await _fetch(engine, container, "/etc/passwd", file, _MAX_PASSWD)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                passwd = tar.extractfile(tar.next() or tarfile.TarInfo())
                lines = passwd.read().decode(errors="replace").splitlines() if passwd else []
        except (EngineRefused, tarfile.TarError):
            return 0, 0
    for line in lines:
        fields = line.split(":")
        if fields[0] == name and len(fields) > 3 and fields[2].isdecimal() and fields[3].isdecimal():
            return int(fields[2]), int(fields[3])
    return 0, 0


def details_at_start(spec: Container, job: JobRef, *, env_id: str, host: str | None, now: datetime) -> dict[str, Any]:
    """The job_details document of a container job, as it is when its files are put: see docs/job-details.md.

    ``env_id``: the mark of the installation's containers, which is the setting and a part of the database's id.
    """
    return job_details(
        Facts(
            id=job.id, attempt=job.attempt, tenant=job.tenant, kind=job.kind, name=job.name, queue=job.queue,
            trigger=job.trigger, status=Status.RUNNING, reason=Reason.PREPARING, workflow_id=job.workflow_id,
            env_id=_MARK.sub("", env_id), spec=spec.model_dump(mode="json"), state=job.state, started_at=now,
            actor=job.started_by,
            last_updated=now, host=host,
        )
    )  # fmt: skip


# --- out -------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Artifacts:
    """Files that a container left in its output folder, by their path below it; and what was left out, and why."""

    files: dict[str, bytes] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def listing(self) -> list[dict[str, Any]]:
        """Name, size and checksum of each, for the job's result."""
        return [
            {"name": name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in self.files.items()
        ]


async def fetch_output(engine: DockerEngine, container: str, folder: str, file: IO[bytes]) -> bool:
    """Copy a tar of the output folder into ``file``; False: there is no such folder."""
    try:
        await _fetch(engine, container, folder, file, _MAX_TRANSFER)
    except EngineRefused as refused:
        if refused.status == 404:
            return False
        raise
    return True


async def _fetch(engine: DockerEngine, container: str, path: str, file: IO[bytes], most: int) -> None:
    taken = 0

    def take(piece: bytes) -> None:
        nonlocal taken
        taken += len(piece)
        if taken > most:
            raise _Enough
        file.write(piece)

    try:
        await engine.get_archive(container, path, take)
    except _Enough:  # the reader sees a cut tar, and says so
        return
    finally:
        file.seek(0)


def unpack(file: IO[bytes]) -> Artifacts:
    """The regular files of an output folder's tar, within the bounds; links and devices are never followed."""
    found, total = Artifacts(), 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                name = _below(entry.name)
                if not entry.isreg() or name is None:
                    continue
                if entry.size > MAX_ARTIFACT:
                    found.left_out.append(f"{name} ({entry.size} bytes; at most {MAX_ARTIFACT} are kept)")
                elif total + entry.size > MAX_ARTIFACTS or len(found.files) >= MAX_COUNT:
                    found.left_out.append(f"{name} (more than {MAX_COUNT} files or {MAX_ARTIFACTS} bytes)")
                elif content := tar.extractfile(entry):
                    total += entry.size
                    found.files[name] = content.read()
    except tarfile.TarError:
        found.left_out.append(f"what lies beyond the first {_MAX_TRANSFER} bytes")
    return found


def _below(name: str) -> str | None:
    """The path below the output folder, which is the first part; None: it would lead out of it."""
    parts = PurePosixPath(name).parts[1:]
    return "/".join(parts) if parts and ".." not in parts and not name.startswith("/") else None
