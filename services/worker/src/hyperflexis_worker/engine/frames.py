"""The messages between the worker's shell and its engine: length-prefixed MessagePack."""

from __future__ import annotations

import struct

import msgspec

from hyperflexis_common.step_time import StepTimeModel
from hyperflexis_common.step_time_fit import StepErrors
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.steps.sampled import TokenLogprobs
from hyperflexis_worker.steps.sequence import Sampling

HEADER = struct.Struct("<I")
MAX_FRAME_BYTES = 256 * 2**20


class Add(msgspec.Struct, tag=True, frozen=True):
    """Queue a sequence. `prompt` and `committed` are packed u32 LE."""

    number: int
    """Counts up from 1 over the life of the engine; Stepped.adds_applied answers it."""
    request_id: str
    leader_epoch: int
    seq: int
    prompt: bytes
    committed: bytes
    max_tokens: int
    sampling: Sampling
    arrival_us: int
    ttft_us: int
    tpot_us: int
    weight: float
    tier: str
    max_gap_us: int = 250_000
    tenant: str = ""
    sent_us: int = 0
    """When the shell queued it for the engine, for the engine's log."""


class Drop(msgspec.Struct, tag=True, frozen=True):
    """Forget a sequence of at most this attempt, if it is here."""

    request_id: str
    leader_epoch: int
    seq: int


class Revoked(msgspec.Struct, tag=True, frozen=True):
    """Both ways. To the engine: drop it if it has not started. Back: whether it was dropped."""

    request_id: str
    leader_epoch: int
    seq: int
    dropped: bool = False


class Attach(msgspec.Struct, tag=True, frozen=True):
    """Queue a sequence whose first `computed` tokens are in its reservation's blocks: it goes on from there."""

    add: Add
    computed: int


class Stop(msgspec.Struct, tag=True, frozen=True):
    """Leave the loop."""


class EngineReady(msgspec.Struct, tag=True, frozen=True):
    """The engine serves; sent once, first."""

    fingerprint: bytes
    vocab_size: int
    context_length: int
    eos_token_ids: list[int]
    total_blocks: int
    block_tokens: int
    step_planned: bool = True
    sampling_features: list[str] = []
    hash_block_tokens: int = 0
    """Tokens in a block of the prefix cache; 0 = there is none."""
    kv_name: str = ""
    """Of this life of the engine among its peers; empty = its caches do not move."""
    kv_metadata: bytes = b""
    """What a peer's engine needs to link to this one."""
    block_bytes: int = 0
    kv_layout: bytes = b""
    """Equal where blocks mean the same."""


class EndedSequence(msgspec.Struct, frozen=True):
    request_id: str
    leader_epoch: int
    seq: int
    reason: int
    stop_token_id: int = 0
    message: str = ""
    cached_tokens: int = 0


class NewTokens(msgspec.Struct, frozen=True):
    """Output tokens [start_index, …) of one sequence, packed."""

    request_id: str
    leader_epoch: int
    seq: int
    start_index: int
    packed: bytes
    logprobs: list[TokenLogprobs] = []
    """Of each token, where the request asked for them; else empty."""


class GivenUp(msgspec.Struct, frozen=True):
    request_id: str
    leader_epoch: int
    seq: int
    decision: bytes
    """A serialized common.v1.Decision."""


class EngineLoad(msgspec.Struct, frozen=True):
    waiting: int = 0
    running: int = 0
    queued_prefill_tokens: int = 0
    decode_context_tokens: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    leased_blocks: int = 0
    quarantined_blocks: int = 0
    reserved_blocks: int = 0
    steps: int = 0
    queued_prefill_us: int = 0
    """Predicted time of the prefill that waits, in steps that are busy anyway."""
    queued_before_us: list[int] = []
    """What of it has its turn by each of TURNS_US; empty where the policy serves in another order."""
    prefill_share: float = 1.0
    """Of the time while prompts wait, what goes into prefill."""
    pace: float = 1.0
    """Actual over predicted step time, lately."""


class StepTime(msgspec.Struct, frozen=True):
    """The step-time model as fitted so far, and how well it predicts."""

    model: StepTimeModel
    errors: StepErrors


class Stepped(msgspec.Struct, tag=True, frozen=True):
    """After each step, and after sequences came or went while idle."""

    adds_applied: int
    load: EngineLoad
    tokens: list[NewTokens] = []
    started: list[tuple[str, int, int]] = []
    ended: list[EndedSequence] = []
    given_up: list[GivenUp] = []
    preempted: list[tuple[str, int, int, int]] = []
    """request_id, leader_epoch, seq, tokens to compute again."""
    duration_us: int = 0
    predicted_us: int = 0
    step_time: StepTime | None = None
    """Now and then, where there is something new."""
    cache: list[tuple[bool, bytes]] = []
    """What the prefix cache stored (True) and removed since the last one, oldest first."""
    cache_lost: bool = False
    """Some of that is missing: nothing of what was told before can be relied on."""


class EngineFailed(msgspec.Struct, tag=True, frozen=True):
    """The engine cannot go on; sent last."""

    message: str


ToEngine = Add | Drop | Revoked | Stop | Attach | kv.CacheCommand
FromEngine = (
    EngineReady
    | Stepped
    | Revoked
    | EngineFailed
    | kv.Linked
    | kv.Exported
    | kv.Released
    | kv.BlockBytes
    | kv.Reserved
    | kv.Pulled
    | kv.FetchBytes
    | kv.Wedged
)

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    """One frame: u32 LE length, then the message."""
    body = _encoder.encode(message)
    return HEADER.pack(len(body)) + body


def decode_to_engine(body: bytes) -> ToEngine:
    return _to_engine.decode(body)


def decode_from_engine(body: bytes) -> FromEngine:
    return _from_engine.decode(body)
