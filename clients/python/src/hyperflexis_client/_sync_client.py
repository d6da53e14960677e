"""The sync client: the same surface, for programs without an event loop."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import grpc

from hyperflexis.common.v1 import info_service_pb2
from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client._calls import DETACH_GRACE_MS, Options, Prompt, generate_request
from hyperflexis_client._conversation import Conversation
from hyperflexis_client._recovery import RetryPolicy
from hyperflexis_client._sampling import Sampling
from hyperflexis_client._sync_generation import Generation
from hyperflexis_client._sync_link import SyncLink
from hyperflexis_client._views import Models, RequestDetails, RequestSummary, ServerInfo


class Client:
    """Talks to one or several routers; any of them serves any request.

    New requests go round the targets; a lost one is replaced by the next. Use as `with`, or close().
    Threads may share it.
    """

    def __init__(
        self,
        targets: str | Sequence[str],
        api_key: str | None = None,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """`targets` are host:port; plaintext unless `credentials` are given. Raises ValueError without any."""
        self._link = SyncLink(Options.of(targets, api_key, credentials, retry))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; streams still open are lost (and run on for their detach grace)."""
        self._link.close()

    def generate(
        self,
        model: str,
        prompt: Prompt,
        *,
        sampling: Sampling | None = None,
        tier: str = "",
        ttft_ms: float | None = None,
        tpot_ms: float | None = None,
        detach_grace_ms: int = DETACH_GRACE_MS,
        idempotency_key: str | None = None,
        durable: bool = False,
        return_text: bool | None = None,
        timeout_s: float | None = None,
    ) -> Generation:
        """A generation; it starts when it is first read.

        `prompt` is text, token ids, or chat messages. `tier` empty = the router's default; `ttft_ms` and `tpot_ms`
        override its promise. The request runs on `detach_grace_ms` after its stream is lost. `durable` = recorded
        before it is accepted, or Unavailable. `return_text` False = token ids only; None = text where the model has a
        tokenizer. `timeout_s` bounds the whole generation, reconnections included.
        Raises ValueError for token ids out of range; all else is raised by reading.
        """
        request = generate_request(
            model,
            prompt,
            sampling=sampling,
            tier=tier,
            ttft_ms=ttft_ms,
            tpot_ms=tpot_ms,
            detach_grace_ms=detach_grace_ms,
            idempotency_key=idempotency_key,
            durable=durable,
            return_text=return_text,
        )
        return Generation(self._link, Conversation(request), timeout_s)

    def resume(
        self,
        request_id: str,
        next_index: int = 0,
        tail: Sequence[int] = (),
        *,
        detach_grace_ms: int = DETACH_GRACE_MS,
        timeout_s: float | None = None,
    ) -> Generation:
        """Goes on reading a request from `next_index`; `tail` = the last tokens before it, if known.

        Whoever read it before gets Aborted. Raises ValueError where the tail is longer than `next_index`.
        """
        conversation = Conversation.resuming(request_id, next_index, tail, detach_grace_ms)
        return Generation(self._link, conversation, timeout_s)

    def cancel(self, request_id: str) -> bool:
        """Ends a request at once. False = it had finished already."""
        return self._link.cancel(request_id)

    def list_models(self) -> Models:
        """Models and tiers that can be asked for."""
        return Models.of(self._link.ask("ListModels", wire.ListModelsRequest()))

    def get_request(self, request_id: str) -> RequestDetails:
        """State, measured times and every decision taken for a request."""
        request = wire.GetRequestRequest(request_id=request_id)
        return RequestDetails.of(self._link.ask("GetRequest", request, by_id=True))

    def list_requests(self, limit: int = 100) -> tuple[RequestSummary, ...]:
        """Requests of the caller's tenant that the answering router holds, newest first."""
        reply = self._link.ask("ListRequests", wire.ListRequestsRequest(limit=limit))
        return tuple(RequestSummary.of(summary) for summary in reply.requests)

    def server_info(self) -> ServerInfo:
        """Version and features of the answering router."""
        return ServerInfo.of(self._link.ask("GetServerInfo", info_service_pb2.GetServerInfoRequest()))
