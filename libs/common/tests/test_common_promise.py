from __future__ import annotations

from hyperflexis.common.v1 import slo_pb2
from hyperflexis_common.config import TierSettings
from hyperflexis_common.promise import longest_gap_us, slo_of, too_late


def test_a_tier_as_it_travels() -> None:
    slo = slo_of(TierSettings(name="x", ttft_ms=1.5, tpot_ms=100, weight=2.0, on_violation="downgrade:chat"))
    assert (slo.ttft_us, slo.tpot_us, slo.max_gap_us, slo.weight) == (1_500, 100_000, 400_000, 2.0)
    assert (slo.on_violation, slo.downgrade_tier) == (slo_pb2.ON_VIOLATION_DOWNGRADE, "chat")
    assert slo_of(TierSettings(name="x", ttft_ms=1, tpot_ms=1, on_violation="refuse")).max_gap_us == 250_000
    assert slo_of(TierSettings(name="x", ttft_ms=1, tpot_ms=1, max_gap_ms=40)).max_gap_us == 40_000


def test_the_longest_gap_grows_with_the_tpot() -> None:
    assert (longest_gap_us(30_000), longest_gap_us(150_000)) == (250_000, 600_000)


def test_a_miss_is_worded_with_its_numbers() -> None:
    assert too_late(1_234_000, slo_pb2.Slo(ttft_us=500_000)) == (
        ": its first token was predicted after 1,234 ms, promised are 500"
    )
    assert too_late(0, slo_pb2.Slo(ttft_us=500_000)) == ""
