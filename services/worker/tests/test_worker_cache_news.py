"""What reports tell of the prefix cache: whoever follows them has what is there."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from worker_rig import SECOND, ready

from hyperflexis_worker.core import cache_news
from hyperflexis_worker.core.cache_news import CacheNews
from hyperflexis_worker.core.engine_event import EngineEvent

DIGESTS = [bytes([number]) * 16 for number in range(8)]
changes = st.lists(st.tuples(st.booleans(), st.sampled_from(DIGESTS)), max_size=6)


def split(packed):
    return {packed[at : at + 16] for at in range(0, len(packed), 16)}


@given(st.lists(st.one_of(changes, st.sampled_from(["told", "begin", "lost"])), max_size=30), st.integers(1, 4))
def test_a_follower_has_what_is_there(story, per_report):
    news, there, follower = CacheNews(), set(), None
    limit, cache_news.PER_REPORT = cache_news.PER_REPORT, per_report
    try:
        for event in [*story, *["told"] * 10]:
            if event == "told" and news:
                told = news.take()
                follower = set() if told.reset else follower
                follower = (follower - split(told.removed)) | split(told.stored)
            elif event == "begin":
                follower = None
                news.begin()
            elif event == "lost":
                there.clear()
                news.lost()
            elif event != "told":
                for stored, digest in event:
                    there.add(digest) if stored else there.discard(digest)
                news.changed(event)
        assert not news and follower == there
    finally:
        cache_news.PER_REPORT = limit


def test_reports_carry_it_and_a_new_leader_is_told_everything():
    rig = ready()
    rig.take(rig.core.engine_stepped(EngineEvent(adds_applied=1, cache=[(True, DIGESTS[0])]), rig.now_us))
    rig.pass_time(SECOND)
    assert split(rig.reports()[-1].cache.stored) == {DIGESTS[0]} and rig.reports()[-1].cache.reset
    rig.pass_time(SECOND)
    assert not rig.reports()[-1].HasField("cache")
    rig.take(rig.core.scheduler_closed(rig.now_us))
    rig.connect(epoch=2)
    rig.pass_time(SECOND)
    assert split(rig.reports()[-1].cache.stored) == {DIGESTS[0]} and rig.reports()[-1].cache.reset
    rig.lose_engine()
    assert rig.reports()[-1].cache.reset and not rig.reports()[-1].cache.stored
