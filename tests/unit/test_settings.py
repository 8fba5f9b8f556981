"""Settings: flags, then the environment, then the file, then defaults; and nothing secret is ever shown."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from jobq.errors import Misconfigured
from jobq.settings import EMBEDDED, Policy, Settings, mask_url


@pytest.fixture(autouse=True)
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of settings of a user who has set nothing else; it need not exist."""
    import os

    for name in [name for name in os.environ if name.startswith("JOBQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    path = tmp_path / "config" / "jobq" / "jobq.toml"
    path.parent.mkdir(parents=True)
    return path


# --- precedence ------------------------------------------------------------------------------------------------------


def test_a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    seen = [Settings().env_id]
    file.write_text('env_id = "file"')
    seen.append(Settings().env_id)
    monkeypatch.setenv("JOBQ_ENV_ID", "environment")
    seen.append(Settings().env_id)
    seen.append(Settings(env_id="flag").env_id)
    assert seen == ["default", "file", "environment", "flag"]


def test_the_sources_are_merged_setting_by_setting(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text('env_id = "file"\ntenant = "file"\nlease = 60\n')
    monkeypatch.setenv("JOBQ_TENANT", "environment")
    settings = Settings(lease=timedelta(seconds=90))
    assert (settings.env_id, settings.tenant, settings.lease) == ("file", "environment", timedelta(seconds=90))
    assert settings.renew_every == timedelta(seconds=4)


def test_parts_of_the_policy_come_from_several_sources(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    file.write_text('[policy]\nimages = ["registry/*"]\nmax_pids = 7\n')
    monkeypatch.setenv("JOBQ_POLICY__MAX_PIDS", "9")
    assert Settings().policy == Policy(images=["registry/*"], max_pids=9)


def test_a_file_of_another_place_is_named_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('env_id = "other"')
    monkeypatch.setenv("JOBQ_CONFIG", str(other))
    assert Settings.load().env_id == "other"


# --- defaults --------------------------------------------------------------------------------------------------------


def test_without_any_setting_everything_is_local_and_embedded(tmp_path: Path) -> None:
    settings = Settings()
    assert settings.database_url == f"sqlite:///{tmp_path}/data/jobq/jobq.db"
    assert settings.broker_url == EMBEDDED
    assert settings.docker_host == "unix:///var/run/docker.sock"
    assert (settings.lease, settings.renew_every) == (timedelta(seconds=30), timedelta(seconds=4))
    assert settings.stop_grace == timedelta(seconds=2)
    assert settings.policy.max_container_timeout == timedelta(hours=1)


def test_the_docker_host_of_the_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://engine:2375")
    assert Settings().docker_host == "tcp://engine:2375"
    monkeypatch.setenv("JOBQ_DOCKER_HOST", "tcp://mine:2375")
    assert Settings().docker_host == "tcp://mine:2375"


# --- forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "seconds"), [("45", 45), ("1.5", 1.5), ("PT2M", 120), ("P1D", 86_400)])
def test_durations_are_seconds_or_iso_8601(monkeypatch: pytest.MonkeyPatch, text: str, seconds: float) -> None:
    monkeypatch.setenv("JOBQ_LEASE", text)
    assert Settings.load().lease.total_seconds() == seconds


def test_lists_are_json_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_PLUGINS", '["a.b:C", "d:E"]')
    assert Settings.load().plugins == ["a.b:C", "d:E"]


def test_a_level_of_logging_may_be_written_in_small_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_LOG_LEVEL", "debug")
    assert Settings.load().log_level == "DEBUG"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("JOBQ_LEASE", "soon"),
        ("JOBQ_LEASE", "P1M"),
        ("JOBQ_HINTS_PER_MESSAGE", "0"),
        ("JOBQ_HINTS_PER_MESSAGE", "1001"),
        ("JOBQ_LOG_LEVEL", "LOUD"),
        ("JOBQ_MAX_LOG_BYTES", "much"),
        ("JOBQ_POLICY__MAX_PIDS", "many"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Misconfigured) as refused:
        Settings.load()
    assert refused.value.code == "bad_setting"
    assert name in refused.value.message


def test_a_list_that_is_no_json_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_PLUGINS", "a.b:C")
    with pytest.raises(Misconfigured) as refused:
        Settings.load()
    assert refused.value.hint is not None
    assert "JSON" in refused.value.hint


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    file.write_text("env_id = ")
    with pytest.raises(Misconfigured, match=r"jobq\.toml"):
        Settings.load()


def test_a_file_that_is_asked_for_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JOBQ_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(Misconfigured) as refused:
        Settings.load()
    assert "none.toml" in str(refused.value)


def test_no_wrong_value_of_a_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBQ_SECRET_KEY", "hunter2")
    monkeypatch.setenv("JOBQ_LEASE", "soon")
    with pytest.raises(Misconfigured) as refused:
        Settings.load()
    assert "hunter2" not in str(refused.value)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_no_secret_is_shown() -> None:
    settings = Settings(
        database_url="postgresql://jobq:hunter2@db/jobq",
        broker_url="redis://:hunter2@redis:6379/0",
        docker_host="tcp://user:hunter2@engine:2375",
        secret_key="hunter2-hunter2-hunter2-hunter2!!",
    )
    shown = settings.masked()
    assert "hunter2" not in json.dumps(shown)
    assert "hunter2" not in repr(settings.secret_key)
    assert shown["database_url"] == "postgresql://jobq:***@db/jobq"
    assert shown["secret_key"] == "***"


def test_a_secret_that_is_not_set_is_shown_as_such() -> None:
    assert Settings().masked()["secret_key"] != "***"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://user:pw@host/db", "postgresql://user:***@host/db"),
        ("postgresql://user:p@w:x@host/db", "postgresql://user:***@host/db"),
        ("postgresql://host/db?user=u&password=pw&sslmode=require",
         "postgresql://host/db?user=u&password=***&sslmode=require"),
        ("redis://:pw@host:6379/0", "redis://:***@host:6379/0"),
        ("amqp://guest:guest@host//", "amqp://guest:***@host//"),
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("sqlite:////var/lib/jobq.db", "sqlite:////var/lib/jobq.db"),
        ("sqlite:////home/a@b/jobq.db", "sqlite:////home/a@b/jobq.db"),
        ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
        ("memory://", "memory://"),
        ("nonsense", "nonsense"),
    ],
)  # fmt: skip
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert mask_url(url) == shown


# --- the operator's policy -------------------------------------------------------------------------------------------


def test_images_are_allowed_by_shell_patterns() -> None:
    policy = Policy(images=["registry.example/team/*", "busybox:1.36"])
    assert policy.allows_image("registry.example/team/app:1")
    assert policy.allows_image("busybox:1.36")
    assert not policy.allows_image("busybox:1.37")
    assert not policy.allows_image("registry.example/other/app")
    assert not policy.allows_image("REGISTRY.example/team/app")


@pytest.mark.parametrize(
    ("network", "forbidden"),
    [(None, False), ("none", False), ("jobs", False), ("other", True), ("host", True), ("container:x", True)],
)
def test_networks_are_those_that_the_operator_listed(network: str | None, *, forbidden: bool) -> None:
    assert Policy(networks=["jobs"]).network_modes_forbidden(network) is forbidden


def test_the_network_of_the_host_is_never_allowed() -> None:
    assert Policy(networks=["host", "container:x"]).network_modes_forbidden("host")
    assert Policy(networks=["host", "container:x"]).network_modes_forbidden("container:x")
