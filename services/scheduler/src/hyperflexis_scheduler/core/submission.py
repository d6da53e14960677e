"""What routers ask: Submit, Cancel, RequestsDone (docs/protocol.md, "One resubmitter")."""

from __future__ import annotations

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.placement import Placement
from hyperflexis_scheduler.core.request import Phase, RequestState
from hyperflexis_scheduler.core.routers import RouterState


class Submissions:
    def __init__(self, cell: Cell, grants: Grants, placement: Placement) -> None:
        self._cell = cell
        self._grants = grants
        self._placement = placement

    def submit(self, router: RouterState, submit: router_session_pb2.Submit, now_us: int) -> None:
        """Answered by exactly one of Placed, Queued, Refused."""
        state = self._cell.book.get(submit.request_id)
        if state is not None and state.known and state.tenant != submit.tenant:
            # A request id is a secret, but knowing it is not enough for another tenant.
            refused = router_session_pb2.Refused(
                request_id=submit.request_id,
                reason=router_session_pb2.REFUSAL_REASON_UNSERVABLE,
                message="this request id is taken; submit it as a new request",
            )
            self._cell.to_router(router.key, refused=refused)
            return
        if state is not None and self._cancelled_by_an_older_owner(state, submit):
            self._cell.book.forget(state)
            state = None
        if state is not None and state.phase in (Phase.REFUSED, Phase.CANCELLED):
            state.router = router.key
            self._refuse_again(state)
            return
        fresh = state is None
        if state is None:
            state = self._cell.book.add(submit.request_id, now_us)
        if not state.known:
            self._cell.tally.tier(submit.slo.tier).submitted += 1
        state.take(submit, router.key, router.pulse.one_way_us, now_us)
        if fresh:
            self._first(state, submit.resume, now_us)
        elif state.phase is Phase.PLACED:
            if state.decoding and state.worker is not None:
                state.worker.decodes_now(state)  # of what only a Snapshot had shown, the TPOT was not known
            self._placed(state, now_us)
        elif state.phase is Phase.FINISHED:
            self._finished(state, now_us)
        elif state.phase is Phase.LOST:
            self._resume(state, now_us)
        else:
            self._placement.send_queued(state, now_us)

    def cancel(self, command: router_session_pb2.CancelRequestCommand, now_us: int) -> None:
        """Also remembered for an unknown id: a Submit that comes after its Cancel must not run."""
        request_id = command.request_id
        state = self._cell.book.get(request_id) or self._cell.book.add(request_id, now_us)
        if state.phase in (Phase.CANCELLED, Phase.REFUSED) or not self._owns(state, command.owner_gen):
            return
        state.owner_gen = command.owner_gen
        if state.phase is Phase.PLACED:
            self._grants.cancel_attempt(state, "cancelled by its client")
        self._grants.end(state, Phase.CANCELLED, "cancel", "client", now_us)
        state.refusal = router_session_pb2.Refused(
            request_id=request_id, reason=router_session_pb2.REFUSAL_REASON_CANCELLED, message="cancelled"
        )

    def done(self, message: router_session_pb2.RequestsDone, now_us: int) -> None:
        """Their routers need nothing more; what is left is kept for ExplainRequest only."""
        gens = message.owner_gens or [0] * len(message.request_ids)
        for request_id, owner_gen in zip(message.request_ids, gens, strict=False):
            state = self._cell.book.get(request_id)
            if state is None or not self._owns(state, owner_gen):
                continue
            state.done = True
            # A placed one occupies its worker until the worker reports its end.
            if state.phase in (Phase.HELD, Phase.SETTLING, Phase.LOST):
                self._grants.finish(state, "closed_by_router", now_us)

    @staticmethod
    def _owns(state: RequestState, owner_gen: int) -> bool:
        """A router whose client has resumed elsewhere may not know it yet: its word must not end the request."""
        return not owner_gen or not state.owner_gen or owner_gen == state.owner_gen

    @staticmethod
    def _cancelled_by_an_older_owner(state: RequestState, submit: router_session_pb2.Submit) -> bool:
        """Its client had resumed elsewhere: the Submit of its present owner shows that the Cancel came too late."""
        return state.phase is Phase.CANCELLED and state.owner_gen not in (0, submit.owner_gen) and submit.owner_gen > 0

    def settle(self, now_us: int) -> None:
        """Every known worker has sent its Snapshot or lapsed: what no Snapshot showed is placed anew."""
        self._cell.settled = True
        for request_id in list(self._cell.settling):
            state = self._cell.book.get(request_id)
            assert state is not None
            self._placement.place(state, now_us)

    def _first(self, state: RequestState, resume: bool, now_us: int) -> None:
        cell = self._cell
        if cell.book.active >= cell.rules.active_limit:
            message = f"{cell.book.active} requests are active already"
            self._placement.refuse(state, router_session_pb2.REFUSAL_REASON_QUEUE_FULL, message, now_us)
        elif resume:
            self._resume(state, now_us)
        elif now_us > state.deadline_us and state.slo.on_violation == slo_pb2.ON_VIOLATION_REFUSE:
            late_us = now_us - state.deadline_us
            message = f"its first token was due {late_us / 1e3:.0f} ms before it was submitted"
            numbers = {"late_us": float(late_us)}
            self._placement.refuse(state, router_session_pb2.REFUSAL_REASON_DEADLINE_PAST, message, now_us, numbers)
        else:
            self._placement.place(state, now_us)

    def _resume(self, state: RequestState, now_us: int) -> None:
        """No attempt of it is known to live."""
        cell = self._cell
        if cell.settled:
            self._placement.place(state, now_us)
            return
        cell.book.move(state, Phase.SETTLING, now_us)
        cell.settling[state.request_id] = None
        state.note("hold", "new_leader", now_us, {"awaited_workers": len(cell.fleet.awaited)})
        self._placement.send_queued(state, now_us)

    def _placed(self, state: RequestState, now_us: int) -> None:
        if state.router_attempt > state.attempt:
            # An older attempt than its router knows, adopted from a Snapshot: the router would ignore it.
            self._grants.cancel_attempt(state, "superseded")
            self._grants.release(state)
            self._resume(state, now_us)
        elif state.router_attempt == state.attempt and state.router_attempt_failed:
            self._replace(state, now_us)
        else:
            self._grants.send_placed(state, now_us)

    def _finished(self, state: RequestState, now_us: int) -> None:
        failed = state.router_attempt_failed and state.router_attempt >= state.attempt
        # One below what its router knows is no answer to it: the router would pass over it, and wait.
        lower = state.router_attempt > state.attempt
        if failed or lower or state.worker is None or state.worker.gone:
            self._replace(state, now_us)
        else:
            self._grants.send_placed(state, now_us)

    def _replace(self, state: RequestState, now_us: int) -> None:
        """The router says that the current attempt cannot deliver."""
        self._grants.cancel_attempt(state, "its router gave it up")
        state.avoid = state.worker.key if state.worker is not None else None
        state.note("lost", "failed_for_router", now_us)
        self._placement.place(state, now_us)

    def _refuse_again(self, state: RequestState) -> None:
        self._cell.to_router(state.router, refused=state.refusal)
