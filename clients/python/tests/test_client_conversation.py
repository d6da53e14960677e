"""The pure core: contiguity, what the next call is, when to give up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2 as wire
from hyperflexis_client import (
    FailedPrecondition,
    FinishReason,
    InternalError,
    NotFound,
    ProtocolError,
    Refused,
    RetryPolicy,
    Unavailable,
)
from hyperflexis_client._conversation import MAX_TAIL_TOKENS, Conversation
from hyperflexis_client._recovery import Recovery
from hyperflexis_client._tokens import pack, unpack


def accepted(next_index: int = 0, request_id: str = "r1") -> wire.StreamEvent:
    return wire.StreamEvent(accepted=wire.Accepted(request_id=request_id, next_index=next_index))


def delta(start: int, tokens: list[int], text: str = "") -> wire.StreamEvent:
    return wire.StreamEvent(
        delta=wire.Delta(start_index=start, token_ids=wire.TokenIds(packed=pack(tokens)), text=text)
    )


def finished(
    count: int, reason: sampling_pb2.FinishReason.ValueType = sampling_pb2.FINISH_REASON_LENGTH
) -> wire.StreamEvent:
    return wire.StreamEvent(finished=wire.Finished(reason=reason, output_tokens=count))


def begun() -> Conversation:
    conversation = Conversation(wire.GenerateRequest(model="m", idempotency_key="k"))
    conversation.next_call()
    return conversation


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_any_breaks_give_the_whole_output_once(steps: list[tuple[int, bool]]) -> None:
    """(tokens in a delta, does the stream break after it): the output is what the request produced."""
    total = sum(count for count, _ in steps)
    output = list(range(100, 100 + total))
    conversation = begun()
    conversation.take(accepted())
    for count, breaks in steps:
        at = conversation.next_index
        conversation.take(delta(at, output[at : at + count], "x" * count))
        if breaks:
            call = conversation.next_call()
            assert isinstance(call, wire.ResumeRequest)
            assert call.next_index == conversation.next_index
            assert list(unpack(call.tail.packed)) == output[: call.next_index]
            assert conversation.take(accepted(call.next_index)) is None
    conversation.take(finished(total))
    assert list(conversation.token_ids) == output
    assert conversation.result().text == "x" * total


def test_generate_is_repeated_until_accepted() -> None:
    conversation = begun()
    again = conversation.next_call()
    assert isinstance(again, wire.GenerateRequest)
    assert again.idempotency_key == "k"


@pytest.mark.parametrize(
    ("events", "says"),
    [
        ([delta(0, [1])], "before Accepted"),
        ([accepted(), accepted()], "twice"),
        ([accepted(3)], "index 3, expected 0"),
        ([accepted(request_id="")], "without a request id"),
        ([accepted(), delta(0, [1, 2]), delta(1, [2])], "repeated"),
        ([accepted(), delta(0, [1]), delta(2, [3])], "missing"),
        ([accepted(), delta(0, [1]), finished(2)], "finished with 2 tokens, received 1"),
        ([accepted(), finished(0), delta(0, [1])], "after Finished"),
        ([accepted(), finished(0), finished(0)], "after Finished"),
        ([accepted(), wire.StreamEvent(delta=wire.Delta(token_ids=wire.TokenIds(packed=b"123")))], "multiple of 4"),
    ],
)
def test_protocol_breaks_are_errors(events: list[wire.StreamEvent], says: str) -> None:
    conversation = begun()
    with pytest.raises(ProtocolError, match=says):
        for event in events:
            conversation.take(event)


def test_a_resumption_of_another_request_is_an_error() -> None:
    conversation = begun()
    conversation.take(accepted(request_id="mine"))
    conversation.next_call()
    with pytest.raises(ProtocolError, match="theirs"):
        conversation.take(accepted(request_id="theirs"))


def test_the_tail_is_bounded() -> None:
    conversation = begun()
    conversation.take(accepted())
    conversation.take(delta(0, list(range(MAX_TAIL_TOKENS + 10))))
    call = conversation.next_call()
    assert isinstance(call, wire.ResumeRequest)
    assert unpack(call.tail.packed) == tuple(range(10, MAX_TAIL_TOKENS + 10))


def test_resuming_with_a_tail_returns_only_what_is_new() -> None:
    conversation = Conversation.resuming("r1", 3, [11, 12], detach_grace_ms=5)
    call = conversation.next_call()
    assert isinstance(call, wire.ResumeRequest)
    assert (call.next_index, unpack(call.tail.packed), call.detach_grace_ms) == (3, (11, 12), 5)
    conversation.take(accepted(3))
    conversation.take(delta(3, [13]))
    assert conversation.token_ids == (13,)
    resumed = conversation.next_call()
    assert isinstance(resumed, wire.ResumeRequest)
    assert unpack(resumed.tail.packed) == (11, 12, 13)


def test_a_tail_longer_than_the_output_is_refused() -> None:
    with pytest.raises(ValueError, match="tail of 3"):
        Conversation.resuming("r1", 2, [1, 2, 3], detach_grace_ms=0)


@pytest.mark.parametrize(
    ("reason", "error"),
    [(sampling_pb2.FINISH_REASON_REFUSED, Refused), (sampling_pb2.FINISH_REASON_ERROR, InternalError)],
)
def test_results_that_are_none_raise(reason: sampling_pb2.FinishReason.ValueType, error: type[Exception]) -> None:
    conversation = begun()
    conversation.take(accepted())
    conversation.take(finished(0, reason))
    with pytest.raises(error):
        conversation.result()


def test_a_cancelled_generation_has_a_result() -> None:
    conversation = begun()
    conversation.take(accepted())
    conversation.take(delta(0, [5]))
    conversation.take(finished(1, sampling_pb2.FINISH_REASON_CANCELLED))
    assert conversation.result().finished.reason is FinishReason.CANCELLED


def test_an_unknown_event_is_skipped() -> None:
    assert begun().take(wire.StreamEvent()) is None


def recovery(targets: int = 1, **policy: object) -> Recovery:
    return Recovery(RetryPolicy(**policy), targets, lambda: 1.0)  # type: ignore[arg-type]


def test_back_off_doubles_to_its_limit_and_restarts_with_progress() -> None:
    patience = recovery()
    delays = [patience.delay_s(Unavailable("gone"), 0.0, accepted=True) for _ in range(6)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    patience.progressed()
    assert patience.delay_s(Unavailable("gone"), 0.0, accepted=True) == pytest.approx(0.1)


def test_jitter_halves_at_most() -> None:
    patience = Recovery(RetryPolicy(), 1, lambda: 0.0)
    assert patience.delay_s(Unavailable("gone"), 0.0, accepted=True) == pytest.approx(0.05)


def test_it_gives_up_after_the_deadline_counted_from_the_break() -> None:
    patience = recovery(deadline_s=10.0)
    patience.delay_s(Unavailable("gone"), 100.0, accepted=True)
    with pytest.raises(Unavailable):
        patience.delay_s(Unavailable("gone"), 110.0, accepted=True)
    patience.connected()
    patience.delay_s(Unavailable("gone"), 110.0, accepted=True)


def test_an_accepted_request_is_looked_for_at_every_router_once() -> None:
    patience = recovery(targets=2)
    assert patience.delay_s(NotFound("?"), 0.0, accepted=True) == 0.0
    with pytest.raises(NotFound):
        patience.delay_s(NotFound("?"), 0.0, accepted=True)
    with pytest.raises(NotFound):
        recovery(targets=2).delay_s(NotFound("no such model"), 0.0, accepted=False)


def test_refusals_are_repeated_only_when_asked_for_and_hinted() -> None:
    refused = Refused("busy")
    with pytest.raises(Refused):
        recovery(retry_refused=True).delay_s(refused, 0.0, accepted=False)
    refused.retry_after_s = 2.5
    with pytest.raises(Refused):
        recovery().delay_s(refused, 0.0, accepted=False)
    with pytest.raises(Refused):
        recovery(retry_refused=True).delay_s(refused, 0.0, accepted=True)
    assert recovery(retry_refused=True).delay_s(refused, 0.0, accepted=False) == 2.5


def test_a_resume_carries_the_request_only_when_told_and_then_with_every_token() -> None:
    request = wire.GenerateRequest(model="m", token_ids=wire.TokenIds(packed=pack([1])), detach_grace_ms=5)
    conversation = Conversation(request)
    assert not conversation.carry_request(), "nobody has accepted it yet"
    conversation.next_call()
    conversation.take(wire.StreamEvent(accepted=wire.Accepted(request_id="q", seed=7, max_tokens=9_000)))
    tokens = list(range(5_000))
    conversation.take(delta(0, tokens))
    plain = conversation.next_call()
    assert isinstance(plain, wire.ResumeRequest)
    assert not plain.HasField("original") and len(plain.tail.packed) == 4 * MAX_TAIL_TOKENS
    assert conversation.carry_request() and not conversation.carry_request()
    resume = conversation.next_call()
    assert isinstance(resume, wire.ResumeRequest)
    sampling = resume.original.sampling
    assert (resume.original.model, sampling.seed, sampling.max_tokens) == ("m", 7, 9_000)
    assert unpack(resume.tail.packed) == tuple(tokens)


def test_what_no_router_knows_is_filled_by_the_request_itself() -> None:
    patience, carried = recovery(targets=2), iter([True, False])
    gap = FailedPrecondition("tokens are known up to index 7 only")
    assert patience.delay_s(gap, 0.0, accepted=True, carry_request=lambda: next(carried)) == 0.0
    with pytest.raises(FailedPrecondition):
        patience.delay_s(gap, 0.0, accepted=True, carry_request=lambda: next(carried))
