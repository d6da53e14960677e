"""What can be asked about models and requests."""

from __future__ import annotations

from dataclasses import dataclass

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis_common.clock import Clock
from hyperflexis_common.tokens import count
from hyperflexis_router.core.catalog import Catalog
from hyperflexis_router.live import LiveRequest
from hyperflexis_router.resumption import Resumption
from hyperflexis_router.scheduler_link import SchedulerLink
from hyperflexis_router.store import Record
from hyperflexis_router.switchboard import Switchboard

EXPLAIN_TIMEOUT_S = 1.0
LIST_DEFAULT = 100
LIST_LIMIT = 1_000


@dataclass(frozen=True, slots=True)
class Queries:
    catalog: Catalog
    board: Switchboard
    resumption: Resumption
    scheduler: SchedulerLink
    clock: Clock

    def models(self) -> inference_service_pb2.ListModelsResponse:
        models = [
            inference_service_pb2.Model(
                name=model.name,
                context_length=model.context_length,
                vocab_size=model.vocab_size,
                ready_workers=self.board.core.workers.ready(model.name),
                has_tokenizer=model.has_tokenizer,
                has_chat_template=model.has_chat_template,
            )
            for model in self.catalog.models.values()
        ]
        return inference_service_pb2.ListModelsResponse(
            models=models, tiers=self.catalog.tiers.values(), default_tier=self.catalog.default_tier
        )

    async def request(self, request_id: str, tenant: str) -> inference_service_pb2.GetRequestResponse:
        """A request here or in Redis, with the scheduler's decisions where it answers. Raises Rejected."""
        live = self.board.find(request_id)
        if live is not None and live.new.tenant == tenant:
            about = inference_service_pb2.GetRequestResponse(
                summary=self._summary(live),
                finished=live.finished,
                slo=live.slo,
                promised=live.new.slo,
                measured=live.measured.proto(),
            )
        else:
            record = await self.resumption.read(request_id, tenant)
            about = inference_service_pb2.GetRequestResponse(
                summary=_recorded(record),
                finished=record.finished,
                slo=record.served_slo or record.slo,
                promised=record.slo,
            )
        explained = await self.scheduler.explain(request_id, EXPLAIN_TIMEOUT_S)
        if explained is not None:
            about.decisions.extend(explained.decisions)
        return about

    def requests(self, tenant: str, limit: int) -> inference_service_pb2.ListRequestsResponse:
        wanted = min(limit or LIST_DEFAULT, LIST_LIMIT)
        found = inference_service_pb2.ListRequestsResponse()
        for live in self.board.newest():
            if len(found.requests) == wanted:
                break
            if live.new.tenant == tenant:
                found.requests.append(self._summary(live))
        return found

    def _summary(self, live: LiveRequest) -> inference_service_pb2.RequestSummary:
        summary = inference_service_pb2.RequestSummary(
            request_id=live.request_id,
            model=live.new.model,
            tier=live.slo.tier,
            state=_state(live.state),
            prompt_tokens=live.prompt_tokens,
            output_tokens=live.available,
            age_us=self.clock.now_us() - live.new.received_us,
            router_id=self.board.core.router_id,
        )
        placement = self.board.core.placement(live.request_id)
        if placement is not None:
            summary.attempt.CopyFrom(placement[0].proto())
            summary.worker_id = placement[1].worker_id
        return summary


def cancelled(live_tokens: int, prompt_tokens: int, message: str) -> inference_service_pb2.Finished:
    """The end of a request that was cancelled where it did not run."""
    return inference_service_pb2.Finished(
        reason=sampling_pb2.FINISH_REASON_CANCELLED,
        prompt_tokens=prompt_tokens,
        output_tokens=live_tokens,
        message=message,
    )


def _recorded(record: Record) -> inference_service_pb2.RequestSummary:
    return inference_service_pb2.RequestSummary(
        request_id=record.request_id,
        model=record.model,
        tier=record.slo.tier,
        state=_state(record.state),
        prompt_tokens=record.prompt_tokens,
        output_tokens=record.finished.output_tokens if record.finished else count(record.journal),
        age_us=record.age_us,
        router_id=record.router_id,
    )


def _state(state: str) -> inference_service_pb2.RequestState.ValueType:
    return inference_service_pb2.RequestState.Value(f"REQUEST_STATE_{state.upper()}")
