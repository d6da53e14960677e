"""A scripted inference service over real gRPC, for tests of anything that uses the client.

with FakeService(faults=[Fault.lost(after=3)]) as service:
    result = Client(service.target).generate("fake", [1, 2, 3], sampling=Sampling(max_tokens=8)).result()
    assert result.token_ids == fake_tokens([1, 2, 3], 8)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc

from hyperflexis.common.v1 import info_service_pb2, info_service_pb2_grpc, sampling_pb2, slo_pb2
from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis_client._fake import VOCAB_SIZE, Behaviour, FakeRequest, Fault, fake_tokens
from hyperflexis_client._tokens import pack, unpack

__all__ = ["VOCAB_SIZE", "Behaviour", "FakeRequest", "FakeService", "Fault", "fake_tokens"]


class FakeService:
    """Serves InferenceService and InfoService on a free loopback port, from its own threads.

    Several instances may share one `requests` store, like routers that share Redis.
    """

    def __init__(
        self,
        behaviour: Behaviour | None = None,
        *,
        faults: Sequence[Fault] = (),
        requests: dict[str, FakeRequest] | None = None,
        address: str = "127.0.0.1:0",
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        self.behaviour.faults.extend(faults)
        self.requests: dict[str, FakeRequest] = {} if requests is None else requests
        self.calls: list[Any] = []
        """Every request message received, in order."""
        self.metadata: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=256), options=[("grpc.so_reuseport", 0)])
        servicer = _Servicer(self)
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, self._server)
        info_service_pb2_grpc.add_InfoServiceServicer_to_server(_Info(), self._server)
        self.port = self._server.add_insecure_port(address)
        self.target = f"127.0.0.1:{self.port}"

    def __enter__(self) -> FakeService:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the service and every stream on it at once."""
        self._server.stop(grace=None).wait()

    def slo(self, tier: str) -> slo_pb2.Slo:
        return next((slo for slo in self.behaviour.tiers if slo.tier == tier), self.behaviour.tiers[0])

    def note(self, message: Any, context: grpc.ServicerContext) -> None:
        with self.lock:
            self.calls.append(message)
            self.metadata.append({str(k): str(v) for k, v in context.invocation_metadata()})

    def take_fault(self) -> Fault | None:
        with self.lock:
            return self.behaviour.faults.pop(0) if self.behaviour.faults else None

    def admit(self, message: wire.GenerateRequest, request_id: str = "") -> FakeRequest:
        """The request of a Generate: the one that its idempotency key names, else a new one."""
        with self.lock:
            for known in self.requests.values():
                if message.idempotency_key and known.message.idempotency_key == message.idempotency_key:
                    return known
            prompt = unpack(message.token_ids.packed) or tuple(message.text.encode())
            count = message.sampling.max_tokens or 16
            request = FakeRequest(
                request_id or f"fake-{len(self.requests):08d}", message, prompt, fake_tokens(prompt, count)
            )
            self.requests[request.request_id] = request
            return request


class _Servicer(inference_service_pb2_grpc.InferenceServiceServicer):
    def __init__(self, service: FakeService) -> None:
        self._service = service

    def Generate(self, request: wire.GenerateRequest, context: Any) -> Iterator[wire.GenerateResponse]:
        self._service.note(request, context)
        fault = self._service.take_fault()
        if fault is not None and fault.after is None:
            _end(fault, context)
            return
        known = self._service.admit(request)
        for event in self._events(known, 0, fault, context):
            yield wire.GenerateResponse(event=event)

    def Resume(self, request: wire.ResumeRequest, context: Any) -> Iterator[wire.ResumeResponse]:
        self._service.note(request, context)
        fault = self._service.take_fault()
        if fault is not None and fault.after is None:
            _end(fault, context)
            return
        if request.HasField("original") and request.request_id not in self._service.requests:
            self._service.admit(request.original, request.request_id)
        known = self._known(request.request_id, context)
        for event in self._events(known, request.next_index, fault, context):
            yield wire.ResumeResponse(event=event)

    def _events(
        self, request: FakeRequest, start: int, fault: Fault | None, context: Any
    ) -> Iterator[wire.StreamEvent]:
        behaviour, slo = self._service.behaviour, self._service.slo(request.message.tier)
        yield wire.StreamEvent(accepted=self._accepted(request, slo, start))
        began_s = time.monotonic()
        sequence = int(request.request_id.removeprefix("fake-"))
        if behaviour.refuse_every and (sequence + 1) % behaviour.refuse_every == 0:
            yield _finished(request, sampling_pb2.FINISH_REASON_REFUSED, 0, began_s, 0, 0)
            return
        time.sleep(behaviour.ttft_s)
        first_us = round((time.monotonic() - began_s) * 1e6)
        index = start
        sent = 0
        while index < len(request.tokens) and not request.cancelled:
            if fault is not None and fault.after is not None and sent >= fault.after and not fault.shift:
                _end(fault, context)
                return
            count = min(behaviour.tokens_per_delta, len(request.tokens) - index)
            if fault is not None and fault.after is not None and not fault.shift:
                count = min(count, fault.after - sent)
            shift = fault.shift if fault is not None and fault.shift and sent >= (fault.after or 0) else 0
            tokens = request.tokens[index : index + count]
            text = "".join(f"<{token}>" for token in tokens)
            packed = wire.TokenIds(packed=pack(tokens))
            yield wire.StreamEvent(delta=wire.Delta(start_index=index + shift, token_ids=packed, text=text))
            index += count
            sent += count
            if behaviour.tpot_s and index < len(request.tokens):
                time.sleep(behaviour.tpot_s * count)
        if fault is not None and fault.after is not None and not fault.shift:
            _end(fault, context)
            return
        reason = sampling_pb2.FINISH_REASON_CANCELLED if request.cancelled else sampling_pb2.FINISH_REASON_LENGTH
        tpot_us = round(behaviour.tpot_s * 1e6)
        yield _finished(request, reason, index, began_s, first_us, tpot_us)

    def _accepted(self, request: FakeRequest, slo: slo_pb2.Slo, start: int) -> wire.Accepted:
        return wire.Accepted(
            request_id=request.request_id,
            slo=slo,
            prompt_tokens=len(request.prompt),
            max_tokens=len(request.tokens),
            seed=7,
            durable=True,
            next_index=start,
            router_id=f"fake-router-{self._service.port}",
        )

    def Cancel(self, request: wire.CancelRequest, context: Any) -> wire.CancelResponse:
        self._service.note(request, context)
        known = self._known(request.request_id, context)
        known.cancelled = not known.finished
        return wire.CancelResponse(already_finished=known.finished)

    def ListModels(self, request: wire.ListModelsRequest, context: Any) -> wire.ListModelsResponse:
        self._service.note(request, context)
        behaviour = self._service.behaviour
        if behaviour.unary_faults:
            _end(behaviour.unary_faults.pop(0), context)
        model = wire.Model(
            name="fake",
            context_length=behaviour.context_length,
            vocab_size=VOCAB_SIZE,
            ready_workers=2,
            has_tokenizer=True,
        )
        return wire.ListModelsResponse(models=[model], tiers=behaviour.tiers, default_tier=behaviour.tiers[0].tier)

    def GetRequest(self, request: wire.GetRequestRequest, context: Any) -> wire.GetRequestResponse:
        known = self._known(request.request_id, context)
        decision = slo_pb2.Decision(
            kind="place",
            reason="least_prefill",
            numbers={"queued_tokens": 120.0, "predicted_ttft_us": 35_000.0},
            worker_id="w0",
            age_us=1_500_000,
            leader_epoch=1,
            attempt_seq=3,
        )
        return wire.GetRequestResponse(
            summary=self._summary(known), decisions=[decision], slo=self._service.slo(known.message.tier)
        )

    def ListRequests(self, request: wire.ListRequestsRequest, context: Any) -> wire.ListRequestsResponse:
        newest = list(self._service.requests.values())[::-1]
        return wire.ListRequestsResponse(requests=[self._summary(known) for known in newest[: request.limit or 100]])

    def _known(self, request_id: str, context: Any) -> FakeRequest:
        known = self._service.requests.get(request_id)
        if known is None:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no request {request_id}")
        assert known is not None
        return known

    def _summary(self, known: FakeRequest) -> wire.RequestSummary:
        return wire.RequestSummary(
            request_id=known.request_id,
            model=known.message.model,
            tier=known.message.tier,
            state=wire.REQUEST_STATE_FINISHED if known.finished else wire.REQUEST_STATE_RUNNING,
            prompt_tokens=len(known.prompt),
            output_tokens=len(known.tokens),
            router_id=f"fake-router-{self._service.port}",
            worker_id="w0",
        )


class _Info(info_service_pb2_grpc.InfoServiceServicer):
    def GetServerInfo(
        self, request: info_service_pb2.GetServerInfoRequest, context: Any
    ) -> info_service_pb2.GetServerInfoResponse:
        return info_service_pb2.GetServerInfoResponse(
            service="router", version="0.0.0", protocol_version=1, features=["fake"], instance_id="fake-router"
        )


def _end(fault: Fault, context: Any) -> None:
    """Ends a stream as scripted; returns where that is a plain end."""
    if fault.code is not None:
        context.set_trailing_metadata(fault.trailing)
        context.abort(fault.code, fault.message)


def _finished(
    request: FakeRequest,
    reason: sampling_pb2.FinishReason.ValueType,
    count: int,
    began_s: float,
    first_us: int,
    tpot_us: int,
) -> wire.StreamEvent:
    request.finished = True
    whole = reason == sampling_pb2.FINISH_REASON_LENGTH
    return wire.StreamEvent(
        finished=wire.Finished(
            reason=reason,
            prompt_tokens=len(request.prompt),
            output_tokens=count,
            verdict=slo_pb2.VERDICT_ATTAINED if whole else slo_pb2.VERDICT_MISSED,
            ttft_us=first_us,
            tpot_us=tpot_us,
            total_us=round((time.monotonic() - began_s) * 1e6),
            attempts=1,
        )
    )
