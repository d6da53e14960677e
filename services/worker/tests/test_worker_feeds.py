"""The worker's rules of feeds: Start, replay, who owns a stream, how long its tokens stay."""

from __future__ import annotations

import math

from worker_rig import SECOND, Update, ready

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.tokens import extend_crc, pack, unpack, unpack_floats
from hyperflexis_worker.core.effects import AddSequence, DropSequence, ToFeed
from hyperflexis_worker.core.engine_event import EngineEvent, NewTokens
from hyperflexis_worker.core.retained import RETAIN_US
from hyperflexis_worker.core.streams import ORPHAN_GRACE_US
from hyperflexis_worker.steps.sampled import TokenLogprobs


def test_generation_goes_on_after_the_committed_tokens() -> None:
    rig = ready()
    rig.run()
    rig.start(committed=[7, 8])
    (add,) = rig.of(AddSequence)
    assert isinstance(add, AddSequence)
    assert add.sequence.output == [7, 8]
    rig.step(("a", Attempt(1, 1), 2, 9))
    assert rig.entries() == [(2, [9], extend_crc(0, pack([7, 8, 9])))]


def test_replay_from_any_index_then_on() -> None:
    rig = ready()
    rig.run()
    rig.start()
    for index in range(3):
        rig.step(("a", Attempt(1, 1), index, 10 + index))
    rig.take(rig.core.feed_closed(1, rig.now_us))
    rig.step(("a", Attempt(1, 1), 3, 13))
    assert rig.out == []
    rig.open_feed(2)
    rig.feed(2, subscribe=tf.Subscribe(request_id="a", attempt=Attempt(1, 1).proto(), next_index=1))
    assert [(start, tokens) for start, tokens, _ in rig.entries(2)] == [(1, [11, 12, 13])]
    rig.step(("a", Attempt(1, 1), 4, 14))
    assert [(start, tokens) for start, tokens, _ in rig.entries(2)] == [(4, [14])]


def test_the_newest_subscriber_owns_the_stream() -> None:
    rig = ready()
    rig.open_feed(2)
    rig.run()
    rig.start()
    rig.feed(2, subscribe=tf.Subscribe(request_id="a", attempt=Attempt(1, 1).proto(), next_index=0))
    rig.step(("a", Attempt(1, 1), 0, 5))
    assert rig.entries(1) == []
    assert len(rig.entries(2)) == 1
    rig.feed(1, closed=tf.Closed(request_ids=["a"]))
    assert not rig.of(DropSequence), "the older owner's Closed does not count"


def test_finished_tokens_stay_until_closed_or_their_time() -> None:
    for end in ("closed", "time"):
        rig = ready()
        rig.run()
        rig.start()
        rig.step(("a", Attempt(1, 1), 0, 5), ended=("a", Attempt(1, 1)))
        finished = [f for e in rig.out if isinstance(e, ToFeed) for f in e.message.step.finished]
        assert [(f.output_tokens, f.crc) for f in finished] == [(1, extend_crc(0, pack([5])))]
        rig.feed(subscribe=tf.Subscribe(request_id="a", attempt=Attempt(1, 1).proto(), next_index=0))
        assert len(rig.entries()) == 1
        if end == "closed":
            rig.feed(closed=tf.Closed(request_ids=["a"]))
        else:
            rig.pass_time(RETAIN_US + 1)
        rig.feed(subscribe=tf.Subscribe(request_id="a", attempt=Attempt(1, 1).proto(), next_index=0))
        assert [gone.reason for gone in rig.gone()] == [tf.Gone.REASON_UNKNOWN]
        assert rig.core.requests.statuses() == []


def test_closed_stops_what_runs() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.feed(closed=tf.Closed(request_ids=["a"]))
    assert rig.of(DropSequence)
    assert ("a", Update.KIND_CANCELLED) in rig.updates()
    rig.run()
    rig.start()
    assert not rig.of(AddSequence), "this attempt is over"
    rig.run(attempt=Attempt(1, 9))
    rig.start(attempt=Attempt(1, 9))
    assert rig.of(AddSequence), "its client came back for it elsewhere"


def test_closed_of_an_unknown_request_bars_every_attempt() -> None:
    rig = ready()
    rig.feed(closed=tf.Closed(request_ids=["a"]))
    rig.run(attempt=Attempt(1, 9))
    rig.start(attempt=Attempt(1, 9))
    assert not rig.of(AddSequence)


def test_an_orphan_runs_on_for_its_grace_and_no_longer() -> None:
    for grace_us, limit_us in ((0, ORPHAN_GRACE_US), (20 * SECOND, 20 * SECOND)):
        rig = ready()
        rig.run()
        rig.start(detach_grace_us=grace_us)
        rig.take(rig.core.feed_closed(1, rig.now_us))
        rig.pass_time(limit_us - 1)
        assert not rig.of(DropSequence)
        rig.pass_time(2)
        assert rig.of(DropSequence) == [DropSequence("a", Attempt(1, 1))]


def test_a_resumed_orphan_is_none() -> None:
    rig = ready()
    rig.run()
    rig.start()
    rig.take(rig.core.feed_closed(1, rig.now_us))
    rig.open_feed(2)
    rig.feed(2, subscribe=tf.Subscribe(request_id="a", attempt=Attempt(1, 1).proto(), next_index=0))
    rig.pass_time(10 * ORPHAN_GRACE_US)
    assert not rig.of(DropSequence)


def test_logprobs_go_with_their_tokens_and_are_replayed() -> None:
    rig = ready()
    rig.core.profile.capabilities.sampling_features.append("logprobs")
    rig.run()
    rig.start(committed=[7], sampling=sampling_pb2.SamplingParams(logprobs=2))

    def step(index: int, *top: tuple[int, float]) -> tf.EntryLogprobs:
        told = [TokenLogprobs(-1.0 - index, top)]
        new = NewTokens("a", Attempt(1, 1), index, pack([index]), told)
        rig.take(rig.core.engine_stepped(EngineEvent(adds_applied=1, tokens=[new]), rig.now_us))
        return logprobs()

    def logprobs() -> tf.EntryLogprobs:
        (entry,) = [one for e in rig.out if isinstance(e, ToFeed) for one in e.message.step.logprobs]
        return entry

    first = step(1, (5, -0.5), (6, -1.5))
    assert (first.entry, unpack_floats(first.chosen), first.width) == (0, [-2.0], 2)
    assert (unpack(first.top_ids), unpack_floats(first.top)) == ([5, 6], [-0.5, -1.5])
    step(2)
    rig.feed(subscribe=tf.Subscribe(request_id="a", attempt=Attempt(1, 1).proto(), next_index=0))
    chosen = unpack_floats(logprobs().chosen)
    assert math.isnan(chosen[0]), "another worker made the committed one"
    assert chosen[1:] == [-2.0, -3.0] and logprobs().width == 2


def test_a_start_that_cannot_run_is_refused_with_the_reason() -> None:
    for values, part in (
        ({"prompt": b""}, "empty"),
        ({"prompt": b"abc"}, "packed"),
        ({"prompt": pack([1_000])}, "vocabulary of 1000"),
        ({"max_tokens": 98}, "context of 100"),
        ({"sampling": sampling_pb2.SamplingParams(min_p=0.1)}, "does not honour min_p"),
        ({"sampling": sampling_pb2.SamplingParams(logit_bias={1_000: 1.0})}, "logit_bias of token id 1000"),
    ):
        rig = ready()
        if "min_p" not in part:
            rig.core.profile.capabilities.sampling_features.append("logit_bias")
        rig.start(**values)
        (gone,) = rig.gone()
        assert gone.reason == tf.Gone.REASON_INVALID
        assert part in gone.message
