"""The worker's settings."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from hyperflexis_common.config import ModelSettings, ServiceSettings, TierSettings
from hyperflexis_common.step_time import load_profile


class WorkerSettings(ServiceSettings):
    """Settings of one GPU worker."""

    section: ClassVar[str] = "worker"

    listen: str = "127.0.0.1:50053"
    """host:port of the gRPC server; port 0 = any free one."""
    advertise: str = ""
    """host or host:port that routers dial; empty = the one listened on."""
    worker_id: str = ""
    """Name of this worker in the cluster, kept over restarts; empty = drawn at random."""
    schedulers: list[str] = ["127.0.0.1:50052"]
    """Schedulers of the cell, leader and standbys, in any order."""
    models: list[ModelSettings] = []
    """The stack's models; this worker serves the one named by `model`."""
    tiers: list[TierSettings] = []
    """The stack's tiers: their guarantees; all else travels with a request."""
    model: str = ""
    """Name of the model to serve; empty = the first of `models`."""
    engine: Literal["embedded", "modelled"] = "embedded"
    """embedded = torch; modelled = no torch, takes as long as the step-time profile says."""
    engine_mode: Literal["process", "thread"] = "process"
    """Where the engine runs. thread is for tests and for many modelled workers in little memory."""
    device: str = "cpu"
    """torch device of the embedded engine, such as cpu or cuda:0."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Weights, KV and arithmetic of the embedded engine."""
    num_blocks: int = Field(default=1_024, ge=2)
    """KV blocks in the pool, one of them reserved."""
    block_tokens: int = Field(default=16, ge=1)
    """Tokens per KV block."""
    prefix_cache: bool = True
    """Keep the blocks of ended requests, and share those of running ones, for prompts that begin alike."""
    max_num_tokens: int = Field(default=512, ge=1)
    """Tokens in one step at most: the prefill chunk budget."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Requests in one step at most."""
    policy: Literal["hyperflexis", "admission", "fcfs", "edf", "scorpio"] = "hyperflexis"
    """What a step does. hyperflexis: chunks by the decodes' slack, requests that cannot be on time are given up
    (docs/scheduling.md); admission: the same for engines that fill steps of max_num_tokens themselves, where only
    who is handed to them can be decided, and when; fcfs, edf: max_num_tokens a step, by arrival or by deadline;
    scorpio: that paper's."""
    patience: float = Field(default=0.1, ge=0, le=1)
    """hyperflexis, admission: share of its TTFT after which a request whose turn will not come is given up. Less: its
    client hears of it sooner; more: it may be lucky yet (docs/scheduling.md says what that is worth)."""
    long_prompt_tokens: int = Field(default=0, ge=0)
    """hyperflexis, admission: prompts of at least so many tokens share the reserve below; 0 = no reserve."""
    long_prompt_share: float = Field(default=0.0, ge=0, le=1)
    """Of prefill time, what is kept for them while they wait: counted one by one, the long are given up first."""
    profile: str = "cpu/tiny/tp1"
    """Seed of the step-time model: gpu/model/tp, or a file that `hyperflexis profile` wrote."""
    time_scale: float = Field(default=1.0, ge=0)
    """Modelled engine: step times are multiplied by this."""
    kv_transports: list[Literal["peer", "nixl", "grpc"]] | None = None
    """How caches move between workers, best first: mapped memory of a GPU on the same host, NIXL, the workers' own
    gRPC. One that is not to be had here is left out. Empty = caches do not move. Not given: all of them, peer on
    a GPU only; grpc alone for the modelled engine, of which there may be many on one machine."""
    kv_reads: int = Field(default=4, ge=1)
    """Caches read from other workers at once."""
    role: Literal["mixed", "prefill", "decode"] = "mixed"
    """What the dispatcher may send at first."""
    gpu_type: str = "cpu"
    """Name of the accelerator, for placement and cost."""
    tags: dict[str, str] = {}
    """Free tags shown in the cluster, such as the scaler's action_id."""
    metrics_port: int = Field(default=0, ge=0, le=65_535)
    """Prometheus port; 0 = off."""
    step_log: Path | None = None
    """Directory to which the engine writes what each step did, for measurements; none = nothing is written."""
    stop_grace_s: float = Field(default=5.0, ge=0)
    """On SIGTERM: how long running requests may go on while the worker drains."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines written."""

    @property
    def transports(self) -> list[str]:
        """`kv_transports`, or what stands for it."""
        if self.kv_transports is not None:
            return list(self.kv_transports)
        if self.engine == "modelled":
            return ["grpc"]
        return ["peer", "nixl", "grpc"] if self.device.startswith("cuda") else ["nixl", "grpc"]

    def served_model(self) -> ModelSettings:
        """The model this worker serves. Raises ValueError where it is not configured."""
        name = self.model or (self.models[0].name if self.models else "")
        for model in self.models:
            if model.name == name:
                return model
        known = ", ".join(model.name for model in self.models) or "none"
        raise ValueError(f"worker.model {name!r} is not among the configured models ({known})")

    def check(self) -> None:
        """Raises ValueError for what no single field can tell."""
        model = self.served_model()
        load_profile(self.profile)
        if self.engine == "embedded" and model.path is None:
            raise ValueError(
                f"model {model.name!r} needs a path for the embedded engine (or set worker.engine: modelled)"
            )
        if bool(self.long_prompt_tokens) != bool(self.long_prompt_share):
            raise ValueError("worker.long_prompt_tokens and worker.long_prompt_share make a reserve together: set both")
        if not self.schedulers:
            raise ValueError("worker.schedulers must name at least one host:port")
