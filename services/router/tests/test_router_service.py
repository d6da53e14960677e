"""The whole router over real gRPC and Redis, against a fake scheduler and a fake worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from router_rig import MakeRouter, collect, eventually, generate, read_until, reference, status_of, text_of, tokens_of
from tokenizers import Tokenizer

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis.router.v1 import inference_service_pb2_grpc
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis_common.tokens import unpack
from hyperflexis_router.app import key_hash
from hyperflexis_router.config import ApiKeySettings


async def test_a_request_from_end_to_end(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    events = await collect(router.stub.Generate(generate(max_tokens=30)))
    accepted, finished = events[0].accepted, events[-1].finished
    assert (
        accepted.durable and accepted.prompt_tokens == 3 and accepted.max_tokens == 30 and accepted.slo.tier == "chat"
    )
    assert tokens_of(events) == reference(30)
    assert [event.WhichOneof("event") for event in events].count("finished") == 1
    assert (finished.reason, finished.output_tokens) == (sampling_pb2.FINISH_REASON_LENGTH, 30)
    assert finished.ttft_us > 0 and finished.total_us >= finished.ttft_us and finished.verdict == 1
    # The record is written before the worker forgets.
    await eventually(lambda: cell.worker.closed == [accepted.request_id])
    record = await router.app.store.read(accepted.request_id)
    assert record is not None and record.finished == finished and record.prompt == b""
    assert unpack(record.journal) == reference(30)
    await eventually(lambda: cell.scheduler.done == [accepted.request_id])
    assert router.app.in_flight.total == 0


async def test_text_in_and_out_with_a_stop_string(make_router: MakeRouter, cell: Any, tokenizer_file: Path) -> None:
    router = await make_router()
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    ids = tokenizer.encode("héllo").ids
    whole = tokenizer.decode(reference(40, ids))
    plain = await collect(router.stub.Generate(generate("text", 40, text="héllo")))
    assert text_of(plain) == whole
    stop = whole[10:13]
    sampling = sampling_pb2.SamplingParams(stop=[stop])
    events = await collect(router.stub.Generate(generate("text", 5_000, text="héllo", sampling=sampling)))
    finished = events[-1].finished
    assert (finished.reason, finished.stop) == (sampling_pb2.FINISH_REASON_STOP_STRING, stop)
    assert text_of(events) == whole[: whole.index(stop)]
    assert finished.output_tokens == len(tokens_of(events)) < 40
    await eventually(lambda: events[0].accepted.request_id in cell.worker.closed)
    resume = pb.ResumeRequest(request_id=events[0].accepted.request_id, next_index=4)
    again = await collect(router.stub.Resume(resume))
    assert tokens_of(again) == tokens_of(events)[4:] and again[-1].finished == finished


async def test_bad_input_has_the_right_status_and_details(make_router: MakeRouter) -> None:
    router = await make_router()
    for request, code in [
        (generate("nope"), grpc.StatusCode.NOT_FOUND),
        (generate(tier="nope"), grpc.StatusCode.INVALID_ARGUMENT),
        (generate(prompt=[]), grpc.StatusCode.INVALID_ARGUMENT),
        (generate(prompt=[5_000]), grpc.StatusCode.INVALID_ARGUMENT),
        (generate(max_tokens=2**31), grpc.StatusCode.INVALID_ARGUMENT),
        (generate(sampling=sampling_pb2.SamplingParams(n=3)), grpc.StatusCode.UNIMPLEMENTED),
        (generate("text", text="x" * (5 * 2**20)), grpc.StatusCode.INVALID_ARGUMENT),
        (generate(prompt=[1] * 20_000), grpc.StatusCode.INVALID_ARGUMENT),
    ]:
        error = await status_of(router.stub.Generate(request))
        assert error.code() == code, error.details()
        status = rpc_status.from_call(error)
        assert status is not None
        bad = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(bad) and bad.field_violations[0].description
    assert router.app.in_flight.total == 0


async def test_a_64_mib_prompt_is_refused_and_the_router_lives(make_router: MakeRouter) -> None:
    router = await make_router()
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(router.app.address, options=options) as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        error = await status_of(stub.Generate(generate("text", text="x" * (64 * 2**20))))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in (error.details() or "")
    assert tokens_of(await collect(router.stub.Generate(generate()))) == reference(5)


async def test_refusals_come_as_finished(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.scheduler.refuse = router_session_pb2.Refused(
        reason=router_session_pb2.REFUSAL_REASON_SLO,
        message="predicted 900 ms",
        retry_after_us=1,
        predicted_ttft_us=900_000,
    )
    events = await collect(router.stub.Generate(generate()))
    assert [event.WhichOneof("event") for event in events] == ["accepted", "finished"]
    assert events[-1].finished.reason == sampling_pb2.FINISH_REASON_REFUSED
    assert "predicted 900 ms" in events[-1].finished.message
    assert (events[-1].finished.retry_after_us, events[-1].finished.predicted_ttft_us) == (1, 900_000)


async def test_cancel_ends_at_once_and_is_idempotent(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.01
    call = router.stub.Generate(generate(max_tokens=5_000))
    events = await read_until(call, 2)
    cancel = pb.CancelRequest(request_id=events[0].accepted.request_id)
    assert not (await router.stub.Cancel(cancel)).already_finished
    events = await collect(call, events)
    assert events[-1].finished.reason == sampling_pb2.FINISH_REASON_CANCELLED
    assert (await router.stub.Cancel(cancel)).already_finished
    await eventually(lambda: cell.scheduler.cancelled == cell.worker.closed == [cancel.request_id])
    error = await status_of(router.stub.Cancel(pb.CancelRequest(request_id="nope")))
    assert error.code() == grpc.StatusCode.NOT_FOUND


async def test_the_client_deadline_is_respected(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0.01
    error = await status_of(router.stub.Generate(generate(max_tokens=5_000), timeout=0.3))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: len(cell.worker.closed) == 1)
    await eventually(lambda: router.app.in_flight.total == 0)


async def test_a_slow_reader_loses_nothing(make_router: MakeRouter, cell: Any) -> None:
    router = await make_router()
    cell.worker.pace_s = 0
    call = router.stub.Generate(generate(max_tokens=3_000, detach_grace_ms=0))
    events = [(await call.read()).event]
    await eventually(lambda: router.app.board.find(events[0].accepted.request_id).finished is not None)
    assert tokens_of(await collect(call, events)) == reference(3_000)


async def test_keys_and_tenants(make_router: MakeRouter, cell: Any) -> None:
    keys = [ApiKeySettings(key_sha256=key_hash(name), tenant=name) for name in ("anna", "bert")]
    router = await make_router(api_keys=keys, max_in_flight_per_tenant=1)
    anna, bert = ((("authorization", f"Bearer {name}"),) for name in ("anna", "bert"))
    for metadata in ((), (("authorization", "Bearer x"),), (("authorization", "anna"),)):
        error = await status_of(router.stub.Generate(generate(), metadata=metadata))
        assert error.code() == grpc.StatusCode.UNAUTHENTICATED
    cell.worker.pace_s = 0.02
    call = router.stub.Generate(generate(max_tokens=1_000), metadata=anna)
    request_id = (await read_until(call, 1))[0].accepted.request_id
    for foreign in (
        router.stub.Resume(pb.ResumeRequest(request_id=request_id), metadata=bert),
        router.stub.Cancel(pb.CancelRequest(request_id=request_id), metadata=bert),
        router.stub.GetRequest(pb.GetRequestRequest(request_id=request_id), metadata=bert),
    ):
        assert (await status_of(foreign)).code() == grpc.StatusCode.NOT_FOUND
    error = await status_of(router.stub.Generate(generate(), metadata=anna))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    status = rpc_status.from_call(error)
    assert status is not None and len(status.details) == 2
    assert len(await collect(router.stub.Generate(generate(), metadata=bert))) > 2
    assert len((await router.stub.ListRequests(pb.ListRequestsRequest(), metadata=anna)).requests) == 1
    assert len((await router.stub.ListRequests(pb.ListRequestsRequest(), metadata=bert)).requests) == 0
    call.cancel()


async def test_questions(make_router: MakeRouter, cell: Any) -> None:
    one, two = await make_router(), await make_router()
    models = await one.stub.ListModels(pb.ListModelsRequest())
    assert {model.name: (model.ready_workers, model.has_tokenizer) for model in models.models} == {
        "ids": (1, False),
        "text": (0, True),
    }
    assert models.default_tier == "chat" and len(models.tiers) == 4
    cell.worker.pace_s = 0.02
    call = one.stub.Generate(generate(max_tokens=1_000))
    request_id = (await read_until(call, 3))[0].accepted.request_id
    here = await one.stub.GetRequest(pb.GetRequestRequest(request_id=request_id))
    assert (here.summary.state, here.summary.worker_id) == (pb.REQUEST_STATE_RUNNING, "w")
    assert here.decisions[0].reason == "only_one"
    assert (here.promised.tier, here.slo.tier) == ("chat", "chat")
    assert 0 < here.measured.first_token_us <= here.measured.last_token_us
    there = await two.stub.GetRequest(pb.GetRequestRequest(request_id=request_id))
    assert there.summary.router_id == "router-0"
    assert there.promised == here.promised and not there.HasField("measured")
    assert not (await two.stub.Cancel(pb.CancelRequest(request_id=request_id))).already_finished
    assert (await collect(call))[-1].finished.reason == sampling_pb2.FINISH_REASON_CANCELLED
    ended = await two.stub.GetRequest(pb.GetRequestRequest(request_id=request_id))
    assert ended.finished.reason == sampling_pb2.FINISH_REASON_CANCELLED
    await eventually(lambda: request_id in cell.scheduler.cancelled)
