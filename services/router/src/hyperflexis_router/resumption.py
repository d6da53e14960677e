"""A request on its way over from another router, or from an earlier stream."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc

from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis.router.v1.inference_service_pb2 import GenerateRequest
from hyperflexis_common.redis_access import RedisAway
from hyperflexis_common.tokens import TOKEN_BYTES, count, unpack
from hyperflexis_router.admission import InFlight
from hyperflexis_router.core.submission import NewRequest, ResumedRequest
from hyperflexis_router.intake import RETRY_REDIS_US, Intake, new_owner_gen
from hyperflexis_router.live import LiveRequest
from hyperflexis_router.rejection import Rejected, not_found, retry_after
from hyperflexis_router.store import OTHER_OWNER, OwnershipLost, Record
from hyperflexis_router.switchboard import Switchboard

REQUEST_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Resumption:
    intake: Intake
    board: Switchboard
    in_flight: InFlight
    _taking: set[str] = field(default_factory=set)

    async def take(
        self,
        request_id: str,
        tenant: str,
        next_index: int,
        tail: bytes,
        detach_grace_us: int | None,
        original: GenerateRequest | None = None,
    ) -> LiveRequest:
        """The request, owned by this router, with every token before next_index. Raises Rejected.

        `original`: what the client asked for at first; it serves where no record can be had.
        """
        here = await self._here(request_id)
        if here is not None:
            if here.new.tenant != tenant:
                raise not_found(request_id)
            if self._goes_on(here, next_index, tail):
                if detach_grace_us is not None:
                    here.new = dataclasses.replace(here.new, detach_grace_us=detach_grace_us)
                return here
        if original is None:
            record: Record | None = await self.read(request_id, tenant)
        else:
            record = await self._find(request_id, tenant)
            if record is not None and record.finished is not None and next_index > count(record.journal):
                record = None  # closed by an owner that did not know that it went on elsewhere
        with self._alone(request_id, here), self.in_flight.until_kept(tenant) as kept:
            if record is None:
                assert original is not None
                live = await self._begin_again(request_id, tenant, next_index, tail, original)
            else:
                self._check_tail(tail, record.model)
                rebuild(record, next_index, tail)
                record = await self.adopt(record, next_index - count(tail), tail)
                live = await self._revive(record, next_index, tail, detach_grace_us)
            if here is not None:
                self.board.release(here)
            if live.finished is None:
                kept[0] = True
                self.board.add(live)
        return live

    async def _here(self, request_id: str) -> LiveRequest | None:
        """This router's own, unless another one has taken it: that is heard of once a second only, and this client
        may just come from there."""
        live = self.board.find(request_id)
        if live is None or not live.recorded or live.finished is not None:
            return live
        with contextlib.suppress(RedisAway):
            [answer] = await self.intake.store.run([self.intake.store.touch(live.new, live.origin, live.state)])
            if answer == OTHER_OWNER:
                self.board.release(live)
        return self.board.find(request_id)

    def _goes_on(self, live: LiveRequest, next_index: int, tail: bytes) -> bool:
        """Can the client go on with what is here? Tokens that it has beyond that, from another router, are taken. False
        where it has others than this router, or more than what ended here: its own are the truth, as they are against a
        journal. Raises Rejected."""
        self._check_tail(tail, live.new.model)
        base = _base(next_index, tail)
        if live.finished is not None and tail and next_index > live.available:
            return False  # it ended here, for want of its client, and went on elsewhere
        _check_reach(live.available, base if tail else next_index)
        here = bytes(live.packed[base * TOKEN_BYTES : next_index * TOKEN_BYTES])
        if tail[: len(here)] != here and tail:
            if live.finished is not None:
                raise _differs(next_index)
            return False
        more = tail[len(here) :]
        if more and live.finished is None:
            self.board.extend(live, more)
        _check_reach(live.available, next_index)
        return True

    async def read(self, request_id: str, tenant: str) -> Record:
        """A record of this tenant. Raises Rejected."""
        try:
            record = await self.intake.store.read(request_id)
        except RedisAway as error:
            raise _away() from error
        if record is None or record.tenant != tenant:
            raise not_found(request_id)
        return record

    async def _find(self, request_id: str, tenant: str) -> Record | None:
        """A record of this tenant, or None where there is none or Redis does not say. (The scheduler refuses a
        tenant who names a request of another one.) Raises Rejected."""
        try:
            record = await self.intake.store.read(request_id)
        except RedisAway:
            return None
        if record is not None and record.tenant != tenant:
            raise not_found(request_id)
        return record

    @contextlib.contextmanager
    def _alone(self, request_id: str, here: LiveRequest | None) -> Iterator[None]:
        """One take-over of a request at a time. Raises Rejected for the others. `here`: what is to be replaced."""
        if request_id in self._taking or self.board.find(request_id) not in (None, here):
            raise Rejected(grpc.StatusCode.ABORTED, "another stream resumed this request at the same moment")
        self._taking.add(request_id)
        try:
            yield
        finally:
            self._taking.discard(request_id)

    def _check_tail(self, tail: bytes, model: str) -> None:
        spec = self.intake.catalog.models.get(model)
        if spec is None or len(tail) % TOKEN_BYTES:
            return  # what else is wrong is said elsewhere
        highest = max(unpack(tail), default=0)
        if highest >= spec.vocab_size:
            message = f"tail: token id {highest} is outside the vocabulary of {spec.vocab_size}"
            raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, message)

    async def adopt(
        self, record: Record, index: int = 0, tokens: bytes = b"", end: inference_service_pb2.Finished | None = None
    ) -> Record:
        """Makes this router the owner, and the client's tokens from `index` on the truth; `end` closes the record too.
        Raises Rejected where another router was first."""
        store, gen = self.intake.store, new_owner_gen()
        then = [store.finish(record.request_id, gen, end, record.tenant, record.origin)] if end is not None else []
        try:
            adopted = await store.adopt(record.request_id, record.owner_gen, gen, index, tokens, then)
        except RedisAway as error:
            raise _away() from error
        except OwnershipLost as error:
            message = "another router resumed this request at the same moment"
            raise Rejected(grpc.StatusCode.ABORTED, message) from error
        if adopted is None:
            raise not_found(record.request_id)
        return adopted

    async def _begin_again(
        self, request_id: str, tenant: str, next_index: int, tail: bytes, original: GenerateRequest
    ) -> LiveRequest:
        """From what the client holds alone: its request and all of its tokens."""
        if not REQUEST_ID.fullmatch(request_id):
            raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, "request_id: must be one that a router gave out")
        if len(tail) != next_index * TOKEN_BYTES:
            message = f"no record of this request is left: send all {next_index} tokens as tail, not {count(tail)}"
            raise Rejected(grpc.StatusCode.FAILED_PRECONDITION, message)
        sampling = original.sampling
        if not (sampling.HasField("seed") and sampling.HasField("max_tokens")):
            message = "original: needs sampling.seed and sampling.max_tokens as Accepted stated them"
            raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, message)
        self._check_tail(tail, original.model)
        checked = await self.intake.check(original, tenant, self.intake.clock.now_us())
        fields = {f.name: getattr(checked.new, f.name) for f in dataclasses.fields(NewRequest)}
        new = ResumedRequest(**{**fields, "request_id": request_id}, committed=tail)
        text = self.intake.text(new, checked.origin.return_text)
        # The key of the first Generate, if it had one, stays with the record of that.
        origin = dataclasses.replace(checked.origin, idempotency_key="")
        live = await asyncio.to_thread(LiveRequest, new, origin, text)
        live.begun_again = True
        return live

    async def _revive(self, record: Record, next_index: int, tail: bytes, detach_grace_us: int | None) -> LiveRequest:
        committed = rebuild(record, next_index, tail)
        now_us = self.intake.clock.now_us()
        new = ResumedRequest(
            request_id=record.request_id,
            model=record.model,
            tenant=record.tenant,
            prompt=record.prompt,
            sampling=record.sampling,
            max_tokens=record.max_tokens,
            slo=record.slo,
            received_us=now_us - record.age_us,
            detach_grace_us=record.detach_grace_us if detach_grace_us is None else detach_grace_us,
            owner_gen=record.owner_gen,
            committed=committed,
        )
        text = self.intake.text(new, record.origin.return_text)
        # Decoding a long output anew takes a while; other streams go on meanwhile.
        live = await asyncio.to_thread(LiveRequest, new, record.origin, text, record.first_token_us)
        live.prompt_tokens = record.prompt_tokens
        live.recorded = True
        live.journaled = count(record.journal)
        if record.served_slo is not None:
            live.downgraded = live.downgrade_recorded = True
            live.slo = record.served_slo
        if record.finished is not None:
            live.restore(record.finished)
        return live


def rebuild(record: Record, next_index: int, tail: bytes) -> bytes:
    """The committed tokens. Raises Rejected.

    journal[: next_index - len(tail)] + tail, and, where the client agrees with it, what the journal has beyond:
    committed tokens are never taken back.
    """
    base = _base(next_index, tail)
    _check_reach(count(record.journal), base if tail else next_index)
    known = record.journal[base * TOKEN_BYTES : next_index * TOKEN_BYTES]
    if tail[: len(known)] == known:
        return record.journal[: base * TOKEN_BYTES] + tail + record.journal[next_index * TOKEN_BYTES :]
    if record.finished is not None:
        raise _differs(next_index)
    return record.journal[: base * TOKEN_BYTES] + tail


def _base(next_index: int, tail: bytes) -> int:
    """The index at which the client's tail begins. Raises Rejected."""
    if len(tail) % TOKEN_BYTES:
        message = f"tail: must be packed 32-bit ids, a multiple of 4 bytes, not {len(tail)}"
        raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, message)
    if count(tail) > next_index:
        message = f"tail: {count(tail)} tokens cannot end at next_index {next_index}"
        raise Rejected(grpc.StatusCode.INVALID_ARGUMENT, message)
    return next_index - count(tail)


def _differs(next_index: int) -> Rejected:
    message = f"tail: differs from the finished request's tokens before index {next_index}"
    return Rejected(grpc.StatusCode.INVALID_ARGUMENT, message)


def _check_reach(available: int, next_index: int) -> None:
    if next_index > available:
        message = f"tokens are known up to index {available} only; resume from there, or send the tokens before as tail"
        raise Rejected(grpc.StatusCode.FAILED_PRECONDITION, message)


def _away() -> Rejected:
    message = "Redis does not answer, so requests of other routers cannot be found; try again"
    return Rejected(grpc.StatusCode.UNAVAILABLE, message, [retry_after(RETRY_REDIS_US)])
