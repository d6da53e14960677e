"""The router's settings."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

from pydantic import Field

from hyperflexis_common.config import ConfigError, ModelSettings, RedisSettings, Section, ServiceSettings, TierSettings
from hyperflexis_common.promise import slo_of
from hyperflexis_router.core.catalog import BUILT_IN_TIERS, Catalog, ModelSpec, RequestLimits


class ApiKeySettings(Section):
    key_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hex SHA-256 of the key; the key itself is nowhere."""
    tenant: str = Field(min_length=1, max_length=128)
    """Whose requests these are."""


class RouterSettings(ServiceSettings):
    section: ClassVar[str] = "router"

    listen: str = "127.0.0.1:50051"
    """host:port to serve on; port 0 takes a free one."""
    advertise: str = ""
    """The address others dial, where it is not the one listened on."""
    router_id: str = ""
    """Name of this replica; empty = drawn at start."""
    schedulers: list[str] = ["127.0.0.1:50052"]
    """Every scheduler of the cell; the one that leads is found."""
    redis: RedisSettings = RedisSettings()
    models: list[ModelSettings] = []
    """What is served; requests for other models are answered NOT_FOUND."""
    tiers: list[TierSettings] = []
    """Empty = the built-in tiers chat, code, math, summarise."""
    default_tier: str = ""
    """Empty = the first tier."""
    api_keys: list[ApiKeySettings] = []
    """Empty = open to all, as tenant "default"."""
    max_in_flight: int = Field(default=4_096, ge=1)
    """Requests held at once; beyond it new ones are answered RESOURCE_EXHAUSTED."""
    max_in_flight_per_tenant: int = Field(default=4_096, ge=1)
    """The same, for one tenant."""
    max_prompt_bytes: int = Field(default=4 * 2**20, ge=1, le=15 * 2**20)
    """Largest prompt, as text or packed ids."""
    default_max_tokens: int = Field(default=1_024, ge=1)
    """Output tokens at most where a request does not say."""
    tokenizer_threads: int = Field(default=2, ge=1, le=64)
    """Prompts tokenized at once."""
    no_scheduler_ms: int = Field(default=30_000, ge=1_000)
    """A request without a place is refused when no scheduler has led for this long."""
    finished_ttl_s: int = Field(default=600, ge=1)
    """How long the record of a finished request stays; its prompt goes at once."""
    stop_grace_s: float = Field(default=5.0, ge=0, le=600)
    """How long running streams may go on after SIGTERM."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Prometheus; 0 = off."""
    log_level: str = "info"

    def catalog(self, chat_models: Collection[str] = ()) -> Catalog:
        """Models, of which `chat_models` have a chat template, and tiers. Raises ConfigError where they contradict each
        other."""
        models = {
            model.name: ModelSpec(
                model.name,
                model.context_length,
                model.vocab_size,
                model.path is not None,
                model.name in chat_models,
            )
            for model in self.models
        }
        tiers = dict(BUILT_IN_TIERS)
        if self.tiers:
            tiers = {tier.name: slo_of(tier) for tier in self.tiers}
        if len(models) < len(self.models) or (self.tiers and len(tiers) < len(self.tiers)):
            raise ConfigError("models and tiers need different names each")
        default_tier = self.default_tier or next(iter(tiers))
        if default_tier not in tiers:
            raise ConfigError(f"default_tier {default_tier!r} is none of the tiers: {', '.join(tiers)}")
        for slo in tiers.values():
            if slo.downgrade_tier and slo.downgrade_tier not in tiers:
                raise ConfigError(f"tier {slo.tier!r} downgrades to {slo.downgrade_tier!r}, which is no tier")
        return Catalog(models, tiers, default_tier)

    def request_limits(self) -> RequestLimits:
        return RequestLimits(prompt_bytes=self.max_prompt_bytes, default_max_tokens=self.default_max_tokens)
