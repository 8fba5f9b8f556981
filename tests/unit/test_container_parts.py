"""The pure parts of container jobs: what is asked of the engine, and what its answers mean."""

import io
import struct
import tarfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobq.errors import Misconfigured
from jobq.plugins import Context, JobRef
from jobq.specs import Container, MiB
from jobq.states import Reason, Status
from workers.container import files, refusals
from workers.container.config import Claim, create_body, taken_over
from workers.container.end import Ended, Why, outcome, size
from workers.container.engine import DockerEngine, EngineAway, EngineOverdue, EngineRefused, split_image
from workers.container.log import ContainerLog
from workers.container.usage import Usage

JOB = JobRef(UUID(int=7), 2, "acme", "CONTAINER", "nightly", "container", "MANUAL", 30.0)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPEC = Container(image="busybox", command=["true"], memory=64 * MiB)


def body(spec: Container, job: JobRef = JOB, max_log_bytes: int = MiB) -> dict[str, Any]:
    return create_body(spec, job, env_id="prod", worker_id="w1", now=NOW, max_log_bytes=max_log_bytes)


# --- what is asked of the engine -------------------------------------------------------------------------------------


def test_the_body_of_create_is_exactly_this() -> None:
    assert body(SPEC) == {
        "Image": "busybox",
        "Cmd": ["true"],
        "User": "65534:65534",
        "Env": ["JOBQ_JOB_ID=00000000-0000-0000-0000-000000000007", "JOBQ_ATTEMPT=2", "JOBQ_TENANT=acme",
                "JOBQ_JOB_NAME=nightly", "JOBQ_TRIGGER=MANUAL"],
        "Labels": {"jobq.env": "prod", "jobq.job": "00000000-0000-0000-0000-000000000007", "jobq.attempt": "2",
                   "jobq.worker": "w1", "jobq.deadline": "2026-01-02T03:04:35+00:00"},
        "NetworkDisabled": True,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            "Memory": 64 * MiB, "MemorySwap": 64 * MiB, "NanoCpus": 10**9, "PidsLimit": 128, "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"], "Init": True, "IpcMode": "private", "NetworkMode": "none",
            "ReadonlyRootfs": False, "AutoRemove": False, "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "16777216", "max-file": "2"}},
        },
    }  # fmt: skip


def test_nothing_of_a_spec_reaches_the_host_config_but_checked_numbers_and_the_network() -> None:
    plain = body(SPEC)["HostConfig"]
    spec = SPEC.model_copy(update={
        "env": {"A": "b"}, "secrets": {"a": "b"}, "files": {"/a": "b"}, "user": "root", "working_dir": "/", "output": "/out",
        "entrypoint": ["sh"], "command": ["--privileged"],
    })  # fmt: skip
    assert body(spec)["HostConfig"] == plain
    networked = body(SPEC.model_copy(update={"network": "jobs"}))
    assert (networked["NetworkDisabled"], networked["HostConfig"]) == (False, {**plain, "NetworkMode": "jobs"})


def test_no_variable_of_the_user_overrides_ours() -> None:
    spec = SPEC.model_copy(update={"env": {"JOBQ_TENANT": "forged", "PATH": "/bin"}})
    assert "JOBQ_TENANT=acme" in body(spec)["Env"]
    assert not any("forged" in entry for entry in body(spec)["Env"])
    assert "PATH=/bin" in body(spec)["Env"]


def test_the_engines_log_is_larger_than_the_job_log() -> None:
    assert body(SPEC, max_log_bytes=64 * MiB)["HostConfig"]["LogConfig"]["Config"]["max-size"] == str(128 * MiB)


def test_a_claim_reads_its_own_labels_and_no_others() -> None:
    claim = Claim(UUID(int=7), 2)
    assert Claim.of(body(SPEC)["Labels"]) == claim
    assert Claim.of({}) is None
    assert Claim.of({"jobq.job": "x", "jobq.attempt": "2"}) is None


def test_each_takeover_has_a_name_of_its_own() -> None:
    claim = Claim(UUID(int=7), 2)
    names = {claim.name, taken_over(claim), taken_over(claim)}
    assert len(names) == 3
    assert all(name.startswith(claim.name) for name in names)


@pytest.mark.parametrize(
    ("image", "parts"),
    [("a", ("a", "latest")), ("a:1", ("a", "1")), ("h:5000/a", ("h:5000/a", "latest")), ("h:5000/a:1", ("h:5000/a", "1")),
     ("a@sha256:ab", ("a", "sha256:ab")), ("h:5/a:1@sha256:ab", ("h:5/a", "sha256:ab"))],
)  # fmt: skip
def test_a_pull_names_one_tag_never_all(image: str, parts: tuple[str, str]) -> None:
    assert split_image(image) == parts


async def test_an_address_that_is_none_says_which_setting_is_wrong() -> None:
    for url in ("", "docker.sock", "unix://relative", "ssh://host", "tcp://"):
        with pytest.raises(Misconfigured, match="JOBQ_DOCKER_HOST"):
            DockerEngine(url)


# --- how it ended ----------------------------------------------------------------------------------------------------


def ended(code: int | None, why: Why | None = None, **more: Any) -> Any:
    return outcome(Ended(code, **more), SPEC, why=why, timeout=30, grace=2)


@pytest.mark.parametrize(
    ("code", "more", "reason", "words"),
    [
        (0, {}, Reason.SUCCEEDED, ""),
        (0, {"out_of_memory": True}, Reason.SUCCEEDED, ""),
        (1, {}, Reason.NONZERO_EXIT, "exit 1"),
        (1, {"out_of_memory": True}, Reason.NONZERO_EXIT, "exit 1; a process in it was killed at the memory limit of 64 MB"),
        (126, {}, Reason.NONZERO_EXIT, "cannot be executed"),
        (127, {}, Reason.NONZERO_EXIT, "not found in the image"),
        (134, {}, Reason.NONZERO_EXIT, "killed by SIGABRT"),
        (137, {"out_of_memory": True}, Reason.OUT_OF_MEMORY, "exit 137: the memory limit of 64 MB was reached"),
        (137, {}, Reason.NONZERO_EXIT, "SIGKILL, which jobq did not send"),
        (137, {"seconds": 31.0}, Reason.TIMED_OUT, "timed out after 30 s"),  # the reaper did it, on our behalf
        (137, {"engine_lost": True}, Reason.UNRESOLVED, "took it along"),
        (1, {"engine_lost": True}, Reason.NONZERO_EXIT, "exit 1"),
        (139, {}, Reason.NONZERO_EXIT, "segmentation fault"),
        (143, {}, Reason.NONZERO_EXIT, "SIGTERM, which jobq did not send"),
        (None, {}, Reason.UNRESOLVED, "removed by somebody else"),
        (255, {}, Reason.NONZERO_EXIT, "exit 255"),
    ],
)  # fmt: skip
def test_each_end_has_its_reason_and_says_the_likely_cause(
    code: int | None, more: dict[str, Any], reason: Reason, words: str
) -> None:
    result = ended(code, **more)
    assert result.reason is reason
    assert words in result.message
    assert result.exit_code == code


def test_who_stopped_the_container_decides_over_its_exit_code() -> None:
    for code in (0, 137, 143, None):
        assert ended(code, Why.TIMEOUT).reason is Reason.TIMED_OUT
        assert ended(code, Why.CANCEL).status is Status.CANCELED
        assert ended(code, Why.FENCED).status is Status.CANCELED
    assert "ignored SIGQUIT and was killed 2 s later" in ended(137, Why.TIMEOUT, stop_signal="SIGQUIT").message


def test_a_missing_command_is_not_tried_again() -> None:
    assert [ended(code).retry for code in (1, 126, 127)] == [True, False, False]


def test_the_engines_words_are_read_with_their_nanoseconds() -> None:
    state = {"ExitCode": 3, "OOMKilled": False, "StartedAt": "2026-11-22T17:30:23.682235724Z", "FinishedAt": "2026-11-22T17:30:26.688815103Z"}  # fmt: skip
    for text, name in (("", "SIGTERM"), ("SIGINT", "SIGINT"), ("INT", "SIGINT"), ("2", "SIGINT"), ("99", "signal 99")):
        found = Ended.of({"State": state, "Config": {"StopSignal": text}}, engine_lost=False)
        assert found.stop_signal == name
        assert found.seconds == pytest.approx(3.00658)


@pytest.mark.parametrize(
    ("count", "text"), [(64 * MiB, "64 MB"), (1536 * MiB, "1.5 GB"), (10240, "10 KB"), (5, "5 bytes")]
)
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert size(count) == text


def test_each_refusal_of_the_engine_says_whether_trying_again_may_help() -> None:
    absent = 'OCI runtime create failed: runc create failed: unable to start container process: exec: "x": executable file not found in $PATH: unknown'
    missing = refusals.start_refused(EngineRefused(400, absent))
    assert missing.message == 'the container did not start: exec: "x": executable file not found in $PATH'
    assert (missing.reason, missing.error_class, missing.retry) == (Reason.INVALID, "start_failed", False)
    assert refusals.start_refused(EngineRefused(500, "no space left on device")).retry
    assert refusals.create_refused(EngineRefused(400, "bad"), 1).reason is Reason.INVALID
    assert refusals.create_refused(EngineRefused(500, "no space"), 1).retry
    assert refusals.pull_refused("x", EngineRefused(404, "manifest unknown")).error_class == "image_not_found"
    assert refusals.pull_refused("x", EngineRefused(500, "dial tcp: timeout")).error_class == "pull_failed"
    assert refusals.before_start(EngineAway("gone")).error_class == "docker_unavailable"
    assert refusals.while_running(EngineAway("gone")).reason is Reason.UNRESOLVED
    assert refusals.while_running(EngineOverdue("late")).error_class == "docker_unresponsive"


@pytest.mark.parametrize(
    "said",
    [
        f"failed to create task for container: task {'15bec5ac' * 8}: already exists",
        "failed to create task for container: id already in use",
        "failed to create shim task: failed to start shim: mkdir /run/containerd/moby/15bec5ac: file exists: unknown",
    ],
)
def test_a_start_that_meets_what_an_earlier_one_left_does_not_claim_that_nothing_ran(said: str) -> None:
    outcome = refusals.start_refused(EngineRefused(500, said))
    assert outcome.reason is Reason.UNRESOLVED
    assert "died while it started" in outcome.message


def test_a_call_that_broke_may_have_been_done_and_one_that_found_nobody_was_not() -> None:
    engine = DockerEngine.__new__(DockerEngine)
    engine.url = "unix:///nowhere"
    nobody = aiohttp.ClientConnectorError(cast(Any, SimpleNamespace(ssl=None, host="", port=0)), OSError(2, "no"))
    assert not engine._away(nobody).asked
    assert engine._away(aiohttp.ServerDisconnectedError()).asked


# --- the log ---------------------------------------------------------------------------------------------------------


def frame(stream: int, at: int, text: bytes) -> bytes:
    stamped = f"2026-01-01T00:00:00.{at:09}Z ".encode() + text
    return struct.pack(">BxxxL", stream, len(stamped)) + stamped


def reader(saved: dict[str, Any] | None = None) -> tuple[ContainerLog, dict[str, bytearray]]:
    output: dict[str, bytearray] = defaultdict(bytearray)

    def write(text: str | bytes, stream: str) -> None:
        output[stream] += cast(bytes, text)

    engine = cast(DockerEngine, SimpleNamespace())
    return ContainerLog(engine, "name", Context(JOB, write_log=write), saved), output


texts = st.tuples(st.binary(max_size=40), st.sampled_from([b"", b"\n"])).map(b"".join)
messages = st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 5), texts), max_size=30)


@given(messages, st.lists(st.integers(1, 50), max_size=40))
def test_a_log_cut_anywhere_is_put_together_again(sent: list[tuple[int, int, bytes]], cuts: list[int]) -> None:
    data = b"".join(frame(*message) for message in sent)
    log, output = reader()
    at = 0
    for length in cuts:
        log.feed(data[at : at + length])
        at += length
    log.feed(data[at:])
    for number, stream in ((1, "stdout"), (2, "stderr")):
        assert output[stream] == b"".join(text for found, _, text in sent if found == number)


@given(messages, st.integers(0, 30))
def test_a_log_continued_from_any_position_has_no_gap_and_no_repeat(
    sent: list[tuple[int, int, bytes]], split: int
) -> None:
    sent = sorted(sent, key=lambda message: message[1])  # each stream is stamped in its order
    first, _ = reader()
    first.feed(b"".join(frame(*message) for message in sent[:split]))
    second, after = reader(first.position)
    second._skip = dict(second._taken)  # what a new request to the engine does
    second.feed(b"".join(frame(*message) for message in sent))
    for number, stream in ((1, "stdout"), (2, "stderr")):
        stored = [text for found, _, text in sent[:split] if found == number]
        while stored and not stored[-1].endswith(b"\n"):
            stored.pop()  # a line that had not ended was in the first reader's memory only
        assert b"".join(stored) + after[stream] == b"".join(text for found, _, text in sent if found == number)


def test_the_pieces_of_a_line_that_has_not_ended_are_asked_for_however_old_they_are() -> None:
    log, _ = reader()
    log.feed(frame(1, 1, b"whole\n") + frame(1, 2, b"a piece") + frame(2, 999_000_000, b"later\n"))
    successor, _ = reader(log.position)
    assert log._since() == successor._since() == "1767225599.500000000"  # half a second before the piece


def test_the_position_asks_for_a_little_more_than_is_missing() -> None:
    at = {"stdout": ["2026-01-01T00:00:10.250000000Z", 1], "stderr": ["2026-01-01T00:00:01.000000000Z", 3]}
    log, _ = reader({"log_since": at})
    assert log._since() == "1767225609.750000000"
    assert reader()[0]._since() == ""


def test_something_that_is_no_log_is_not_collected_in_memory() -> None:
    with pytest.raises(EngineRefused):
        reader()[0].feed(b"<html>and so on")


# --- files -----------------------------------------------------------------------------------------------------------


def test_what_goes_in_has_the_right_owners_and_modes() -> None:
    spec = Container(
        image="x", secrets={"token": "t"}, files={"/etc/app.conf": "a", "/run.sh": "#!/bin/sh\n"}, output="/out"
    )
    with tarfile.open(fileobj=io.BytesIO(files.pack(spec, {"t": "geheim ä"}, {"job_id": "7"}, (1000, 100)))) as tar:
        found = {entry.name: (oct(entry.mode), entry.uid, entry.gid) for entry in tar}
        secret = tar.extractfile("run/secrets/token")
        assert secret is not None
        assert secret.read().decode() == "geheim ä"
    assert found == {
        "jobq": ("0o755", 0, 0), "jobq/job_details.json": ("0o444", 0, 0), "run/secrets": ("0o755", 0, 0),
        "run/secrets/token": ("0o400", 1000, 100), "etc/app.conf": ("0o600", 1000, 100), "run.sh": ("0o700", 1000, 100),
        "out": ("0o755", 1000, 100),
    }  # fmt: skip


@pytest.mark.parametrize("folder", ["/", "/tmp", "/tmp/"])
def test_a_shared_folder_keeps_its_mode_as_output_folder(folder: str) -> None:
    with tarfile.open(fileobj=io.BytesIO(files.pack(Container(image="x", output=folder), {}, {}, (1, 1)))) as tar:
        assert tar.getnames() == ["jobq", "jobq/job_details.json"]


def output_tar(*entries: tuple[str, bytes, bytes]) -> io.BytesIO:
    """A tar of (name, type, content)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size = kind, "/etc/shadow", len(content)
            tar.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def test_only_regular_files_below_the_output_folder_come_out() -> None:
    tar = output_tar(
        ("out/", tarfile.DIRTYPE, b""), ("out/a", tarfile.REGTYPE, b"1"), ("out/b/c", tarfile.REGTYPE, b"2"),
        ("out/../../etc/passwd", tarfile.REGTYPE, b"3"), ("/abs/x", tarfile.REGTYPE, b"4"), ("out", tarfile.REGTYPE, b"5"),
        ("out/link", tarfile.SYMTYPE, b""), ("out/hard", tarfile.LNKTYPE, b""), ("out/dev", tarfile.CHRTYPE, b""),
    )  # fmt: skip
    assert files.unpack(tar).files == {"a": b"1", "b/c": b"2"}


def test_what_is_too_large_too_much_or_cut_off_is_left_out_and_said() -> None:
    large = files.unpack(output_tar(("o/l", tarfile.REGTYPE, b"x" * (MiB + 1)), ("o/s", tarfile.REGTYPE, b"y")))
    assert (list(large.files), len(large.left_out)) == (["s"], 1)
    many = files.unpack(output_tar(*((f"o/{n}", tarfile.REGTYPE, b"x" * MiB) for n in range(18))))
    assert (len(many.files), len(many.left_out)) == (16, 2)
    tar = output_tar(("o/a", tarfile.REGTYPE, b"x" * 1000), ("o/b", tarfile.REGTYPE, b"y" * 5000)).getvalue()
    cut = files.unpack(io.BytesIO(tar[:4000]))
    assert list(cut.files) == ["a"]
    assert "beyond" in cut.left_out[0]
    assert files.unpack(io.BytesIO(b"")).files == {}


# --- usage -----------------------------------------------------------------------------------------------------------


def test_usage_is_read_from_either_version_of_control_groups(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "memory/docker/abc").mkdir(parents=True)
    (one / "cpuacct/docker/abc").mkdir(parents=True)
    (one / "memory/docker/abc/memory.max_usage_in_bytes").write_text("1000\n")
    (one / "cpuacct/docker/abc/cpuacct.usage").write_text("1500000000\n")
    group = two / "system.slice/docker-abc.scope"
    group.mkdir(parents=True)
    (group / "memory.current").write_text("1000\n")
    (group / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 5\n")
    usages = [Usage("abc", one), Usage("abc", two)]
    for usage in usages:
        usage.look()
        assert usage.figures() == {"memory_bytes": 1000, "cpu_seconds": 1.5}
    (group / "memory.current").write_text("500\n")
    (group / "cpu.stat").unlink()  # the container has just ended
    usages[1].look()
    assert usages[1].figures() == {"memory_bytes": 1000, "cpu_seconds": 1.5}


def test_usage_that_nobody_could_read_is_left_out(tmp_path: Path) -> None:
    usage = Usage("abc", tmp_path)
    usage.look()
    assert usage.figures() == {}
