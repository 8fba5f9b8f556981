"""No option that would give a container rights passes, at whatever layer it comes in; and what really runs has none."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from jobq import Container, Forbidden, InvalidInput, JobQ, JobQError, Settings
from jobq.definition import JobRequest
from jobq.manifest import load_file
from jobq.plugins import JobRef
from jobq.settings import Policy
from jobq.specs import MiB
from jobq.states import Reason
from jobq.testing import running
from jobq.validation import parse
from tests import services
from tests.command import Command
from tests.containers import IMAGE, Job, executor_at, inspect, shell
from workers.container.config import create_body

GOOD: dict[str, Any] = {"image": IMAGE, "command": ["true"], "memory": "32MB"}
ESCAPES: dict[str, dict[str, Any]] = {
    "privileged": {"privileged": True},
    "mounts": {"mounts": [{"Type": "bind", "Source": "/", "Target": "/host"}]},
    "binds": {"binds": ["/:/host"]},
    "volumes": {"volumes": {"/": {"bind": "/host"}}},
    "volumes from": {"volumes_from": ["other"]},
    "devices": {"devices": ["/dev/sda"]},
    "graphics": {"device_requests": [{"Count": -1}]},
    "capabilities": {"cap_add": ["SYS_ADMIN"]},
    "seccomp": {"security_opt": ["seccomp=unconfined"]},
    "pid": {"pid_mode": "host"},
    "ipc": {"ipc_mode": "host"},
    "uts": {"uts_mode": "host"},
    "userns": {"userns_mode": "host"},
    "cgroups": {"cgroupns_mode": "host"},
    "cgroup parent": {"cgroup_parent": "/"},
    "sysctls": {"sysctls": {"kernel.core_pattern": "|/x"}},
    "runtime": {"runtime": "other"},
    "groups": {"group_add": ["docker"]},
    "network mode": {"network_mode": "host"},
    "host network": {"network": "host"},
    "another's network": {"network": "container:other"},
    "a namespace's path": {"network": "ns:/proc/1/ns/net"},
    "the engine's word": {"HostConfig": {"Privileged": True}},
    "in capitals": {"Privileged": True},
    "host config": {"host_config": {"Binds": ["/:/host"]}},
    "a variable in a name": {"env": {"A=B": "c"}},
    "NUL in a name": {"env": {"A\x00B": "c"}},
    "no limit of processes": {"pids": -1},
    "no processes": {"pids": 0},
    "no memory": {"memory": 0},
    "less than no memory": {"memory": -1},
    "no cpu": {"cpus": -1},
    "an image with options": {"image": "busybox --privileged"},
    "an image of nobody": {"image": "../../etc"},
    "an image inside": {"image": "127.0.0.1:5000/x"},
    "a secret outside": {"secrets": {"../../etc/passwd": "s"}},
    "a file outside": {"files": {"/a/../../etc/passwd": "x"}},
    "an output outside": {"output": "/../etc"},
}
"""What is added to a good spec."""
IN_A_ROW = {name: more for name, more in ESCAPES.items() if "NUL" not in name}  # PostgreSQL has no NUL, SQLite may


@pytest.fixture
def jobq(sqlite_url: str) -> JobQ:
    return JobQ(settings=Settings(database_url=sqlite_url))


# --- at the door ------------------------------------------------------------------------------------------------------


def test_python_is_refused_and_nothing_is_stored(jobq: JobQ) -> None:
    for more in ESCAPES.values():
        with pytest.raises((InvalidInput, Forbidden)):
            jobq.enqueue({**GOOD, **more}, kind="CONTAINER")
        with pytest.raises((InvalidInput, Forbidden)):
            jobq.create_workflow(kind="CONTAINER", spec={**GOOD, **more}, name="nightly", interval=60)
    assert not jobq.list().items
    jobq.enqueue(GOOD, kind="CONTAINER")


@pytest.mark.parametrize("more", ESCAPES.values(), ids=ESCAPES)
def test_an_instance_that_nobody_validated_is_refused_too(more: dict[str, Any]) -> None:
    """pydantic makes copies and instances without a look at their values."""

    class Lenient(Container):
        def check(self, policy: Policy) -> None:
            """Whatever the operator says."""

    good = Container(**GOOD)
    settings, now = Settings(), datetime.now(UTC)
    forged = [good.model_copy(update=more), Container.model_construct(**{**good.model_dump(), **more}),
              Lenient.model_construct(**{**good.model_dump(), **more})]  # fmt: skip
    for spec in forged:
        try:
            accepted = parse(JobRequest, {"spec": spec, "kind": "CONTAINER"}).checked(settings, now)
        except JobQError:
            continue
        # What no field of the class can hold is not even read.
        assert not more.keys() & Container.model_fields.keys()
        assert accepted.spec == good.model_dump(mode="json")


@pytest.mark.parametrize(
    "name", ["privileged", "binds", "host network", "pid", "a variable in a name", "no limit of processes"]
)
def test_a_manifest_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / "flow.yaml"
    file.write_text(
        json.dumps([{"name": "nightly", "kind": "CONTAINER", "interval": 60, "spec": {**GOOD, **ESCAPES[name]}}])
    )
    with pytest.raises((InvalidInput, Forbidden)):
        load_file(file, Settings())


def test_the_command_line_has_no_such_option_and_refuses_such_values(tmp_path: Path, sqlite_url: str) -> None:
    command = Command(tmp_path, is_warm=True, JOBQ_DATABASE_URL=sqlite_url)
    for option in ("--privileged", "--volume=/:/host"):
        command.refused("usage", "enqueue", "container", option, IMAGE)
    command.refused("forbidden_option", "enqueue", "container", "--network", "container:x", IMAGE)
    command.refused("invalid_resources", "enqueue", "container", "--pids", "-5", IMAGE)


# --- in the database --------------------------------------------------------------------------------------------------


def test_a_row_that_was_forged_after_its_acceptance_never_reaches_the_engine(docker_engine: services.Docker) -> None:
    """Whoever can write to the database: the worker judges each spec as if it had just come."""
    with running(Settings(docker_host=docker_engine.url), queues={"container": 4}) as jobq:
        jobq.queues.pause("container")
        jobs = {name: jobq.enqueue(GOOD, kind="CONTAINER").id for name in [*IN_A_ROW, "timeout", "for ever", "good"]}
        table = sa.table("jobq_jobs", sa.column("id", sa.Uuid()), sa.column("timeout"))
        with jobq.database.begin() as conn:
            for name, more in IN_A_ROW.items():
                forge_spec(conn, jobs[name], {**GOOD, "env": {}, **more})
            for name, timeout in (("timeout", 1e9), ("for ever", None)):
                conn.execute(sa.update(table).where(table.c.id == jobs[name]).values(timeout=timeout))
        jobq.queues.resume("container")
        ended = {name: jobq.wait(job_id, timeout=60) for name, job_id in jobs.items()}
    assert ended.pop("good").reason is Reason.SUCCEEDED
    assert {name: job.reason for name, job in ended.items()} == dict.fromkeys(ended, Reason.INVALID)


def forge_spec(conn: Any, job_id: Any, spec: dict[str, Any]) -> None:
    data = sa.table("jobq_job_data", sa.column("job_id", sa.Uuid()), sa.column("spec", sa.JSON()))
    done = conn.execute(sa.update(data).where(data.c.job_id == job_id).values(spec=spec))
    assert done.rowcount == 1


# --- what is asked of the engine --------------------------------------------------------------------------------------

BODY = {
    "Image",
    "User",
    "Env",
    "Labels",
    "NetworkDisabled",
    "Healthcheck",
    "HostConfig",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
}
HOST_CONFIG = {
    "Memory", "MemorySwap", "NanoCpus", "PidsLimit", "CapDrop", "SecurityOpt", "Init", "IpcMode", "NetworkMode",
    "ReadonlyRootfs", "AutoRemove", "RestartPolicy", "LogConfig",
}  # fmt: skip
texts = st.text(max_size=30) | st.sampled_from(
    ["/", "/host", "host", "ALL", "container:x", "none", "jobs", "a=b", "busybox", "x\x00"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 2**33) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
options = sorted({option for more in ESCAPES.values() for option in more} - {"image"})
fields: dict[str, st.SearchStrategy[Any]] = {
    "env": st.dictionaries(texts, texts, max_size=3), "command": st.lists(texts, max_size=3), "entrypoint": st.lists(texts, max_size=3),
    "user": texts, "working_dir": texts, "network": texts, "pids": st.integers(-5, 5000), "cpus": st.floats(0, 600),
    "memory": st.integers(0, 2**40), "secrets": st.dictionaries(texts, texts, max_size=2), "files": st.dictionaries(texts, texts, max_size=2),
    "output": texts, "pull": st.sampled_from(["missing", "always", "never"]),
}  # fmt: skip
plausible = st.fixed_dictionaries({"image": st.just("busybox")}, optional=fields)
documents = plausible | st.fixed_dictionaries(
    {"image": st.sampled_from(["busybox", "a/b:1"]) | values},
    optional={**{name: each | values for name, each in fields.items()}, **dict.fromkeys(options, values)},
)
JOB = JobRef(uuid4(), 1, "acme", "CONTAINER", "nightly", "container", "MANUAL", 30.0)


@given(documents)
def test_whatever_a_spec_says_the_engine_is_asked_for_nothing_outside_of_the_whitelist(
    document: dict[str, Any],
) -> None:
    policy = Policy(networks=["jobs"])
    try:
        spec = parse(Container, document, "/spec")
        spec.check(policy)
    except (InvalidInput, Forbidden):
        return
    body = create_body(spec, JOB, env_id="e", worker_id="w", now=datetime.now(UTC), max_log_bytes=MiB)
    host = body["HostConfig"]
    assert body.keys() <= BODY
    assert host.keys() == HOST_CONFIG
    assert (host["CapDrop"], host["SecurityOpt"], host["IpcMode"]) == (["ALL"], ["no-new-privileges"], "private")
    assert host["NetworkMode"] in {"none", "jobs"}
    assert host["Memory"] == host["MemorySwap"] >= 6 * MiB
    assert 0 < host["PidsLimit"] <= 4096
    assert host["NanoCpus"] > 0
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["LogConfig"]["Type"] == "json-file"
    names = [entry.partition("=")[0] for entry in body["Env"]]
    assert len(names) == len(set(names))
    assert not [entry for entry in body["Env"] if "\x00" in entry]


# --- what really runs -------------------------------------------------------------------------------------------------

LOOK = """
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Uid):' /proc/self/status
awk '{print "mount " $2 " " $3}' /proc/mounts
ls /sys/class/net | sed 's/^/link /'
ls -d /proc/[0-9]* | wc -l | sed 's/^/processes /'
hostname | sed 's/^/host /'
test -e /var/run/docker.sock && echo socket
mknod /tmp/sda b 8 0 2>/dev/null && echo device
mount -t tmpfs none /tmp 2>/dev/null && echo mounted
chroot / true 2>/dev/null && echo chrooted
sleep 1
"""


@pytest.mark.parametrize("user", ["65534:65534", "0:0"])
async def test_a_container_that_really_runs_has_no_rights(user: str, docker_engine: services.Docker) -> None:
    job = Job()
    found: dict[str, Any] = {}
    async with executor_at(docker_engine.url) as executor:

        def look(text: str | bytes, stream: str) -> None:
            if not found and stream == "stdout":
                found.update(inspect(docker_engine, job.name))
            Job._log(job, text, stream)

        job.ctx.write_log = look
        outcome = await executor.execute(shell(LOOK, user=user, memory=32 * MiB, cpus=0.5, pids=20), job.ctx)
    assert outcome.exit_code == 0, (outcome, job.stderr)

    told = job.stdout.splitlines()
    status = dict(re.split(r":\s+", line, maxsplit=1) for line in told if ":\t" in line)
    assert {name for name, value in status.items() if name.startswith("Cap") and int(value, 16)} == set()
    assert status["NoNewPrivs"] == "1"
    mounts = [line.split()[1:] for line in told if line.startswith("mount ")]
    assert {kind for _, kind in mounts} <= {"overlay", "vfs", "ext4", "xfs", "btrfs", "proc", "sysfs", "tmpfs", "devpts", "mqueue",
                                            "cgroup", "cgroup2", "shm"}  # fmt: skip
    assert not [where for where, _ in mounts if where.startswith(("/host", "/var/run", "/root", "/home"))]
    assert [line for line in told if line.startswith("link ")] == ["link lo"]
    assert int(next(line for line in told if line.startswith("processes")).split()[1]) < 12
    assert not {"socket", "device", "mounted", "chrooted"} & set(told)

    host = found["HostConfig"]
    assert found["Mounts"] == []
    assert not any(host.get(name) for name in ("Privileged", "Binds", "Devices", "CapAdd", "PidMode", "UTSMode", "UsernsMode",
                                               "VolumesFrom", "Sysctls", "GroupAdd", "DeviceRequests"))  # fmt: skip
    assert (host["NetworkMode"], host["IpcMode"], host["CapDrop"]) == ("none", "private", ["ALL"])
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"], host["PidsLimit"]) == (
        32 * MiB,
        32 * MiB,
        5 * 10**8,
        20,
    )
