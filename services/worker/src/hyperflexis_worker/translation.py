"""Between the core's words and the engine's frames."""

from __future__ import annotations

from typing import cast

from hyperflexis.common.v1 import capability_pb2, movement_pb2, sampling_pb2, slo_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_worker.core.effects import (
    AttachSequence,
    Effect,
    EndLease,
    ExportCache,
    ExportPrefix,
    KeepPrefix,
    LinkEngine,
    PullBlocks,
    ReserveBlocks,
    ReservePrefix,
    UnreserveBlocks,
)
from hyperflexis_worker.core.engine_event import EndedAttempt, EngineEvent, NewTokens
from hyperflexis_worker.core.move_event import Exported, Linked, MoveEvent, Pulled, Reserved
from hyperflexis_worker.engine import frames, kv_frames
from hyperflexis_worker.steps.sequence import Sequence


def add_frame(number: int, sequence: Sequence, now_us: int) -> frames.Add:
    return frames.Add(
        number=number,
        request_id=sequence.request_id,
        leader_epoch=sequence.attempt.leader_epoch,
        seq=sequence.attempt.seq,
        prompt=packing.pack(sequence.prompt),
        committed=packing.pack(sequence.output),
        max_tokens=sequence.max_tokens,
        sampling=sequence.sampling,
        arrival_us=sequence.arrival_us,
        ttft_us=sequence.ttft_us,
        tpot_us=sequence.tpot_us,
        weight=sequence.weight,
        tier=sequence.tier,
        max_gap_us=sequence.max_gap_us,
        tenant=sequence.tenant,
        sent_us=now_us,
    )


def move_frame(effect: Effect, now_us: int) -> frames.ToEngine | None:
    """What the engine is told of an effect of a move; None where it is not for the engine."""
    match effect:
        case ExportCache(number, request_id, attempt, from_block, lease_id, lease_us, final):
            return kv_frames.Export(number, request_id, *attempt, from_block, lease_id, lease_us, final)
        case ExportPrefix(number, hashes, lease_us):
            return kv_frames.ExportPrefix(number, hashes, lease_us)
        case EndLease(lease_id, number):
            return kv_frames.ReleaseLease(number, lease_id)
        case ReserveBlocks(request_id, attempt, tokens):
            return kv_frames.Reserve(request_id, *attempt, tokens)
        case ReservePrefix(request_id, attempt, hashes):
            return kv_frames.ReservePrefix(request_id, *attempt, hashes)
        case KeepPrefix(request_id, attempt, hashes):
            return kv_frames.KeepPrefix(request_id, *attempt, hashes)
        case UnreserveBlocks(request_id, attempt):
            return kv_frames.Unreserve(request_id, *attempt)
        case LinkEngine(engine, metadata):
            return kv_frames.LinkPeer(engine, metadata)
        case PullBlocks(number, request_id, attempt, engine, lease_id, first, blocks, within_us, last):
            return kv_frames.Pull(number, request_id, *attempt, engine, lease_id, first, list(blocks), within_us, last)
        case AttachSequence(number, sequence, computed):
            return frames.Attach(add_frame(number, sequence, now_us), computed)
    return None


def move_event(frame: frames.FromEngine, engine: str) -> MoveEvent | None:
    """What the core is told of the engine's answer in a move; None where it is about something else. `engine`: the
    name of the one that answers."""
    match frame:
        case kv_frames.Exported():
            return Exported(
                frame.number,
                engine,
                frame.lease_id,
                tuple(frame.blocks),
                tuple(frame.generations),
                frame.computed,
                frame.output,
                frame.error,
                frame.full,
            )
        case kv_frames.Reserved(request_id, epoch, seq, ok, _, cached):
            return Reserved(request_id, Attempt(epoch, seq), ok, cached)
        case kv_frames.Linked():
            status = movement_pb2.LinkStatus(
                transport=frame.transport,
                gigabytes_per_s=frame.gigabytes_per_s,
                setup_us=frame.setup_us,
                error=frame.error,
            )
            return Linked(frame.peer, status)
        case kv_frames.Pulled():
            return Pulled(frame.number, frame.error)
    return None


def engine_event(stepped: frames.Stepped) -> EngineEvent:
    load = stepped.load
    return EngineEvent(
        adds_applied=stepped.adds_applied,
        waiting=load.waiting,
        running=load.running,
        queued_prefill_tokens=load.queued_prefill_tokens,
        queued_prefill_us=load.queued_prefill_us,
        queued_before_us=load.queued_before_us,
        prefill_share=load.prefill_share,
        pace=load.pace,
        decode_context_tokens=load.decode_context_tokens,
        free_blocks=load.free_blocks,
        leased_blocks=load.leased_blocks,
        quarantined_blocks=load.quarantined_blocks,
        reserved_blocks=load.reserved_blocks,
        steps=load.steps,
        tokens=[
            NewTokens(t.request_id, Attempt(t.leader_epoch, t.seq), t.start_index, t.packed, t.logprobs)
            for t in stepped.tokens
        ],
        started=[(request_id, Attempt(epoch, seq)) for request_id, epoch, seq in stepped.started],
        ended=[
            EndedAttempt(
                e.request_id,
                Attempt(e.leader_epoch, e.seq),
                cast("sampling_pb2.FinishReason.ValueType", e.reason),
                e.stop_token_id,
                e.message,
                e.cached_tokens,
            )
            for e in stepped.ended
        ],
        cache=stepped.cache,
        cache_lost=stepped.cache_lost,
        step_time=_step_time(stepped.step_time),
        given_up=[
            (g.request_id, Attempt(g.leader_epoch, g.seq), slo_pb2.Decision.FromString(g.decision))
            for g in stepped.given_up
        ],
        preempted=[(request_id, Attempt(epoch, seq), tokens) for request_id, epoch, seq, tokens in stepped.preempted],
    )


def _step_time(fitted: frames.StepTime | None) -> capability_pb2.StepTimeModel | None:
    if fitted is None:
        return None
    message = fitted.model.proto()
    message.mean_error, message.samples = fitted.errors.mean, fitted.errors.samples
    return message
