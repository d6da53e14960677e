"""The sync client's connections to its routers; safe to use from several threads."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

import grpc
from google.protobuf.message import Message

from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client._calls import CHANNEL_OPTIONS, UNARY_TIMEOUT_S, Options, stub_of
from hyperflexis_client._errors import HyperFlexisError, error_of
from hyperflexis_client._recovery import Recovery


class SyncLink:
    """One channel per router, opened when first needed. A `turn` picks the router, round and round."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._turn = 0
        self._closed = threading.Event()

    def recovery(self) -> Recovery:
        return Recovery(self._options.retry, len(self._options.targets), random.random)

    def next_turn(self) -> int:
        """Where a new request begins."""
        with self._lock:
            self._turn += 1
            return self._turn - 1

    def open(self, call: wire.GenerateRequest | wire.ResumeRequest, turn: int, timeout_s: float | None) -> Any:
        """Opens the stream of a Generate or a Resume."""
        method = "Generate" if isinstance(call, wire.GenerateRequest) else "Resume"
        stub = stub_of(self._channel(turn), method)
        return getattr(stub, method)(call, timeout=timeout_s, metadata=self._options.metadata)

    def ask(self, method: str, request: Message, *, by_id: bool = False) -> Any:
        """One idempotent unary call, repeated on the next router while none is reachable.

        `by_id`: it names a request, which perhaps only one of the routers knows.
        """
        recovery = self.recovery()
        turn = self.next_turn()
        while True:
            call = getattr(stub_of(self._channel(turn), method), method)
            try:
                return call(request, timeout=UNARY_TIMEOUT_S, metadata=self._options.metadata)
            except grpc.RpcError as lost:
                error = typed(lost)
            self.wait(recovery.delay_s(error, time.monotonic(), accepted=by_id))
            turn += 1

    def cancel(self, request_id: str) -> bool:
        """Cancels a request; False = it had finished already."""
        reply = self.ask("Cancel", wire.CancelRequest(request_id=request_id), by_id=True)
        return not reply.already_finished

    def wait(self, delay_s: float) -> None:
        """Sleeps; close() from another thread ends it."""
        self._closed.wait(delay_s)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.close()

    def _channel(self, turn: int) -> grpc.Channel:
        target = self._options.targets[turn % len(self._options.targets)]
        with self._lock:
            if self._closed.is_set():
                raise HyperFlexisError("the client is closed")
            if target not in self._channels:
                credentials = self._options.credentials
                self._channels[target] = (
                    grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
                    if credentials is None
                    else grpc.secure_channel(target, credentials, options=CHANNEL_OPTIONS)
                )
            return self._channels[target]


def typed(lost: Any) -> HyperFlexisError:
    """grpc's sync errors are calls; their class in the stubs does not say so."""
    return error_of(lost.code(), lost.details() or "", lost.trailing_metadata() or ())
