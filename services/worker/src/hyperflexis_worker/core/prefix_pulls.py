"""Prefixes read from peers that keep them, before a request goes to the engine (docs/protocol.md, "Prefixes").

    reserve blocks, ask what is there -> read what is not here -> was the lease alive all the while? -> found here

The request waits meanwhile and may be revoked; whatever fails, or takes too long, leaves it to be computed like others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import worker_service_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.prefix import HASH_BYTES, prefix_hashes
from hyperflexis_worker.core.arrivals import LEASE_MARGIN_US, Step
from hyperflexis_worker.core.effects import (
    AskPrefix,
    AskRelease,
    Effect,
    KeepPrefix,
    PullBlocks,
    ReservePrefix,
    UnreserveBlocks,
)
from hyperflexis_worker.core.peer_links import PeerLinks
from hyperflexis_worker.core.questions import Questions
from hyperflexis_worker.core.request import Request

LIMIT_US = 500_000
"""A request waits this long at most for its prefix ..."""
TTFT_SHARE = 0.25
"""... and no longer than this part of the time that is left until its first token is due."""


@dataclass(slots=True, eq=False)
class _Pull:
    """One request that waits for its prefix."""

    request: Request
    source: worker_session_pb2.PrefixSource
    hashes: bytes
    """Of what is to be had at most."""
    began_us: int
    until_us: int
    step: Step = Step.ASKING
    cached: int | None = None
    """Blocks that were here; None = the engine has not said."""
    blocks: list[int] | None = None
    """At the source, of the whole prefix that is there; None = it has not said."""
    engine: str = ""
    lease_id: int = 0
    lease_ends_us: int = 0
    """When what is read under it counts no more, on this clock."""


class PrefixPulls:
    """`over` is told once for each request that came by `begin`, unless it is abandoned: it goes to the engine then."""

    def __init__(
        self,
        effects: list[Effect],
        links: PeerLinks,
        block_tokens: int,
        numbers: Iterator[int],
        over: Callable[[Request, int], None],
    ) -> None:
        """`block_tokens`: of a block of the prefix cache; 0 = there is none."""
        self._effects = effects
        self._links = links
        self._block_tokens = block_tokens
        self._questions: Questions[_Pull] = Questions(numbers)
        self._over = over
        self._pulls: dict[str, _Pull] = {}
        self._asked: dict[int, str] = {}
        """Who is being asked what it keeps: whatever it leases is given back, if nobody wants it by then."""
        self.outcomes: Counter[str] = Counter()
        """`read`, or why not."""

    def __len__(self) -> int:
        return len(self._pulls)

    @property
    def tokens(self) -> int:
        """To be prefilled of those that wait, beside what they wait for."""
        hoped = sum(len(pull.hashes) // HASH_BYTES * self._block_tokens for pull in self._pulls.values())
        return sum(pull.request.prompt_tokens + pull.request.count for pull in self._pulls.values()) - hoped

    def begin(self, request: Request, now_us: int) -> bool:
        """False where there is nothing to wait for. Both halves of the request are here."""
        run, start = request.run, request.start
        assert run is not None and start is not None
        if not run.HasField("prefix_source") or not self._block_tokens or not self._links.layout:
            return False
        # The last token is always computed.
        blocks = min(run.prefix_source.tokens, packing.count(start.prompt) - 1) // self._block_tokens
        left_us = request.run_arrival_us + run.slo.ttft_us - now_us
        limit_us = min(int(left_us * TTFT_SHARE), LIMIT_US)
        if blocks < 1 or limit_us <= 0:
            return False
        prefix = start.prompt[: blocks * self._block_tokens * packing.TOKEN_BYTES]
        hashes = prefix_hashes(prefix, self._block_tokens)
        pull = _Pull(request, run.prefix_source, hashes, now_us, now_us + limit_us)
        self._pulls[request.request_id] = pull
        request.pulling = True
        self._effects.append(ReservePrefix(request.request_id, request.attempt, hashes))
        worker, number = pull.source.worker, self._questions.ask(pull)
        self._asked[number] = worker.address
        ask = worker_service_pb2.ExportPrefixRequest(incarnation=worker.incarnation, hashes=hashes)
        self._effects.append(AskPrefix(number, worker.address, ask))
        return True

    def abandon(self, request_id: str) -> None:
        """It is not wanted any more; nobody is told."""
        pull = self._pulls.get(request_id)
        if pull is not None:
            self._forget(pull)

    def abandon_all(self) -> None:
        for pull in list(self._pulls.values()):
            self._forget(pull)

    # --- answers -----------------------------------------------------------------------------------------

    def reserved(self, request_id: str, attempt: Attempt, ok: bool, cached: int, now_us: int) -> None:
        pull = self._pulls.get(request_id)
        if pull is None or pull.request.attempt != attempt or pull.cached is not None:
            return
        if not ok:
            return self._fail(pull, "no_blocks", now_us)
        if cached * HASH_BYTES >= len(pull.hashes):
            return self._fail(pull, "here_already", now_us)
        pull.cached = cached
        self._link(pull, now_us)

    def exported(
        self, number: int, response: worker_service_pb2.ExportPrefixResponse | None, error: str, now_us: int
    ) -> None:
        """The source's answer to AskPrefix; None where there was none."""
        pull, address = self._questions.answered(number), self._asked.pop(number, "")
        if pull is None:
            if response is not None and address:
                self._effects.append(AskRelease(0, address, response.lease_id))
            return
        if response is None:
            return self._fail(pull, error or "source_refused", now_us)
        pull.lease_id = response.lease_id
        pull.lease_ends_us = pull.began_us + response.lease_us - LEASE_MARGIN_US
        pull.engine = response.engine
        pull.blocks = packing.unpack(response.parts[0].block_ids) if response.parts else []
        self._link(pull, now_us)

    def _link(self, pull: _Pull, now_us: int) -> None:
        """Once both have answered."""
        if pull.cached is None or pull.blocks is None:
            return
        if len(pull.blocks) <= pull.cached:
            return self._fail(pull, "no_more_there", now_us)
        pull.step = Step.LINKING
        self._links.need(pull.engine, pull.source.worker, partial(self._linked, pull), now_us)

    def _linked(self, pull: _Pull, error: str, now_us: int) -> None:
        if self._pulls.get(pull.request.request_id) is not pull:
            return
        if error:
            return self._fail(pull, error, now_us)
        assert pull.blocks is not None and pull.cached is not None
        pull.step = Step.READING
        within_us = min(pull.lease_ends_us, pull.until_us) - now_us
        if within_us <= 0:
            return self._fail(pull, "timeout_linking", now_us)
        request, number, blocks = pull.request, self._questions.ask(pull), pull.blocks[pull.cached :]
        read = (pull.engine, pull.lease_id, pull.cached, blocks, within_us)
        # Nobody stands still for it: it goes with the pre-copies, in pieces, and lets last reads pass.
        self._effects.append(PullBlocks(number, request.request_id, request.attempt, *read, last=False))

    def pulled(self, number: int, error: str, now_us: int) -> None:
        pull = self._questions.answered(number)
        if pull is None:
            return
        if error:
            if now_us < pull.until_us:  # else it only was too slow for this one
                self._links.lost(pull.engine)
            return self._fail(pull, "read_failed", now_us)
        if now_us >= pull.lease_ends_us:
            return self._fail(pull, "lease_over", now_us)
        pull.step = Step.RELEASING
        self._effects.append(AskRelease(self._questions.ask(pull), pull.source.worker.address, pull.lease_id))

    def released(self, number: int, held: bool, error: str, now_us: int) -> None:
        pull = self._questions.answered(number)
        if pull is None or pull.blocks is None or pull.cached is None:
            return
        pull.lease_id = 0
        if error or not held:
            return self._fail(pull, error or "lease_over", now_us)
        request, blocks = pull.request, len(pull.blocks)
        del self._pulls[request.request_id]
        request.pulled_tokens = (blocks - pull.cached) * self._block_tokens
        self._effects.append(KeepPrefix(request.request_id, request.attempt, pull.hashes[: blocks * HASH_BYTES]))
        self._end(pull, "read", now_us)

    def tick(self, now_us: int) -> None:
        for pull in [pull for pull in self._pulls.values() if pull.until_us <= now_us]:
            self._fail(pull, f"timeout_{pull.step.value}", now_us)

    # --- inside ------------------------------------------------------------------------------------------

    def _fail(self, pull: _Pull, reason: str, now_us: int) -> None:
        self._forget(pull)
        self._end(pull, reason, now_us)

    def _end(self, pull: _Pull, outcome: str, now_us: int) -> None:
        self.outcomes[outcome] += 1
        pull.request.pulling = False
        pull.request.pull_us = now_us - pull.began_us
        self._over(pull.request, now_us)

    def _forget(self, pull: _Pull) -> None:
        request = pull.request
        del self._pulls[request.request_id]
        self._questions.drop(pull)
        self._effects.append(UnreserveBlocks(request.request_id, request.attempt))
        if pull.lease_id:
            self._effects.append(AskRelease(0, pull.source.worker.address, pull.lease_id))
