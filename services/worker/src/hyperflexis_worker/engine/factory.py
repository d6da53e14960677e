"""Builds the engine that the settings name. The only place that imports the torch engine, and only if asked to."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis_common.step_time import SEEDS, StepTimeModel
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.core.blocks import BlockPool
from hyperflexis_worker.core.planner import BudgetPlanner, StepPlanner
from hyperflexis_worker.core.step_loop import Executor
from hyperflexis_worker.engine.frames import EngineReady


@dataclass(frozen=True)
class BuiltEngine:
    executor: Executor
    planner: StepPlanner
    pool: BlockPool
    step_time: StepTimeModel
    ready: EngineReady


def build_engine(settings: WorkerSettings) -> BuiltEngine:
    """Loads weights and makes the pool; takes as long as that takes. Raises ValueError or OSError."""
    model = settings.served_model()
    seed = SEEDS[settings.profile]
    pool = BlockPool(settings.num_blocks, settings.block_tokens)
    planner = BudgetPlanner(settings.max_num_tokens, settings.max_num_seqs, settings.order)
    if settings.engine == "modelled":
        from hyperflexis_worker.modelled import ModelledExecutor

        modelled = ModelledExecutor(model.vocab_size, seed, settings.time_scale)
        ready = EngineReady(
            modelled.fingerprint(model.name), model.vocab_size, model.context_length, [], pool.total, pool.block_tokens
        )
        return BuiltEngine(modelled, planner, pool, seed, ready)
    from hyperflexis_worker.embedded.executor import TorchExecutor

    assert model.path is not None, "checked by WorkerSettings.check"
    torch_executor = TorchExecutor(
        model.path,
        num_blocks=settings.num_blocks,
        block_tokens=settings.block_tokens,
        dtype=settings.dtype,
        device=settings.device,
    )
    ready = EngineReady(
        torch_executor.fingerprint,
        torch_executor.vocab_size,
        min(torch_executor.context_length, model.context_length),
        sorted(torch_executor.eos_token_ids),
        pool.total,
        pool.block_tokens,
    )
    return BuiltEngine(torch_executor, planner, pool, seed, ready)
