"""One client stream: contiguous, coalesced, one terminal; and what is measured."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1.inference_service_pb2 import Finished, Notice, StreamEvent
from hyperflexis_common.tokens import pack, unpack
from hyperflexis_router.core.delivery import DELTA_TOKENS, NOTICE_LIMIT, PAUSES_KEPT, ClientStream, Measured


def letters(start: int, end: int) -> str:
    return "".join(chr(97 + index % 26) for index in range(start, end))


def drain(stream: ClientStream, output: bytes, available: int, over: bool, now_us: int) -> list[StreamEvent]:
    events = []
    while (event := stream.next_event(output, available, Finished() if over else None, now_us)) is not None:
        events.append(event)
    return events


@given(st.lists(st.tuples(st.integers(0, 3_000), st.integers(0, 30_000)), max_size=20), st.integers(0, 50))
def test_any_reader_gets_every_token_and_one_terminal(reads: list[tuple[int, int]], begin: int) -> None:
    total = begin + sum(grown for grown, _ in reads)
    output = pack(range(total))
    stream = ClientStream(begin, 50_000, letters)
    events, available, now_us = [], begin, 0
    for grown, passed in reads:
        available, now_us = available + grown, now_us + passed
        events += drain(stream, output, available, False, now_us)
    events += drain(stream, output, available, True, now_us)
    tokens: list[int] = []
    for event in events[:-1]:
        assert event.delta.start_index == begin + len(tokens)
        tokens += unpack(event.delta.token_ids.packed)
    assert tokens == list(range(begin, total))
    assert "".join(event.delta.text for event in events) == letters(begin, total)
    assert [event.WhichOneof("event") for event in events].count("finished") == 1
    assert events[-1].HasField("finished") and stream.done
    assert stream.wait_us(total, True, now_us) is None


def test_the_first_delta_goes_at_once_and_later_ones_coalesce() -> None:
    output = pack(range(10))
    stream = ClientStream(0, 50_000, None)
    assert stream.wait_us(0, False, 0) is None
    assert len(drain(stream, output, 1, False, 0)) == 1
    assert stream.wait_us(2, False, 1_000) == 9_000
    assert drain(stream, output, 2, False, 9_999) == []
    [event] = drain(stream, output, 5, False, 10_000)
    assert unpack(event.delta.token_ids.packed) == [1, 2, 3, 4]


def test_a_tight_pace_coalesces_less() -> None:
    stream = ClientStream(0, 8_000, None)
    drain(stream, pack(range(2)), 1, False, 0)
    assert stream.wait_us(2, False, 0) == 2_000


def test_the_end_waits_for_nothing() -> None:
    stream = ClientStream(0, 50_000, None)
    drain(stream, pack(range(3)), 1, False, 0)
    assert len(drain(stream, pack(range(3)), 3, True, 1)) == 2


def test_a_delta_is_bounded() -> None:
    stream = ClientStream(0, 0, None)
    events = drain(stream, pack(range(5_000)), 5_000, False, 0)
    assert max(len(unpack(event.delta.token_ids.packed)) for event in events) == DELTA_TOKENS


def test_notices_are_bounded_and_the_newest_survive() -> None:
    stream = ClientStream(0, 50_000, None)
    for index in range(NOTICE_LIMIT + 5):
        stream.notice(Notice(message=str(index)))
    events = drain(stream, b"", 0, False, 0)
    assert len(events) == NOTICE_LIMIT and events[-1].notice.message == str(NOTICE_LIMIT + 4)


def test_measured() -> None:
    measured = Measured(1_000)
    measured.queued(1, 4_000)
    measured.queued(2, 5_000)
    measured.queued(1, 9_000)
    assert (measured.ttft_us, measured.max_gap_us, measured.tokens) == (3_000, 4_000, 4)
    outcome = measured.outcome(sampling_pb2.FINISH_REASON_LENGTH, 4, False, 10_000)
    assert (outcome.tpot_us, outcome.ended_us) == (1_666, 9_000)
    assert Measured(0).outcome(sampling_pb2.FINISH_REASON_CANCELLED, 0, False, 5).first_token_us is None


@given(st.lists(st.integers(0, 500_000), max_size=40), st.integers(0, 100))
def test_the_longest_pauses_are_kept_in_order_of_time(gaps: list[int], next_index: int) -> None:
    measured, now_us = Measured(0, next_index=next_index), 1_000
    measured.queued(2, now_us)
    began = []
    for gap in gaps:
        began.append(now_us)
        now_us += gap
        measured.queued(1, now_us)
    told = measured.proto()
    assert (told.first_token_us, told.last_token_us) == (1_000, now_us)
    assert sorted(p.length_us for p in told.pauses) == sorted(gaps)[-PAUSES_KEPT:]
    indices = [pause.next_index for pause in told.pauses]
    assert indices == sorted(indices)
    for pause in told.pauses:
        at = pause.next_index - next_index - 2
        assert (pause.began_us, pause.length_us) == (began[at], gaps[at])
    assert measured.max_gap_us == max(gaps, default=0)
