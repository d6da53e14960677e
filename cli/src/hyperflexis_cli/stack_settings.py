"""What a local stack consists of: the YAML's `stack` section, and the document each process reads.

The one YAML is completed once per process: its section gets the address that the process listens on, all get the
schedulers' addresses and Redis, and the scaler gets a group of workers per model where none is configured.
"""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from hyperflexis_common.config import ConfigError, Section

Document = dict[str, Any]

DEFAULT_ROUTER = "127.0.0.1:50051"
SAMPLE_MODEL = Path("models/tiny")

BUILT_IN: Document = {
    "models": [{"name": "tiny", "context_length": 2_048, "vocab_size": 2_048}],
    "tiers": [
        {"name": "chat", "ttft_ms": 500, "tpot_ms": 50, "weight": 2, "on_violation": "downgrade:patient"},
        {"name": "code", "ttft_ms": 500, "tpot_ms": 30, "on_violation": "refuse"},
        {"name": "summarise", "ttft_ms": 15_000, "tpot_ms": 100},
        {"name": "patient", "ttft_ms": 10_000, "tpot_ms": 100, "weight": 0.1, "on_violation": "refuse"},
    ],
    "default_tier": "chat",
}
"""The stack without a YAML: the small sample model, and tiers with the objectives that MLPerf Inference's
interactive scenarios (chat), DistServe and QoServe (code, summaries) use. A person who chats rather waits than gets
nothing (patient, which weighs little: who is late already delays nobody who is not); a completion that comes late is
of no use; a summary is worth waiting for."""


class StackSettings(Section):
    """The `stack` section: how many of what `hyperflexis up` runs on this machine."""

    routers: int = Field(default=1, ge=1, le=16)
    """The first listens on router.listen, the others on free ports."""
    schedulers: int = Field(default=2, ge=1, le=8)
    """One leads, the others stand by."""
    workers: int = Field(default=2, ge=0, le=256)
    """Per model, started by the scaler. Without effect where scaler.groups is configured."""
    engine: Literal["embedded", "modelled"] = "embedded"
    """embedded = the model itself, with torch; modelled = no torch, only as long as it would take."""
    redis: str = "local"
    """local = a redis-server of its own on a free port; else the URL of one that runs."""
    start_timeout_s: float = Field(default=60, gt=0)
    """For one process to be ready."""


def stack_settings(document: Mapping[str, Any], **overrides: Any) -> StackSettings:
    """The section with what is not None of the overrides. Raises ConfigError."""
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return StackSettings(**{**(document.get("stack") or {}), **given})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = f"; known keys: {', '.join(StackSettings.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"stack.{where}: {first['msg']}{known}") from error


def built_in_document(engine: str = "embedded", sample_model: Path = SAMPLE_MODEL) -> Document:
    """BUILT_IN, with the sample model's directory where there is one."""
    document = copy.deepcopy(BUILT_IN)
    if engine == "embedded":
        # On CPU cores a prefill chunk takes as long as its tokens: short ones let the decodes beside them keep pace.
        document["worker"] = {"max_num_tokens": 128}
    if (sample_model / "config.json").exists():
        document["models"][0]["path"] = str(sample_model.resolve())
    return document


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where each process of a run listens."""

    redis_url: str
    schedulers: tuple[str, ...]
    scaler: str
    routers: tuple[str, ...]

    @classmethod
    def choose(cls, document: Mapping[str, Any], settings: StackSettings, free_router_port: bool = False) -> Addresses:
        """Free ports for all but the first router, whose address the YAML fixes unless `free_router_port`."""
        fixed = (document.get("router") or {}).get("listen", DEFAULT_ROUTER)
        ports = free_ports(settings.schedulers + settings.routers + 2)
        local = [f"127.0.0.1:{port}" for port in ports]
        routers = local[settings.schedulers : settings.schedulers + settings.routers]
        if not free_router_port:
            routers[0] = fixed
        redis_url = f"redis://{local[-1]}/0" if settings.redis == "local" else settings.redis
        return cls(redis_url, tuple(local[: settings.schedulers]), local[-2], tuple(routers))


def documents(
    document: Mapping[str, Any], settings: StackSettings, addresses: Addresses, run_dir: Path
) -> dict[str, Document]:
    """The document of each process, by the process's name."""
    shared: Document = {key: copy.deepcopy(value) for key, value in document.items() if key != "stack"}
    shared["redis"] = {**(shared.get("redis") or {}), "url": addresses.redis_url}
    for section in ("router", "worker", "scaler"):
        shared[section] = {**(shared.get(section) or {}), "schedulers": list(addresses.schedulers)}
    shared["scaler"] = {
        "groups": _groups(shared, settings),
        **shared["scaler"],
        "state_dir": str(run_dir / "scaler"),
        "log_dir": str(run_dir / "workers"),
    }
    resolved = {f"scheduler-{i}": _listening(shared, "scheduler", at) for i, at in enumerate(addresses.schedulers)}
    resolved["scaler"] = _listening(shared, "scaler", addresses.scaler)
    resolved |= {f"router-{i}": _listening(shared, "router", at) for i, at in enumerate(addresses.routers)}
    return resolved


def _listening(shared: Document, section: str, address: str) -> Document:
    return {**shared, section: {**(shared.get(section) or {}), "listen": address}}


def _groups(document: Document, settings: StackSettings) -> list[Document]:
    """One group of workers per model; the cores are shared out between them."""
    models = document.get("models") or []
    if not models:
        raise ConfigError("models: the stack needs at least one model, such as {name: tiny, path: models/tiny}")
    threads = max(1, (os.cpu_count() or 1) // max(1, settings.workers * len(models)))
    return [
        {
            "name": _group_name(str(model["name"])),
            "model": model["name"],
            "target": settings.workers,
            "max": 2 * settings.workers,
            "args": ["--engine", settings.engine],
            "env": {"OMP_NUM_THREADS": str(threads)},
        }
        for model in models
    ]


def _group_name(model: str) -> str:
    """Small letters, digits and dashes, as the scaler wants them."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in model.lower())
    return plain[:40].strip("-") or "model"


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def port_in_use(address: str) -> bool:
    """Somebody listens on host:port already."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host or "127.0.0.1", int(port)))
        except OSError:
            return True
    return False
