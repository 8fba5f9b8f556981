"""File areas through fsspec: where files may lie, what they are called, and how they appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from fsspec.core import url_to_fs  # type: ignore[import-untyped]  # it carries no types
from fsspec.utils import get_protocol  # type: ignore[import-untyped]

from jobq.connectors import (
    Access,
    ConnectorError,
    InvalidConfiguration,
    InvalidCredentials,
    InvalidPayload,
    Unavailable,
)
from jobq.errors import JobQError
from workers.connectors.configs import check_area
from workers.connectors.file_configs import AreaConfig, fixed_part
from workers.redaction import Redaction

MAX_NAME = 180  # of the 255 bytes that file systems take: a temporary name is longer


@dataclass(frozen=True, slots=True)
class File:
    """One file as it was when it was listed. ``mark`` differs once its content may have changed."""

    name: str
    mark: str
    changed: float | None
    """When, in seconds since 1970; None: the store does not say."""


class Area:
    """A file system, as far as the operator allows it. Every call blocks: use a thread."""

    def __init__(self, url: str, config: AreaConfig, access: Access) -> None:
        self._url, self._config, self._access = url, config, access
        self._hide = Redaction(access.secrets.values())
        self._fs: Any = None
        self.local = get_protocol(url) in {"file", "local"}

    def files(self, pattern: str) -> list[File]:
        """The files that a pattern names, by name; for a plain path that file. Raises ConnectorError."""
        with self.translated():
            folder = fixed_part(pattern)
            base = self._open(folder)
            path = base + pattern.removeprefix(folder)
            found = self._fs.glob(path, detail=True) if pattern != folder else {path: self._fs.info(path)}
            found = {name: self._behind_link(name, info) for name, info in found.items()}
            files = [_file(name, info) for name, info in found.items() if info["type"] == "file"]
            if pattern == folder and not files:
                raise InvalidConfiguration(f"{pattern!r} is no file: for all files of a folder write {pattern}/*")
        for file in files:  # a symbolic link may lead out of the area
            self._check(folder + file.name.removeprefix(base))
        return sorted(files, key=lambda file: file.name)

    def _behind_link(self, name: str, info: dict[str, Any]) -> dict[str, Any]:
        """What a symbolic link leads to: the link itself does not change when that does."""
        if not (self.local and info.get("islink")):
            return info
        there = os.path.realpath(name)
        behind: dict[str, Any] = self._fs.info(there) if os.path.exists(there) else {**info, "type": "nothing"}
        return behind

    def read(self, file: File) -> IO[bytes]:
        """The file, opened for reading; what its name says is compressed is unpacked."""
        with self.translated():
            handle: IO[bytes] = self._fs.open(file.name, "rb", compression="infer")
            return handle

    def write(self, name: str, fill: Callable[[IO[bytes]], None]) -> tuple[str, bool]:
        """Put a file into the area: all that ``fill`` writes, or nothing. Returns its address, and if it is new.

        A local file is written under another name beside it, made durable and renamed; for a store it is written to
        this machine first. ``name`` must come from ``file_name``.
        """
        with self.translated():
            folder = self._open(self._url)
            path = f"{folder.rstrip('/')}/{name}"
            address = path if self.local else f"{self._url.rstrip('/')}/{name}"
            if self.local:
                return address, _replace(Path(folder), name, fill)
            is_new = not self._fs.exists(path)
            with tempfile.TemporaryDirectory(prefix="jobq-") as here:
                copy = Path(here, "file")
                with copy.open("wb") as handle:
                    fill(handle)
                self._fs.makedirs(folder, exist_ok=True)
                self._fs.put_file(str(copy), path)
            return address, is_new

    def _open(self, url: str) -> str:
        """Open the file system; returns what it calls this URL. Raises ConnectorError unless the operator allows it."""
        self._check(url)
        if self._fs is None:
            secrets = self._access.secrets
            for name in self._config.storage.values():
                if name not in secrets:
                    raise InvalidCredentials(f"the secret {name!r} was not given to the connector")
            options: dict[str, Any] = {option: secrets[name] for option, name in self._config.storage.items()}
            if get_protocol(self._url) in {"http", "https"}:
                options["client_kwargs"] = {"middlewares": (self._stay_inside,)}
                options["skip_instance_cache"] = True
            self._fs, _ = url_to_fs(fixed_part(self._url), **options)
        self._fs.invalidate_cache()  # a store's listing may be old
        return str(self._fs._strip_protocol(url))  # noqa: SLF001 - fsspec's own way from URLs to paths

    async def _stay_inside(self, request: Any, handler: Any) -> Any:
        """Between fsspec and each request over HTTP: it follows redirects, which may lead anywhere."""
        self._check(str(request.url.with_query(None).with_fragment(None)))
        return await handler(request)

    def _check(self, url: str) -> None:
        try:
            check_area(url, self._access.policy)
        except JobQError as error:
            raise InvalidConfiguration(str(error)) from None

    @contextmanager
    def translated(self) -> Iterator[None]:
        """What goes wrong with files, in the words of connectors."""
        try:
            yield
        except ConnectorError:
            raise
        except ImportError as error:  # fsspec says which package: "Install s3fs to access S3"
            raise InvalidConfiguration(f"files of this kind need a package that is missing here: {error}") from None
        except FileNotFoundError as error:
            raise InvalidConfiguration(self._hide(f"there is no file {_name(error)}")) from None
        except (IsADirectoryError, NotADirectoryError) as error:
            raise InvalidConfiguration(self._hide(f"{_name(error)} is in the way: {error.strerror}")) from None
        except PermissionError as error:
            raise InvalidCredentials(self._hide(f"access to {_name(error)} is denied")) from None
        except (OSError, EOFError) as error:
            raise Unavailable(self._hide(f"the file area failed: {error}")) from None
        except ValueError as error:  # an unknown scheme, a malformed address
            raise InvalidConfiguration(self._hide(f"the file area cannot be used: {error}")) from None


def _name(error: OSError) -> str:
    return repr(str(error.filename or error))


def _file(name: str, info: dict[str, Any]) -> File:
    changed = info.get("mtime", info.get("LastModified", info.get("last_modified", info.get("updated"))))
    if changed is not None and hasattr(changed, "timestamp"):
        changed = changed.timestamp()
    mark = info.get("ETag") or info.get("etag") or f"{changed}-{info.get('ino', '')}"
    return File(name, f"{mark}-{info.get('size')}", changed if isinstance(changed, int | float) else None)


def _replace(folder: Path, name: str, fill: Callable[[IO[bytes]], None]) -> bool:
    """A local file, new or in the place of the old one; readers see either, and so does a machine that crashes."""
    folder.mkdir(parents=True, exist_ok=True)
    path, draft = folder / name, folder / f".{name[:MAX_NAME]}.{uuid.uuid4().hex}.tmp"
    try:
        with draft.open("xb") as handle:
            fill(handle)
            handle.flush()
            os.fsync(handle.fileno())
        is_new = not path.exists()
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
    return is_new


def file_name(key: str, ending: str) -> str:
    """A name for what has this key: another for every key, one folder deep, readable where the key is.

    Everything but letters, digits and ``_-.~`` is percent-encoded, a dot at the beginning too; a long one is cut and
    gets its hash behind a ``+``, which no other name contains. Raises InvalidPayload for an empty key.
    """
    if not key:
        raise InvalidPayload("an entity without a key cannot become a file")
    name = quote(key.encode("utf-8", "surrogatepass"), safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) > MAX_NAME:
        name = f"{name[: MAX_NAME - 34]}+{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return name + ending


def spooled() -> IO[bytes]:
    """A file of this process's own that is gone when it is closed."""
    return tempfile.TemporaryFile(prefix="jobq-")


def copy(source: IO[bytes], to: IO[bytes]) -> None:
    """All of one file into another."""
    source.seek(0)
    shutil.copyfileobj(source, to, 1024 * 1024)
