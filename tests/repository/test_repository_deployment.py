"""Images and the compose stack name only files, settings, ports and peers that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyperflexis_common.config import ServiceSettings, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy/compose/compose.yaml"
STACK = ROOT / "deploy/compose/hyperflexis.yaml"
SERVICES = ["router", "scheduler", "worker", "scaler"]

SHARED_VARIABLES = {"HYPERFLEXIS_CONFIG", "HYPERFLEXIS_REDIS__URL", "HYPERFLEXIS_DEFAULT_TIER"}
VARIABLE = re.compile(r"\bHYPERFLEXIS_[A-Z_]+")
COPY = re.compile(r"^COPY (?!--from)(.+)$", re.MULTILINE)
SUBSTITUTION = re.compile(r"\$\{[A-Z_]+:?-?[^}]*\}")


def settings_class(service: str) -> type[ServiceSettings]:
    module = importlib.import_module(f"hyperflexis_{service}.config")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceSettings) and value.section == service
    ]
    assert len(found) == 1, f"hyperflexis_{service}.config must hold one ServiceSettings"
    return found[0]


def default_port(service: str) -> int:
    return int(str(settings_class(service).model_fields["listen"].default).rpartition(":")[2])


def dockerfile(service: str) -> str:
    return (ROOT / "services" / service / "Dockerfile").read_text(encoding="utf-8")


def known_variable(name: str) -> bool:
    """HYPERFLEXIS_<SECTION>_<FIELD> of a field that exists, or a shared one."""
    if name in SHARED_VARIABLES:
        return True
    section, _, field = name.removeprefix("HYPERFLEXIS_").lower().partition("_")
    return section in SERVICES and field.partition("__")[0] in settings_class(section).model_fields


def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    return document


def containers_of(service: str) -> dict[str, dict[str, Any]]:
    """The compose services that run one of our four, by container name."""
    return {
        name: body
        for name, body in compose()["services"].items()
        if body["image"].startswith(f"hyperflexis-{service}:") and "entrypoint" not in body
    }


CONTAINERS = [(service, name) for service in SERVICES for name in containers_of(service)]


def loaded(service: str, container: str, monkeypatch: pytest.MonkeyPatch) -> ServiceSettings:
    """What the service reads inside its container: the image's variables, the container's, the mounted YAML."""
    for name, value in re.findall(r"(HYPERFLEXIS_[A-Z_]+)=(\S+)", dockerfile(service)):
        monkeypatch.setenv(name, value)
    for name, value in containers_of(service)[container]["environment"].items():
        monkeypatch.setenv(name, value)
    return load_settings(settings_class(service), [], STACK)


@pytest.mark.parametrize("service", SERVICES)
def test_what_an_image_copies_exists(service: str) -> None:
    copied = [line.split()[:-1] for line in COPY.findall(dockerfile(service))]
    assert copied
    missing = [source for sources in copied for source in sources if not (ROOT / source).exists()]
    assert not missing


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_exposes_the_port_it_listens_on(service: str) -> None:
    port = default_port(service)
    assert f"\nEXPOSE {port}\n" in dockerfile(service)
    assert f"HYPERFLEXIS_{service.upper()}_LISTEN=0.0.0.0:{port}" in dockerfile(service)


@pytest.mark.parametrize("path", [COMPOSE, *[ROOT / f"services/{name}/Dockerfile" for name in SERVICES]], ids=str)
def test_every_variable_is_a_setting(path: Path) -> None:
    text = SUBSTITUTION.sub("", path.read_text(encoding="utf-8"))
    names = set(VARIABLE.findall(text))
    assert names
    assert not [name for name in names if not known_variable(name)]


def test_an_unknown_variable_would_be_found() -> None:
    assert known_variable("HYPERFLEXIS_WORKER_NUM_BLOCKS")
    assert not known_variable("HYPERFLEXIS_WORKER_NUM_BLOX")
    assert not known_variable("HYPERFLEXIS_NOBODY_LISTEN")


def test_the_stack_has_every_service_and_a_standby() -> None:
    assert {service: len(containers_of(service)) for service in SERVICES} == {
        "router": 1,
        "scheduler": 2,
        "worker": 2,
        "scaler": 1,
    }


def test_each_image_is_built_once() -> None:
    built = [body["build"]["dockerfile"] for body in compose()["services"].values() if "build" in body]
    assert sorted(built) == sorted(f"services/{service}/Dockerfile" for service in SERVICES)


@pytest.mark.parametrize(("service", "container"), CONTAINERS)
def test_a_container_can_be_reached_where_it_says(
    service: str, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = loaded(service, container, monkeypatch).model_dump()
    assert settings["listen"] == f"0.0.0.0:{default_port(service)}"
    assert settings["advertise"] == f"{container}:{default_port(service)}"
    if "schedulers" in settings:
        assert settings["schedulers"] == [f"{name}:{default_port('scheduler')}" for name in containers_of("scheduler")]
    if "redis" in settings:
        assert settings["redis"]["url"].startswith("redis://redis:")


def test_only_the_front_door_is_published_and_only_here() -> None:
    published = {name: body["ports"] for name, body in compose()["services"].items() if "ports" in body}
    assert list(published) == ["router"]
    assert all(str(port).startswith("127.0.0.1:") for port in published["router"])
