"""The load: open-loop arrivals and long streams, over bare stubs so that the generator costs little."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field

import grpc.aio

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis_common.channel import open_channel
from hyperflexis_common.tokens import TOKEN_BYTES, pack

PROMPT = pack(range(512))
TIMEOUT_S = 60.0
STREAM_TOKENS = 60_000


@dataclass(slots=True)
class Arrivals:
    """What one stretch of open-loop arrivals saw, in milliseconds."""

    rate_rps: float
    ttft_ms: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    """How long after its time a request was sent: the generator's own fault."""
    failed: int = 0


class Load:
    """Requests of one model to one address."""

    def __init__(self, address: str, model: str) -> None:
        self._channel = open_channel(address)
        self._stub = inference_service_pb2_grpc.InferenceServiceStub(self._channel)
        self._model = model
        self._calls: list[grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]] = []
        self._readers: list[asyncio.Task[None]] = []
        self.tokens = 0
        """Streamed to us so far."""
        self.deltas = 0
        self.broken = 0
        """Streams that ended by themselves."""

    async def close(self) -> None:
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)
        await self._channel.close()

    async def arrivals(self, rate_rps: float, seconds: float, seed: int) -> Arrivals:
        """Poisson arrivals of one-token requests, sent on time whatever becomes of the ones before."""
        chance, seen = random.Random(seed), Arrivals(rate_rps)
        began, due, requests = time.perf_counter(), 0.0, []
        while (due := due + chance.expovariate(rate_rps)) < seconds:
            wait = began + due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            requests.append(asyncio.create_task(self._first_token(began + due, seen)))
        await asyncio.gather(*requests)
        return seen

    async def open_streams(self, count: int) -> None:
        """Long streams that count what they bring; returns when all have begun."""
        begun = asyncio.Semaphore(0)
        for _ in range(count):
            call = self._stub.Generate(self._request(STREAM_TOKENS))
            self._calls.append(call)
            self._readers.append(asyncio.create_task(self._count(call, begun)))
        async with asyncio.timeout(TIMEOUT_S):
            for _ in range(count):
                await begun.acquire()

    async def _first_token(self, due: float, seen: Arrivals) -> None:
        sent = time.perf_counter()
        call = self._stub.Generate(self._request(1), timeout=TIMEOUT_S)
        first, whole = 0.0, False
        try:
            while isinstance(response := await call.read(), pb.GenerateResponse):
                kind = response.event.WhichOneof("event")
                if kind == "delta" and not first:
                    first = time.perf_counter()
                whole = kind == "finished" and response.event.finished.output_tokens == 1
        except grpc.aio.AioRpcError:
            whole = False
        if not whole or not first:
            seen.failed += 1
            return
        seen.ttft_ms.append((first - sent) * 1e3)
        seen.late_ms.append((sent - due) * 1e3)

    async def _count(
        self, call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse], begun: asyncio.Semaphore
    ) -> None:
        first = True
        try:
            while isinstance(response := await call.read(), pb.GenerateResponse):
                packed = response.event.delta.token_ids.packed
                if packed:
                    self.tokens += len(packed) // TOKEN_BYTES
                    self.deltas += 1
                    if first:
                        first = False
                        begun.release()
            self.broken += 1
        except grpc.aio.AioRpcError:
            self.broken += 1
        except asyncio.CancelledError:
            pass

    def _request(self, max_tokens: int) -> pb.GenerateRequest:
        return pb.GenerateRequest(
            model=self._model,
            token_ids=pb.TokenIds(packed=PROMPT),
            sampling=sampling_pb2.SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True),
            tier="chat",
            return_text=False,
        )
