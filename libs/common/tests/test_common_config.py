"""One YAML < environment < flags; what is unknown or wrong is said in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis_common.config import (
    ConfigError,
    ModelSettings,
    RedisSettings,
    ServiceSettings,
    TierSettings,
    load_settings,
    read_document,
)


class RouterLike(ServiceSettings):
    """Settings of something."""

    section = "router"

    listen: str = "default:1"
    """Where to listen."""
    limit: int = 5
    redis: RedisSettings = RedisSettings()
    tiers: list[TierSettings] = []
    models: list[ModelSettings] = []


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "HYPERFLEXIS_CONFIG",
        "HYPERFLEXIS_ROUTER_LISTEN",
        "HYPERFLEXIS_REDIS__URL",
        "HYPERFLEXIS_ROUTER_LIMIT",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("HYPERFLEXIS_ROUTER_LISTN", "HYPERFLEXIS_ROUTER_LISTEN"),
        ("HYPERFLEXIS_ROUTER_LIMITS", "HYPERFLEXIS_ROUTER_LIMIT"),
        ("hyperflexis_router_lmit", "HYPERFLEXIS_ROUTER_LIMIT"),
        ("HYPERFLEXIS_ROUTER_LISTEN_PORT", "HYPERFLEXIS_ROUTER_LISTEN"),
        ("HYPERFLEXIS_ROUTER_TIER__NAME", "HYPERFLEXIS_ROUTER_TIERS"),
        ("HYPERFLEXIS_REDIS__URLS", "HYPERFLEXIS_REDIS__URL"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, nearest: str) -> None:
    monkeypatch.setenv(name, "5")
    with pytest.raises(ConfigError) as caught:
        load_settings(RouterLike)
    assert str(caught.value) == f"environment variable {name} is no setting; did you mean {nearest}?"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HYPERFLEXIS_FAULTS", "x"),
        ("HYPERFLEXIS_CLOCK_OFFSET_US", "5"),
        ("HYPERFLEXIS_ENGINE_SETTINGS", "{}"),
        ("HYPERFLEXIS_STACK_RUN", "r"),
        ("HYPERFLEXIS_WORKER_TYPO", "another service's, which says so itself"),
        ("HYPERFLEXIS_ROUTER_SERVICE_HOST", "10.0.0.1"),
        ("HYPERFLEXIS_ROUTER_SERVICE_PORT_GRPC", "50051"),
        ("HYPERFLEXIS_ROUTER_PORT", "tcp://10.0.0.1:50051"),
        ("HYPERFLEXIS_ROUTER_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("HYPERFLEXIS_ROUTER_0_SERVICE_PORT", "50051"),
    ],
)
def test_what_only_looks_like_a_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert load_settings(RouterLike).listen == "default:1"


class ScalerLike(ServiceSettings):
    section = "scaler"

    listen: str = ""


@pytest.mark.parametrize("name", ["ACTION_ID", "CELL", "GROUP", "STATE_DIR"])
def test_marks_of_the_scaler_are_no_settings(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"HYPERFLEXIS_SCALER_{name}", "x")
    assert load_settings(ScalerLike).listen == ""


def test_every_field_of_redis_can_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERFLEXIS_REDIS__TIMEOUT_MS", "250")
    assert load_settings(RouterLike).redis == RedisSettings(timeout_ms=250)


def write(path: Path, text: str) -> Path:
    file = path / "hyperflexis.yaml"
    file.write_text(text)
    return file


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "router: {listen: file}\n")
    assert load_settings(RouterLike).listen == "default:1"
    assert load_settings(RouterLike, [], file).listen == "file"
    monkeypatch.setenv("HYPERFLEXIS_ROUTER_LISTEN", "environment")
    assert load_settings(RouterLike, ["--config", str(file)]).listen == "environment"
    assert load_settings(RouterLike, ["--listen", "flag"], file).listen == "flag"


def test_the_file_may_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERFLEXIS_CONFIG", str(write(tmp_path, "router: {limit: 7}\n")))
    assert load_settings(RouterLike).limit == 7


def test_shared_keys_and_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "redis: {url: 'redis://file', prefix: 'p:'}\ntiers: [{name: a, ttft_ms: 1, tpot_ms: 2}]\n")
    monkeypatch.setenv("HYPERFLEXIS_REDIS__URL", "redis://environment")
    settings = load_settings(RouterLike, [], file)
    assert (settings.redis.url, settings.redis.prefix) == ("redis://environment", "p:")
    assert settings.tiers[0].name == "a"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("router: {lisen: x}", "known keys: limit, listen"),
        ("routr: {}", "unknown key 'routr'"),
        ("router: {limit: many}", "router.limit"),
        ("router: []\n", "mapping"),
        ("- a list", "mapping"),
        ("a: [", "not valid YAML"),
        ("tiers: [{name: a, ttft_ms: -1, tpot_ms: 2}]", "greater than 0"),
        ("tiers: [{name: a, ttft_ms: 1, tpot_ms: 2, on_violation: pray}]", "pattern"),
        ("redis: {ur: x}", "redis.ur"),
        ("models: [{name: m, context_length: 1}]", "context_length"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(RouterLike, [], write(tmp_path, text))
    assert part in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_settings(RouterLike, ["--config", str(tmp_path / "none.yaml")])
    with pytest.raises(ConfigError, match="needs a file"):
        load_settings(RouterLike, ["--config"])


def test_unknown_flags_exit_with_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_settings(RouterLike, ["--lisen", "x"])
    assert caught.value.code == 2
    assert "usage: hyperflexis-router" in capsys.readouterr().err


@given(st.binary(max_size=200))
def test_any_bytes_are_a_document_or_a_config_error(data: bytes) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            assert isinstance(read_document(Path(file.name)), dict)
        except ConfigError as error:
            assert file.name in str(error)
