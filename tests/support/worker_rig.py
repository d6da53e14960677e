"""A worker's core with a session, a feed and a clock that only the test moves."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2, identity_pb2, sampling_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis_common import PROTOCOL_VERSION
from hyperflexis_common.attempt import Attempt, WorkerKey
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_worker.core.effects import Effect, ToFeed, ToScheduler
from hyperflexis_worker.core.engine_event import EndedAttempt, EngineEvent, NewTokens
from hyperflexis_worker.core.profile import WorkerProfile
from hyperflexis_worker.core.worker import WorkerCore

Update = ws.RequestUpdate
SECOND = 1_000_000
FIRST = Attempt(1, 1)


class Rig:
    """A worker core, a session that counts its commands, one feed, and all that came out of it."""

    def __init__(self) -> None:
        self.core = WorkerCore(
            WorkerProfile(
                key=WorkerKey("w", 1),
                address="w:1",
                model="m",
                fingerprint=b"f",
                capabilities=capability_pb2.EngineCapabilities(
                    context_length=100, vocab_size=1_000, hash_block_tokens=4
                ),
                total_blocks=11,
                block_tokens=4,
                eos_token_ids=frozenset({2}),
            )
        )
        self.now_us = 10 * SECOND
        self.seq = 0
        self.out: list[Effect] = []

    def connect(self, epoch: int = 1) -> None:
        fence = identity_pb2.Fence(epoch=epoch, leader_id="s")
        registered = ws.Registered(fence=fence, report_interval_us=SECOND)
        self.seq = 0
        self.take(
            self.core.scheduler_message(ws.WorkerSessionResponse(epoch=epoch, registered=registered), self.now_us)
        )

    def open_feed(self, feed: int = 1) -> None:
        self.take(
            self.core.feed_opened(feed, tf.FeedHello(router_id="r", protocol_version=PROTOCOL_VERSION), self.now_us)
        )

    def command(self, epoch: int = 1, **message: object) -> None:
        self.seq += 1
        response = ws.WorkerSessionResponse(epoch=epoch, seq=self.seq, **message)  # type: ignore[arg-type]
        self.take(self.core.scheduler_message(response, self.now_us))

    def run(self, request_id: str = "a", attempt: Attempt = FIRST, max_tokens: int = 8) -> None:
        slo = slo_pb2.Slo(tier="chat", ttft_us=SECOND, tpot_us=SECOND)
        self.command(
            run=ws.Run(request_id=request_id, attempt=attempt.proto(), prompt_tokens=3, max_tokens=max_tokens, slo=slo)
        )

    def start(
        self,
        request_id: str = "a",
        attempt: Attempt = FIRST,
        committed: list[int] | None = None,
        feed: int = 1,
        **more: object,
    ) -> None:
        values: dict[str, object] = {"prompt": pack([1, 2, 3]), "max_tokens": 8, **more}
        start = tf.Start(request_id=request_id, attempt=attempt.proto(), committed=pack(committed or []), **values)  # type: ignore[arg-type]
        self.feed(feed, start=start)

    def feed(self, feed: int = 1, **message: object) -> None:
        self.take(self.core.feed_message(feed, tf.TokenFeedRequest(**message), self.now_us))  # type: ignore[arg-type]

    def step(self, *tokens: tuple[str, Attempt, int, int], ended: tuple[str, Attempt] | None = None) -> None:
        event = EngineEvent(adds_applied=10**6, tokens=[NewTokens(r, a, i, pack([t])) for r, a, i, t in tokens])
        event.started = [(r, a) for r, a, i, _ in tokens if i == 0]
        if ended:
            event.ended = [EndedAttempt(*ended, sampling_pb2.FINISH_REASON_LENGTH)]
        self.take(self.core.engine_stepped(event, self.now_us))

    def pass_time(self, by_us: int) -> None:
        self.now_us += by_us
        self.take(self.core.tick(self.now_us))

    def take(self, effects: list[Effect]) -> None:
        self.out = effects

    def of(self, kind: type) -> list[Effect]:
        return [effect for effect in self.out if isinstance(effect, kind)]

    def gone(self) -> list[tf.Gone]:
        return [e.message.gone for e in self.out if isinstance(e, ToFeed) and e.message.HasField("gone")]

    def entries(self, feed: int = 1) -> list[tuple[int, list[int], int]]:
        """(start index, tokens, crc) of what went to a feed."""
        found = []
        for effect in self.out:
            if isinstance(effect, ToFeed) and effect.feed == feed and effect.message.HasField("step"):
                step, at = effect.message.step, 0
                tokens = unpack(step.tokens)
                for start, count, crc in zip(
                    unpack(step.start_index), unpack(step.counts), unpack(step.crc), strict=True
                ):
                    found.append((start, tokens[at : at + count], crc))
                    at += count
        return found

    def reports(self) -> list[ws.Report]:
        messages = [effect.message for effect in self.out if isinstance(effect, ToScheduler)]
        return [message.report for message in messages if message.HasField("report")]

    def told(self) -> list[tuple[str, int]]:
        """(request, kind) of each update that went out."""
        return [(update.request_id, update.kind) for report in self.reports() for update in report.updates]

    def updates(self) -> list[tuple[str, int]]:
        """(request, kind) of the next report."""
        self.pass_time(100_000)
        return self.told()

    def lose_engine(self) -> None:
        self.take(self.core.engine_lost("killed", self.now_us))

    def engine_ready(self) -> None:
        self.take(self.core.engine_ready(self.now_us))


def ready() -> Rig:
    rig = Rig()
    rig.connect()
    rig.open_feed()
    return rig
