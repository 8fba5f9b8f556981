"""What it means for a job that the Docker engine refuses, fails or hangs. Pure: from its words to an Outcome."""

from __future__ import annotations

import re
from datetime import timedelta

from jobq.models import Outcome
from jobq.states import Reason
from workers.container.engine import EngineAway, EngineError, EngineOverdue, EngineRefused

_RUNTIME_NOISE = (
    "failed to create shim task: ",
    "failed to create shim: ",
    "OCI runtime create failed: ",
    "runc create failed: ",
    "unable to start container process: ",
    ": unknown",
)
_HOPELESS = (
    "executable file not found",
    "no such file or directory",
    "is not a directory",
    "permission denied",
    "unable to find user",
    "unable to find group",
)

_STARTED_BEFORE = re.compile(r"\btask \w+: already exists|\bid already in use|\bstart shim: mkdir \S+: file exists")

_UNAUTHORIZED = ("unauthorized", "no basic auth credentials")
_NO_IMAGE = ("not found", "manifest unknown", "denied")
_TOO_MANY_CPUS = re.compile(r"only (\d+) CPUs? available")

AWAY_PAUSE = timedelta(seconds=10)


def _plain(message: str) -> str:
    """The engine's sentence without the layers that passed it on."""
    for noise in _RUNTIME_NOISE:
        message = message.replace(noise, "")
    return message.strip()


def before_start(error: EngineError) -> Outcome:
    """The engine failed before the container ran: nothing happened, and another try may do.

    An engine that is away is no fault of the job: it goes back to the queue, at no charge.
    """
    if isinstance(error, EngineAway):
        message = f"{error}; start it, or point JOBQ_DOCKER_HOST to it"
        return Outcome.requeued(AWAY_PAUSE, message, error_class=error.error_class)
    return Outcome.failed(str(error), error_class=error.error_class)


def while_running(error: EngineError) -> Outcome:
    """The engine failed while the container ran: it may have ended in any way, or still be running."""
    if isinstance(error, EngineAway):
        return Outcome.lost(f"nobody can say how the container ended: {error}")
    late = "; its container is removed as soon as the engine answers again" if isinstance(error, EngineOverdue) else ""
    return Outcome.failed(f"{error}{late}", error_class=error.error_class)


def pull_overdue(image: str, seconds: float) -> Outcome:
    """The image did not come in time."""
    return Outcome.failed(
        f"the pull of {image} took longer than {seconds:g} s; "
        "check the registry, pull the image on the host beforehand, or raise JOBQ_PREPARE_TIMEOUT",
        error_class="prepare_timeout",
    )


def pull_refused(image: str, refused: EngineRefused, registry_secret: str | None = None) -> Outcome:
    """The registry has no such image for us, or could not be asked. ``registry_secret``: as whom it was asked."""
    said = f"the image {image} cannot be pulled: {refused.message}"
    if registry_secret:
        login = f"the login in the secret {registry_secret!r}"
    else:
        login = "whether it needs a login, which registry_secret would name"
    if any(words in refused.message for words in _UNAUTHORIZED):
        return Outcome.failed(f"{said}; check {login}", error_class="pull_denied", retry=False)
    if refused.status == 404 or any(words in refused.message for words in _NO_IMAGE):
        return Outcome.failed(
            f"{said}; check its name and tag, and {login}", error_class="image_not_found", retry=False
        )  # fmt: skip
    return Outcome.failed(said, error_class="pull_failed")


def image_missing(image: str) -> Outcome:
    """The engine does not have the image, and the spec forbids to pull it."""
    return Outcome.failed(
        f"the Docker engine has no image {image}; pull it on that host, or set pull to 'missing'",
        error_class="image_not_found", retry=False,
    )  # fmt: skip


def create_refused(refused: EngineRefused, cpus: float) -> Outcome:
    """The engine did not make the container, for which ``cpus`` were asked."""
    if refused.status < 500 and (found := _TOO_MANY_CPUS.search(refused.message)):
        has = f"{found[1]} CPU{'s' if found[1] != '1' else ''}"
        return Outcome.invalid(f"cpus: {cpus:g} is more than there is: the host has {has}; ask for {found[1]} at most")
    said = f"the Docker engine refused to create the container: {_plain(refused.message)}"
    if refused.status < 500:
        return Outcome.invalid(said)
    return Outcome.failed(said, error_class="create_failed")


def start_refused(refused: EngineRefused) -> Outcome:
    """The engine made the container but could not start it.

    An engine that was killed in the middle of a start finds what it left behind, and refuses the start that is repeated.
    """
    said = f"the container did not start: {_plain(refused.message)}"
    if _STARTED_BEFORE.search(refused.message):
        return start_in_doubt(f"; now it says: {_plain(refused.message)}")
    if refused.status < 500 or any(words in refused.message for words in _HOPELESS):
        return Outcome.failed(said, error_class="start_failed", reason=Reason.INVALID, retry=False)
    return Outcome.failed(said, error_class="start_failed")


def start_in_doubt(more: str = "") -> Outcome:
    """The engine died over the start: the container may have run until then."""
    return Outcome.lost(f"nobody can say whether the container ran: the Docker engine died while it started it{more}")
