"""Builds the engine that the settings name. The only place that imports the torch engine, and only if asked to."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis_common.model_files import model_directory
from hyperflexis_common.step_time import StepTimeModel, load_profile
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.core.blocks import BlockPool
from hyperflexis_worker.core.output_lengths import OutputLengths
from hyperflexis_worker.core.planner import BudgetPlanner, StepPlanner
from hyperflexis_worker.core.policy_planner import PolicyPlanner
from hyperflexis_worker.core.scorpio_policy import ScorpioPolicy
from hyperflexis_worker.core.slo_policy import SloPolicy
from hyperflexis_worker.core.step_loop import Executor
from hyperflexis_worker.core.worth import Worth, WorthRules
from hyperflexis_worker.engine.frames import EngineReady


@dataclass(frozen=True)
class BuiltEngine:
    executor: Executor
    planner: StepPlanner
    pool: BlockPool
    lengths: OutputLengths
    step_time: StepTimeModel
    ready: EngineReady


def _planner(settings: WorkerSettings, model: StepTimeModel, lengths: OutputLengths) -> StepPlanner:
    limits = settings.max_num_tokens, settings.max_num_seqs
    match settings.policy:
        case "hyperflexis":
            return PolicyPlanner(SloPolicy(model, *limits, lengths, Worth(_worth_rules(settings))), lengths)
        case "scorpio":
            return PolicyPlanner(ScorpioPolicy(model, *limits, lengths), lengths)
        case order:
            return BudgetPlanner(*limits, order, lengths)


def _worth_rules(settings: WorkerSettings) -> WorthRules:
    guarantees = {tier.name: tier.guarantee for tier in settings.tiers if tier.guarantee}
    return WorthRules(guarantees, settings.long_prompt_tokens, settings.long_prompt_share)


def build_engine(settings: WorkerSettings) -> BuiltEngine:
    """Loads weights and makes the pool; takes as long as that takes. Raises ValueError or OSError."""
    model = settings.served_model()
    seed = load_profile(settings.profile)
    pool = BlockPool(settings.num_blocks, settings.block_tokens, settings.prefix_cache)
    lengths = OutputLengths()
    planner = _planner(settings, seed.scaled(settings.time_scale) if settings.engine == "modelled" else seed, lengths)
    hash_block_tokens = pool.block_tokens if pool.prefix_cache else 0
    if settings.engine == "modelled":
        from hyperflexis_worker.modelled import ModelledExecutor

        seed = seed.scaled(settings.time_scale)
        modelled = ModelledExecutor(model.vocab_size, seed)
        ready = EngineReady(
            fingerprint=modelled.fingerprint(model.name),
            vocab_size=model.vocab_size,
            context_length=model.context_length,
            eos_token_ids=[],
            total_blocks=pool.total,
            block_tokens=pool.block_tokens,
            hash_block_tokens=hash_block_tokens,
        )
        return BuiltEngine(modelled, planner, pool, lengths, seed, ready)
    from hyperflexis_worker.embedded.executor import TorchExecutor
    from hyperflexis_worker.embedded.sampling import FEATURES

    assert model.path is not None, "checked by WorkerSettings.check"
    torch_executor = TorchExecutor(
        model_directory(model.path),
        num_blocks=settings.num_blocks,
        block_tokens=settings.block_tokens,
        dtype=settings.dtype,
        device=settings.device,
    )
    ready = EngineReady(
        fingerprint=torch_executor.fingerprint,
        vocab_size=torch_executor.vocab_size,
        context_length=min(torch_executor.context_length, model.context_length),
        eos_token_ids=sorted(torch_executor.eos_token_ids),
        total_blocks=pool.total,
        block_tokens=pool.block_tokens,
        sampling_features=list(FEATURES),
        hash_block_tokens=hash_block_tokens,
    )
    return BuiltEngine(torch_executor, planner, pool, lengths, seed, ready)
