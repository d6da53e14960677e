"""Builds the engine that the settings name. The only place that imports the torch engine, and only if asked to."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import structlog

from hyperflexis_common.clock import Clock, SystemClock
from hyperflexis_common.model_files import model_directory
from hyperflexis_common.output_lengths import OutputLengths
from hyperflexis_common.step_time import StepTimeModel, load_profile
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.engine.frames import EngineReady
from hyperflexis_worker.kv.mover_thread import MoverThread
from hyperflexis_worker.kv.transport import Storage
from hyperflexis_worker.kv.transports import open_transports
from hyperflexis_worker.steps.admission_policy import AdmissionPolicy
from hyperflexis_worker.steps.blocks import BlockPool
from hyperflexis_worker.steps.chunked_policy import ChunkedPolicy
from hyperflexis_worker.steps.planner import StepPlanner
from hyperflexis_worker.steps.scorpio_policy import ScorpioPolicy
from hyperflexis_worker.steps.slo_policy import SloPolicy
from hyperflexis_worker.steps.slo_rules import SloRules
from hyperflexis_worker.steps.step_loop import Executor
from hyperflexis_worker.steps.worth import Worth, WorthRules

if TYPE_CHECKING:
    from hyperflexis_worker.cuda.pool_memory import PoolMemory
    from hyperflexis_worker.cuda.vmm import DeviceMemory

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class BuiltEngine:
    executor: Executor
    planner: StepPlanner
    pool: BlockPool
    lengths: OutputLengths
    step_time: StepTimeModel
    storage: Storage
    mover: MoverThread | None
    ready: EngineReady


def _planner(settings: WorkerSettings, model: StepTimeModel, lengths: OutputLengths) -> StepPlanner:
    limits = settings.max_num_tokens, settings.max_num_seqs
    match settings.policy:
        case "hyperflexis" | "admission" as ours:
            policy = SloPolicy if ours == "hyperflexis" else AdmissionPolicy
            rules = SloRules(patience=settings.patience)
            return StepPlanner(policy(model, *limits, lengths, Worth(_worth_rules(settings)), rules), lengths)
        case "scorpio":
            return StepPlanner(ScorpioPolicy(model, *limits, lengths), lengths)
        case order:
            return StepPlanner(ChunkedPolicy(model, *limits, order), lengths)


def _worth_rules(settings: WorkerSettings) -> WorthRules:
    guarantees = {tier.name: tier.guarantee for tier in settings.tiers if tier.guarantee}
    return WorthRules(guarantees, settings.long_prompt_tokens, settings.long_prompt_share)


def build_engine(settings: WorkerSettings, clock: Clock | None = None) -> BuiltEngine:
    """Loads weights, makes the pool and the transports; takes as long as that takes. Raises ValueError or OSError."""
    seed = load_profile(settings.profile)
    if settings.engine == "modelled":
        seed = seed.scaled(settings.time_scale)
    pool = BlockPool(settings.num_blocks, settings.block_tokens, settings.prefix_cache)
    lengths = OutputLengths()
    planner = _planner(settings, seed, lengths)
    executor, storage, ready, memory = (_modelled if settings.engine == "modelled" else _embedded)(settings, seed)
    mover = _mover(settings, storage, clock or SystemClock(), memory)
    ready = msgspec.structs.replace(
        ready,
        hash_block_tokens=pool.block_tokens if pool.prefix_cache else 0,
        kv_name=mover.metadata.name if mover else "",
        kv_metadata=mover.metadata.encode() if mover else b"",
        block_bytes=storage.block_bytes,
        kv_layout=storage.layout,
    )
    return BuiltEngine(executor, planner, pool, lengths, seed, storage, mover, ready)


def _mover(settings: WorkerSettings, storage: Storage, clock: Clock, memory: DeviceMemory | None) -> MoverThread | None:
    if not settings.transports:
        return None
    name = f"{settings.worker_id or 'worker'}:{secrets.token_hex(4)}"
    return MoverThread(
        name,
        storage,
        lambda tell: open_transports(settings.transports, name, storage, clock, tell, memory),
        clock,
        settings.kv_reads,
    )


def _layout(fingerprint: bytes, settings: WorkerSettings) -> bytes:
    """Blocks mean the same where the weights, their arithmetic and the tokens in a block are the same."""
    return hashlib.blake2b(fingerprint + settings.block_tokens.to_bytes(4, "little"), digest_size=16).digest()


_Made = tuple[Executor, Storage, EngineReady, "DeviceMemory | None"]
"""The last: memory of the pool that peers on this host can map."""


def _modelled(settings: WorkerSettings, step_time: StepTimeModel) -> _Made:
    from hyperflexis_worker.modelled import ModelledExecutor, ModelledPool

    model = settings.served_model()
    pool = ModelledPool(settings.num_blocks, settings.block_tokens)
    executor = ModelledExecutor(model.vocab_size, step_time, pool)
    ready = EngineReady(
        fingerprint=executor.fingerprint(model.name),
        vocab_size=model.vocab_size,
        context_length=model.context_length,
        eos_token_ids=[],
        total_blocks=settings.num_blocks,
        block_tokens=settings.block_tokens,
    )
    return executor, pool.storage(_layout(ready.fingerprint, settings)), ready, None


def _embedded(settings: WorkerSettings, step_time: StepTimeModel) -> _Made:
    from hyperflexis_worker.embedded.executor import TorchExecutor
    from hyperflexis_worker.embedded.kv_pool import plain_memory
    from hyperflexis_worker.embedded.sampling import FEATURES

    model = settings.served_model()
    assert model.path is not None, "checked by WorkerSettings.check"
    shared = _shared_memory() if settings.device.startswith("cuda") and "peer" in settings.transports else None
    executor = TorchExecutor(
        model_directory(model.path),
        num_blocks=settings.num_blocks,
        block_tokens=settings.block_tokens,
        dtype=settings.dtype,
        device=settings.device,
        allocate=shared or plain_memory,
    )
    ready = EngineReady(
        fingerprint=executor.fingerprint,
        vocab_size=executor.vocab_size,
        context_length=min(executor.context_length, model.context_length),
        eos_token_ids=sorted(executor.eos_token_ids),
        total_blocks=settings.num_blocks,
        block_tokens=settings.block_tokens,
        sampling_features=list(FEATURES),
    )
    memory = shared.shared if shared else None
    return executor, executor.pool.storage(_layout(ready.fingerprint, settings)), ready, memory


def _shared_memory() -> PoolMemory | None:
    """None, and a warning, without the packages for it."""
    try:
        import cuda.bindings.driver  # noqa: F401

        from hyperflexis_worker.cuda.pool_memory import PoolMemory
    except ImportError as error:
        log.warning("the pool is plain memory: peers on this host cannot map it", error=str(error))
        return None
    return PoolMemory()
