"""Configuration: one YAML for the whole stack < environment < flags. Unknown keys are errors.

The YAML has a section per service (`router`, `scheduler`, `worker`, `scaler`), `stack` for `hyperflexis up`,
and what they share at the top: `redis`, `models`, `tiers`, `default_tier`. A service's settings class names
its section and reads, of the shared keys, those it has fields for. Environment: HYPERFLEXIS_<SECTION>_<FIELD>
for the service's own fields, HYPERFLEXIS_REDIS__<FIELD> and HYPERFLEXIS_DEFAULT_TIER for shared ones. Flags:
--field-name.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

SHARED_KEYS = ("redis", "models", "tiers", "default_tier")
SECTIONS = ("router", "scheduler", "worker", "scaler", "stack")
CONFIG_VARIABLE = "HYPERFLEXIS_CONFIG"
REDIS_PREFIX = "HYPERFLEXIS_REDIS__"
MARKS = frozenset(f"HYPERFLEXIS_SCALER_{name}" for name in ("ACTION_ID", "CELL", "GROUP", "STATE_DIR")) | {
    "HYPERFLEXIS_STACK_RUN"
}
"""By these the scaler and `hyperflexis up` know their processes again; they look like settings and are none."""
SERVICE_LINK = re.compile(r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
SERVICE_LINK_URL = re.compile(r"(tcp|udp|sctp)://")
"""Kubernetes tells every container of a Service named hyperflexis-worker, say, in variables of these names; that
called HYPERFLEXIS_WORKER_PORT is known by its value."""


class ConfigError(Exception):
    """The configuration cannot be used; the message says which key and what to write instead."""


class Section(BaseModel):
    """A nested group of settings: frozen, unknown keys refused, help from attribute docstrings."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RedisSettings(Section):
    url: str = "redis://127.0.0.1:6379/0"
    """Where the shared request state lives."""
    timeout_ms: int = Field(default=100, ge=10, le=10_000)
    """Limit for one round trip. Redis being slow must not make requests slow."""
    prefix: str = "hfx:"
    """Before every key, so that cells or tests can share one Redis."""


LONGEST_MS = 86_400_000.0
"""A day: of promises."""


class TierSettings(Section):
    name: str = Field(min_length=1)
    """As clients write it."""
    ttft_ms: float = Field(gt=0, le=LONGEST_MS)
    """Time to first token promised."""
    tpot_ms: float = Field(gt=0, le=LONGEST_MS)
    """Mean time per output token promised."""
    max_gap_ms: float | None = Field(default=None, gt=0, le=LONGEST_MS)
    """Longest pause between tokens; default max(4 * tpot_ms, 250)."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Relative worth of one attained request."""
    guarantee: float = Field(default=0.0, ge=0, le=1)
    """Of the tier's requests, the share that workers try to serve in time, at the expense of other dear ones; 0 =
    none. What cannot be kept drags nobody down: it pulls up to a bound."""
    on_violation: str = Field(default="best_effort", pattern=r"^(best_effort|refuse|downgrade:.+)$")
    """When the promise cannot be kept: best_effort, refuse, or downgrade:<tier>."""


class ModelSettings(Section):
    name: str
    """As clients write it."""
    path: Path | None = None
    """Directory with config.json, safetensors and tokenizer.json (embedded engine, router's tokenizer), or the id of a
    repository of the Hugging Face hub, as owner/name."""
    context_length: int = Field(default=8_192, ge=2)
    """Prompt plus output tokens at most."""
    vocab_size: int = Field(default=32_000, ge=2)
    """Token ids are below this."""


class ServiceSettings(BaseSettings):
    """Base of each service's settings. Subclasses set `section`."""

    section: ClassVar[str] = ""
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, env_nested_delimiter="__"
    )

    _document: ClassVar[dict[str, Any]] = {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, _Document(settings_cls))


class _Document(PydanticBaseSettingsSource):
    """The service's part of the YAML."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        cls = self.settings_cls
        assert issubclass(cls, ServiceSettings)
        document = cls._document
        values: dict[str, Any] = dict(document.get(cls.section) or {})
        for key in SHARED_KEYS:
            if key in cls.model_fields and key in document:
                values[key] = document[key]
        return values


def read_document(path: Path) -> dict[str, Any]:
    """Parses the YAML and checks its top-level keys. Raises ConfigError."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, not a {type(document).__name__}")
    unknown = [key for key in document if key not in SHARED_KEYS + SECTIONS]
    if unknown:
        known = ", ".join(SHARED_KEYS + SECTIONS)
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; known keys: {known}")
    for section in SECTIONS:
        if not isinstance(document.get(section, {}), dict | types.NoneType):
            raise ConfigError(f"{path}: {section} must be a mapping")
    return document


Settings = TypeVar("Settings", bound=ServiceSettings)


def load_settings(cls: type[Settings], argv: list[str] | None = None, config: Path | None = None) -> Settings:
    """Settings of one service from file, environment and flags. Raises ConfigError; --help exits.

    `argv` defaults to no flags. The file comes from `config`, else --config, else HYPERFLEXIS_CONFIG.
    """
    arguments = list(argv or [])
    if "--config" in arguments:
        at = arguments.index("--config")
        if at + 1 >= len(arguments):
            raise ConfigError("--config needs a file")
        config = Path(arguments[at + 1])
        del arguments[at : at + 2]
    if config is None and os.environ.get(CONFIG_VARIABLE):
        config = Path(os.environ[CONFIG_VARIABLE])
    document = read_document(config) if config else {}
    prefix = f"HYPERFLEXIS_{cls.section.upper()}_"
    bound = type(cls.__name__, (cls,), {"_document": document, "__doc__": cls.__doc__, "__module__": cls.__module__})
    try:
        settings: Settings = bound(
            _env_prefix=prefix,
            _cli_parse_args=arguments,
            _cli_prog_name=f"hyperflexis-{cls.section}",
            _cli_kebab_case=True,
            **_shared_environment(cls, document),
        )
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        hint = f"; known keys: {', '.join(sorted(cls.model_fields))}" if first["type"] == "extra_forbidden" else ""
        raise ConfigError(f"{cls.section}.{where}: {first['msg']}{hint}") from error
    _refuse_unknown(prefix, cls.model_fields)
    if "redis" in cls.model_fields:
        _refuse_unknown(REDIS_PREFIX, RedisSettings.model_fields)
    return settings


def _refuse_unknown(prefix: str, fields: Iterable[str]) -> None:
    """A variable that is no setting is a slip of the pen: what it was to set would silently stay as it is."""
    known = {prefix + field.upper() for field in fields}
    for name, value in os.environ.items():
        start, rest = name.upper()[: len(prefix)], name.upper()[len(prefix) :]
        if start != prefix or prefix + rest.partition("__")[0] in known or name in MARKS:
            continue
        if SERVICE_LINK.fullmatch(rest) or (rest.endswith("PORT") and SERVICE_LINK_URL.match(value)):
            continue
        [nearest] = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.0)
        raise ConfigError(f"environment variable {name} is no setting; did you mean {nearest}?")


def _shared_environment(cls: type[ServiceSettings], document: dict[str, Any]) -> dict[str, Any]:
    """HYPERFLEXIS_REDIS__<FIELD> and HYPERFLEXIS_DEFAULT_TIER, for classes with those fields."""
    values: dict[str, Any] = {}
    if "redis" in cls.model_fields:
        named = {field: os.environ.get(REDIS_PREFIX + field.upper()) for field in RedisSettings.model_fields}
        told = {field: value for field, value in named.items() if value is not None}
        if told:
            values["redis"] = {**(document.get("redis") or {}), **told}
    if "default_tier" in cls.model_fields and "HYPERFLEXIS_DEFAULT_TIER" in os.environ:
        values["default_tier"] = os.environ["HYPERFLEXIS_DEFAULT_TIER"]
    return values


def exit_with(error: ConfigError) -> None:
    """What every service's __main__ does with a ConfigError: one line, exit status 2."""
    print(f"configuration error: {error}", file=sys.stderr)
    raise SystemExit(2)
