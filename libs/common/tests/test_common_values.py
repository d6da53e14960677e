"""Attempts, packed tokens, clocks, step times and verdicts."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperflexis.common.v1 import sampling_pb2, slo_pb2
from hyperflexis_common.attempt import NO_ATTEMPT, Attempt, WorkerKey
from hyperflexis_common.clock import FakeClock, SystemClock
from hyperflexis_common.logs import drop_private
from hyperflexis_common.step_time import SEEDS, StepShape, StepTimeModel
from hyperflexis_common.tokens import count, extend_crc, pack, unpack
from hyperflexis_common.verdict import Outcome, verdict

token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=50)
SLO = slo_pb2.Slo(ttft_us=1_000, tpot_us=100)


@given(token_lists)
def test_packing_round_trips(tokens: list[int]) -> None:
    packed = pack(tokens)
    assert unpack(packed) == tokens
    assert count(packed) == len(tokens)


@given(token_lists, token_lists)
def test_the_crc_of_a_prefix_extends(first: list[int], second: list[int]) -> None:
    assert extend_crc(extend_crc(0, pack(first)), pack(second)) == zlib.crc32(pack(first + second))


def test_bad_tokens_are_errors() -> None:
    assert pack([1, 256]) == b"\x01\0\0\0\0\x01\0\0"
    with pytest.raises(ValueError, match="multiple of 4"):
        unpack(b"abc")
    for bad in (-1, 2**32):
        with pytest.raises(OverflowError):
            pack([bad])


@given(st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)), st.tuples(st.integers(0, 2**63), st.integers(0, 2**63)))
def test_attempts_compare_lexicographically_and_survive_the_wire(a: tuple[int, int], b: tuple[int, int]) -> None:
    assert (Attempt(*a) < Attempt(*b)) == (a < b)
    assert Attempt.of(Attempt(*a).proto()) == Attempt(*a)
    assert Attempt(*a) >= NO_ATTEMPT


def test_worker_keys_survive_the_wire() -> None:
    key = WorkerKey("w", 2**64 - 1)
    assert WorkerKey.of(key.proto()) == key
    assert str(key) == "w:ffffffffffffffff"


def test_clocks() -> None:
    clock = FakeClock(10)
    assert clock.advance(5) == clock.now_us() == 15
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)
    assert abs(SystemClock(5_000_000).now_us() - SystemClock(0).now_us() - 5_000_000) < 1_000_000


def test_step_time_is_the_stated_sum() -> None:
    model = StepTimeModel(100, 1, 2, 0.5, 0.25, 3, host_us=10)
    shape = StepShape(prefill_chunks=((300, 100),), decodes=4, decode_context_tokens=1_000)
    assert model.predict_us(shape) == 100 + 256 + 2 * 48 + 0.5 * 300 * 250 + 0.25 * 1_000 + 3 * 4 + 10
    assert model.predict_us(StepShape()) == 0


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_more_work_never_takes_less_time(name: str) -> None:
    model = SEEDS[name]
    times = [
        model.predict_us(StepShape(((chunk, 1_000),), decodes, decodes * 1_000))
        for chunk, decodes in ((1, 0), (256, 0), (256, 8), (512, 8), (2_048, 64))
    ]
    assert times == sorted(times)


def outcome(**changes: object) -> Outcome:
    values: dict[str, object] = {
        "reason": sampling_pb2.FINISH_REASON_LENGTH,
        "output_tokens": 11,
        "first_token_us": 1_000,
        "last_token_us": 2_000,
        "ended_us": 2_000,
        **changes,
    }
    return Outcome(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, slo_pb2.VERDICT_ATTAINED),
        ({"first_token_us": 1_001, "last_token_us": 2_001}, slo_pb2.VERDICT_MISSED),
        ({"last_token_us": 2_010}, slo_pb2.VERDICT_MISSED),
        ({"output_tokens": 1, "last_token_us": 1_000}, slo_pb2.VERDICT_ATTAINED),
        ({"downgraded": True}, slo_pb2.VERDICT_MISSED),
        ({"reason": sampling_pb2.FINISH_REASON_REFUSED, "first_token_us": None}, slo_pb2.VERDICT_MISSED),
        ({"reason": sampling_pb2.FINISH_REASON_ERROR}, slo_pb2.VERDICT_MISSED),
        ({"reason": sampling_pb2.FINISH_REASON_STOP_STRING}, slo_pb2.VERDICT_ATTAINED),
        ({"reason": sampling_pb2.FINISH_REASON_CANCELLED}, slo_pb2.VERDICT_EXCLUDED),
        ({"reason": sampling_pb2.FINISH_REASON_CANCELLED, "last_token_us": 3_000}, slo_pb2.VERDICT_MISSED),
        (
            {
                "reason": sampling_pb2.FINISH_REASON_CANCELLED,
                "first_token_us": None,
                "output_tokens": 0,
                "ended_us": 900,
            },
            slo_pb2.VERDICT_EXCLUDED,
        ),
        (
            {
                "reason": sampling_pb2.FINISH_REASON_CANCELLED,
                "first_token_us": None,
                "output_tokens": 0,
                "ended_us": 1_900,
            },
            slo_pb2.VERDICT_MISSED,
        ),
    ],
)
def test_verdicts(changes: dict[str, object], expected: int) -> None:
    assert verdict(outcome(**changes), SLO) == expected


def test_private_keys_never_reach_a_log() -> None:
    event = drop_private(None, "", {"event": "x", "prompt": "secret", "api_key": "secret", "tokens": [1]})
    assert "secret" not in str(event)
    assert event["event"] == "x"
