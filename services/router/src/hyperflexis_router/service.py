"""InferenceService: the front door's handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis_common.clock import Clock
from hyperflexis_common.tokens import count
from hyperflexis_router.admission import Authenticator, InFlight
from hyperflexis_router.core.validation import body_digest
from hyperflexis_router.faults import Faults
from hyperflexis_router.intake import Intake
from hyperflexis_router.live import LiveRequest
from hyperflexis_router.metrics import REQUESTS
from hyperflexis_router.queries import Queries, cancelled
from hyperflexis_router.recorder import Recorder
from hyperflexis_router.rejection import Context, Rejected
from hyperflexis_router.resumption import Resumption
from hyperflexis_router.streaming import Wrap, stream
from hyperflexis_router.switchboard import Switchboard

log = structlog.get_logger(__name__)


class InferenceService(inference_service_pb2_grpc.InferenceServiceServicer):
    """Accepted is sent as soon as the request is recorded; a refusal after that is Finished{REFUSED}."""

    def __init__(
        self,
        *,
        board: Switchboard,
        intake: Intake,
        resumption: Resumption,
        recorder: Recorder,
        queries: Queries,
        authenticator: Authenticator,
        in_flight: InFlight,
        clock: Clock,
        faults: Faults,
        detach_grace_limit_ms: int,
    ) -> None:  # fmt: skip
        self._board = board
        self._intake = intake
        self._resumption = resumption
        self._recorder = recorder
        self._queries = queries
        self._authenticator = authenticator
        self._in_flight = in_flight
        self._clock = clock
        self._faults = faults
        self._detach_grace_limit_ms = detach_grace_limit_ms
        self.stopping = False
        """New requests go to other routers."""
        self._streams: set[asyncio.Task[Any]] = set()
        self._cut = False

    # --- streams ---

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        received_us = self._clock.now_us()
        async with self._call(context) as tenant:
            _check_deadline(context)
            if request.idempotency_key and (known := self._board.find_by_key(tenant, request.idempotency_key)):
                await self._again(known.request_id, known.origin.digest, request, tenant, context)
                return
            with self._in_flight.until_kept(tenant) as kept:
                live = await self._intake.check(request, tenant, received_us)
                _check_deadline(context)
                held = await self._intake.record(live, request.durability)
                if held is None:
                    kept[0] = True
                    self._board.add(live)
            if held is not None:
                await self._again(held.request_id, held.digest, request, tenant, context)
                return
            REQUESTS.labels(live.slo.tier).inc()
            await self._stream(live, 0, context, _generated)

    async def Resume(self, request: pb.ResumeRequest, context: Context) -> None:  # type: ignore[override]
        async with self._call(context) as tenant:
            _check_deadline(context)
            grace_ms = request.detach_grace_ms
            if not 0 <= grace_ms <= self._detach_grace_limit_ms:
                message = f"detach_grace_ms: must be 0 to {self._detach_grace_limit_ms}, not {grace_ms}"
                raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, message)
            live = await self._resumption.take(
                request.request_id,
                tenant,
                request.next_index,
                request.tail.packed,
                grace_ms * 1_000,
                request.original if request.HasField("original") else None,
            )
            await self._stream(live, request.next_index, context, _resumed)

    async def _again(
        self, request_id: str, digest: str, request: pb.GenerateRequest, tenant: str, context: Context
    ) -> None:
        """An idempotent retry: the same request's stream from its beginning."""
        if digest != body_digest(request):
            message = "this idempotency_key stands for another request; use a new key for a new body"
            raise Rejected(grpc.StatusCode.ALREADY_EXISTS, message)
        live = await self._resumption.take(request_id, tenant, 0, b"", None)
        await self._stream(live, 0, context, _generated)

    async def _stream(self, live: LiveRequest, next_index: int, context: Context, wrap: Wrap) -> None:
        attached = live.attach(next_index)
        try:
            if not live.recorded and live.finished is None:
                self._recorder.not_durable(live)
            accepted = live.accepted(next_index, self._board.core.router_id)
            await context.write(wrap(pb.StreamEvent(accepted=accepted)))
            self._faults.passed("accepted")
            self._board.submit(live)
            await stream(live, attached, context, wrap, self._clock)
        finally:
            if not self._cut:
                remaining = context.time_remaining()
                self._board.stream_lost(live, attached, expired=remaining is not None and remaining <= 0)

    # --- calls ---

    async def Cancel(self, request: pb.CancelRequest, context: Context) -> pb.CancelResponse:
        async with self._call(context, ends_requests=True) as tenant:
            live = self._board.find(request.request_id)
            if live is not None and live.new.tenant == tenant:
                finished = live.finished is not None
                self._board.cancel(live)
                return pb.CancelResponse(already_finished=finished)
            return pb.CancelResponse(already_finished=await self._cancel_elsewhere(request.request_id, tenant))
        raise AssertionError("unreachable")

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        async with self._call(context, ends_requests=True):
            return self._queries.models()
        raise AssertionError("unreachable")

    async def GetRequest(self, request: pb.GetRequestRequest, context: Context) -> pb.GetRequestResponse:
        async with self._call(context, ends_requests=True) as tenant:
            return await self._queries.request(request.request_id, tenant)
        raise AssertionError("unreachable")

    async def ListRequests(self, request: pb.ListRequestsRequest, context: Context) -> pb.ListRequestsResponse:
        async with self._call(context, ends_requests=True) as tenant:
            return self._queries.requests(tenant, request.limit)
        raise AssertionError("unreachable")

    # --- stopping ---

    async def drain(self, grace_s: float) -> None:
        """Takes nothing new, lets streams end within the grace, then leaves the rest to other routers."""
        self.stopping = True
        if self._streams and grace_s > 0:
            await asyncio.wait(self._streams, timeout=grace_s)
        self._cut = True
        self._board.freeze()
        await self._recorder.release_all()
        remaining = list(self._streams)
        for task in remaining:
            task.cancel()
        if remaining:
            await asyncio.wait(remaining, timeout=1.0)

    # --- inside ---

    @asynccontextmanager
    async def _call(self, context: Context, ends_requests: bool = False) -> AsyncIterator[str]:
        """Yields the caller's tenant; a Rejected below becomes the call's status."""
        task = asyncio.current_task()
        assert task is not None
        if not ends_requests:
            self._streams.add(task)
        try:
            if self.stopping and not ends_requests:
                raise Rejected(grpc.StatusCode.UNAVAILABLE, "this router is stopping; use another one")
            yield self._authenticator.tenant(context)
        except Rejected as rejected:
            await rejected.end(context)
        except asyncio.CancelledError:
            if self._cut and not context.cancelled():
                message = "this router is stopping; resume on another router"
                await Rejected(grpc.StatusCode.UNAVAILABLE, message).end(context)
            raise
        finally:
            self._streams.discard(task)

    async def _cancel_elsewhere(self, request_id: str, tenant: str) -> bool:
        """Takes a request from its router in order to end it; True = it had ended already."""
        record = await self._resumption.read(request_id, tenant)
        already = record.finished
        if already is None:
            end = cancelled(count(record.journal), record.prompt_tokens, "cancelled through another router")
            already = (await self._resumption.adopt(record, end=end)).finished
        if already is None or already.reason == sampling_pb2.FINISH_REASON_CANCELLED:
            # Said again where it had ended so: the first one's word may have been lost with the reply of Redis.
            self._board.apply(self._board.core.cancel_elsewhere(request_id, self._clock.now_us()))
        return already is not None


def _check_deadline(context: Context) -> None:
    remaining = context.time_remaining()
    if remaining is not None and remaining <= 0:
        raise Rejected(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline has passed; nothing was recorded")


def _generated(event: pb.StreamEvent) -> pb.GenerateResponse:
    return pb.GenerateResponse(event=event)


def _resumed(event: pb.StreamEvent) -> pb.ResumeResponse:
    return pb.ResumeResponse(event=event)
