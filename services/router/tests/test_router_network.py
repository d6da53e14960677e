"""The core in a virtual network that delays, drops, repeats and cuts: the committed stream is the reference."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from router_storm import World, reference

from hyperflexis.common.v1 import sampling_pb2


@given(st.integers(0, 2**32), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_whatever_goes_wrong_the_committed_stream_is_the_reference(seed: int, requests: int) -> None:
    world = World(seed, requests)
    world.run()
    for index in range(requests):
        [end] = world.ends[f"r{index}"]
        assert end.reason == sampling_pb2.FINISH_REASON_LENGTH
        assert world.committed[f"r{index}"] == reference(index)
    assert len(world.core) == 0


def test_the_network_is_a_hard_one() -> None:
    """The test above would prove nothing in a network where nothing went wrong."""
    world = World(7, 4)
    world.run()
    assert max(end.attempts for ends in world.ends.values() for end in ends) > 1
    assert world.session_life + sum(world.feeds.values()) > 4
