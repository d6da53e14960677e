"""The shell's part in moves: frames to and from the engine, calls to and from other workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from typing import Any

import grpc
import grpc.aio
import structlog

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.clock import Clock
from hyperflexis_common.server import cancel_all
from hyperflexis_worker.core.effects import (
    AnswerExport,
    AnswerRelease,
    AskExport,
    AskLink,
    AskPrefix,
    AskRelease,
    Effect,
)
from hyperflexis_worker.core.move_event import (
    ExportAsked,
    MoveEvent,
    PeerExported,
    PeerLinked,
    PeerPrefix,
    PeerReleased,
    PrefixAsked,
    ReleaseAsked,
)
from hyperflexis_worker.core.worker import WorkerCore
from hyperflexis_worker.engine import frames, kv_frames
from hyperflexis_worker.metrics import WorkerMetrics
from hyperflexis_worker.peers import READ_S, Peers
from hyperflexis_worker.translation import move_event, move_frame

log = structlog.get_logger(__name__)

ENGINE_S = 2.0
"""The engine answers between two steps; longer, and it hangs."""
CALLS = 256
"""Calls to other workers under way at once; more are refused, which fails the moves they are for."""
CHUNK_BYTES = 4 * 2**20
"""Of one message of ReadKv."""


class Refused(Exception):
    """Why another worker's question has no answer, as a gRPC status."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class Moving:
    """`send` gives a frame to the engine, `apply` carries out what the core wants done."""

    def __init__(
        self,
        core: WorkerCore,
        send: Callable[[frames.ToEngine], None],
        apply: Callable[[Iterable[Effect]], None],
        clock: Clock,
        metrics: WorkerMetrics,
    ) -> None:
        self._core = core
        self._metrics = metrics
        self._send = send
        self._apply = apply
        self._clock = clock
        self._peers = Peers()
        self._calls: set[asyncio.Task[None]] = set()
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._numbers = 0
        self._lives = 0
        """Of engines that have ended."""
        self._ready = frames.EngineReady(b"", 0, 0, [], 0, 0)

    # --- effects -----------------------------------------------------------------------------------------

    def carry_out(self, effect: Effect) -> None:
        frame = move_frame(effect, self._clock.now_us())
        if frame is not None:
            return self._send(frame)
        match effect:
            case AnswerExport(number, response, error, full):
                if response is not None:
                    self._answer(number, response)
                else:
                    code = grpc.StatusCode.RESOURCE_EXHAUSTED if full else grpc.StatusCode.NOT_FOUND
                    self._answer(number, Refused(code, error))
            case AnswerRelease(number, held):
                self._answer(number, held)
            case AskExport(number, address, request):
                self._call(self._ask_export(number, address, request), PeerExported(number, None, "too_many_calls"))
            case AskPrefix(number, address, prefix):
                self._call(self._ask_prefix(number, address, prefix), PeerPrefix(number, None, "too_many_calls"))
            case AskLink(number, address):
                self._call(self._ask_link(number, address), PeerLinked(number, None, "too_many_calls"))
            case AskRelease(number, address, lease_id):
                refused = PeerReleased(number, False, "too_many_calls")
                self._call(self._ask_release(number, address, lease_id), refused)

    # --- what the engine says ----------------------------------------------------------------------------

    def engine_ready(self, ready: frames.EngineReady) -> None:
        """A new life of the engine, under another name than the one before."""
        self._ready = ready
        self._core.moves.links.layout = ready.kv_layout if ready.kv_name else b""

    def engine_lost(self) -> None:
        self._lives += 1
        self._core.moves.links.layout = b""
        for number in list(self._questions):
            self._answer(number, Refused(grpc.StatusCode.UNAVAILABLE, "the engine of this worker ended"))

    def engine_event(self, event: frames.FromEngine) -> None:
        if isinstance(event, kv_frames.Pulled):
            self._metrics.pulled(event)
            if event.error:
                log.warning("a cache could not be read", transport=event.transport, error=event.error)
        told = move_event(event, self._ready.kv_name)
        if told is not None:
            return self._tell(told)
        match event:
            case kv_frames.Released(number, held):
                self._answer(number, held)
            case kv_frames.BlockBytes():
                self._answer(event.number, event)
            case kv_frames.FetchBytes():
                self._call(self._fetch(event, self._lives), None)

    # --- what other workers ask --------------------------------------------------------------------------

    async def export_asked(self, ask: worker_service_pb2.ExportKvRequest) -> worker_service_pb2.ExportKvResponse:
        """Raises Refused."""
        number, answer = self._question()
        self._tell(ExportAsked(number, ask))
        response: worker_service_pb2.ExportKvResponse = await self._wait(number, answer)
        return response

    async def prefix_asked(
        self, ask: worker_service_pb2.ExportPrefixRequest
    ) -> worker_service_pb2.ExportPrefixResponse:
        """Raises Refused."""
        number, answer = self._question()
        self._tell(PrefixAsked(number, ask))
        response: worker_service_pb2.ExportPrefixResponse = await self._wait(number, answer)
        return response

    async def release_asked(self, lease_id: int) -> bool:
        """Was it alive until now? Raises Refused."""
        number, answer = self._question()
        self._tell(ReleaseAsked(number, lease_id))
        return bool(await self._wait(number, answer))

    def link_asked(self) -> worker_service_pb2.LinkResponse:
        """What a peer's engine needs to read from this one's pool. Raises Refused."""
        ready = self._ready
        if not ready.kv_name:
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, "the caches of this worker's engine do not move")
        if not self._core.requests.engine_up:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "no engine serves here at present")
        part = movement_pb2.RankPart(layout_fingerprint=ready.kv_layout, agent_metadata=ready.kv_metadata)
        return worker_service_pb2.LinkResponse(self=self._self(), parts=[part], engine=ready.kv_name)

    async def read_asked(
        self, request: worker_service_pb2.ReadKvRequest
    ) -> AsyncIterator[worker_service_pb2.ReadKvResponse]:
        """The bytes of leased blocks, a few at a time. Raises Refused."""
        blocks = packing.unpack(request.parts[0].block_ids) if request.parts else []
        step = max(CHUNK_BYTES // max(self._ready.block_bytes, 1), 1)
        offset = 0
        for first in range(0, len(blocks), step):
            number, answer = self._question()
            self._send(kv_frames.ReadBlocks(number, request.lease_id, blocks[first : first + step]))
            event: kv_frames.BlockBytes = await self._wait(number, answer)
            if event.error:
                raise Refused(grpc.StatusCode.NOT_FOUND, event.error)
            yield worker_service_pb2.ReadKvResponse(offset=offset, data=event.data)
            offset += len(event.data)

    async def close(self) -> None:
        await cancel_all(*self._calls)
        await self._peers.close()

    # --- inside ------------------------------------------------------------------------------------------

    def _tell(self, event: MoveEvent) -> None:
        self._apply(self._core.move_event(event, self._clock.now_us()))

    def _self(self) -> movement_pb2.WorkerRef:
        profile = self._core.profile
        return movement_pb2.WorkerRef(
            worker_id=profile.key.worker_id, incarnation=profile.key.incarnation, address=profile.address
        )

    def _question(self) -> tuple[int, asyncio.Future[Any]]:
        self._numbers += 1
        future = self._questions[self._numbers] = asyncio.get_running_loop().create_future()
        return self._numbers, future

    async def _wait(self, number: int, answer: asyncio.Future[Any]) -> Any:
        try:
            async with asyncio.timeout(ENGINE_S):
                return await answer
        except TimeoutError:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the engine of this worker does not answer") from None
        finally:
            self._questions.pop(number, None)

    def _answer(self, number: int, answer: Any) -> None:
        future = self._questions.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _call(self, call: Coroutine[Any, Any, None], refused: MoveEvent | None) -> None:
        if len(self._calls) >= CALLS:
            call.close()
            if refused is not None:
                self._tell(refused)
            return
        task = asyncio.ensure_future(call)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _ask_export(self, number: int, address: str, request: worker_service_pb2.ExportKvRequest) -> None:
        try:
            self._tell(PeerExported(number, await self._peers.export(address, request)))
        except grpc.aio.AioRpcError as error:
            self._tell(PeerExported(number, None, _reason(error)))

    async def _ask_prefix(self, number: int, address: str, ask: worker_service_pb2.ExportPrefixRequest) -> None:
        try:
            self._tell(PeerPrefix(number, await self._peers.export_prefix(address, ask)))
        except grpc.aio.AioRpcError as error:
            self._tell(PeerPrefix(number, None, _reason(error)))

    async def _ask_link(self, number: int, address: str) -> None:
        try:
            request = worker_service_pb2.LinkRequest(self=self._self())
            self._tell(PeerLinked(number, await self._peers.link(address, request)))
        except grpc.aio.AioRpcError as error:
            self._tell(PeerLinked(number, None, _reason(error)))

    async def _ask_release(self, number: int, address: str, lease_id: int) -> None:
        try:
            held = await self._peers.release(address, lease_id)
            self._tell(PeerReleased(number, held))
        except grpc.aio.AioRpcError as error:
            self._tell(PeerReleased(number, False, _reason(error)))

    async def _fetch(self, fetch: kv_frames.FetchBytes, life: int) -> None:
        fetched = await self._fetched(fetch)
        if life == self._lives:  # the next engine may have a question of its own under this number
            self._send(fetched)

    async def _fetched(self, fetch: kv_frames.FetchBytes) -> kv_frames.FetchedBytes:
        peer = self._core.moves.links.peer(fetch.peer)
        if peer is None:
            return kv_frames.FetchedBytes(fetch.number, b"", "no such peer")
        try:
            async with asyncio.timeout(READ_S):
                data = await self._peers.read(peer.address, fetch.lease_id, fetch.blocks)
            return kv_frames.FetchedBytes(fetch.number, data)
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            return kv_frames.FetchedBytes(fetch.number, b"", str(error) or "timed out")


def _reason(error: grpc.aio.AioRpcError) -> str:
    """Stable, for decisions; the peer's own words are in its log."""
    return f"source_{error.code().name.lower()}"
