"""The life of an attempt: granted, found again in a Snapshot, lost, cancelled, finished.

Only here do a request's placement and the worker's indices change, so that they cannot disagree. The old
attempt is always cancelled before a new one is granted.
"""

from __future__ import annotations

from collections.abc import Mapping

from hyperflexis.scheduler.v1 import router_session_pb2, worker_session_pb2
from hyperflexis_common.attempt import Attempt
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.request import Note, Phase, RequestState
from hyperflexis_scheduler.core.worker import WorkerState


class Grants:
    def __init__(self, cell: Cell) -> None:
        self._cell = cell

    def grant(
        self,
        state: RequestState,
        worker: WorkerState,
        reason: str,
        numbers: Mapping[str, float],
        now_us: int,
        source: worker_session_pb2.PrefixSource | None = None,
    ) -> None:
        """Run to the worker, Placed to the router. `source`: where the worker may read the beginning of the prompt."""
        cell = self._cell
        state.attempt = cell.next_attempt()
        state.base_index = state.committed
        state.started = state.ran = state.decoding = False
        state.granted += 1
        self._put(state, worker, now_us)
        state.placed = state.note("place", reason, now_us, {**numbers, "slack_us": state.deadline_us - now_us})
        run = self.run(state, state.attempt, now_us)
        if source is not None:
            run.prefix_source.CopyFrom(source)
        seq = cell.command(worker, run=run)
        worker.charge(seq, state, now_us)
        cell.tally.tier(state.slo.tier).placed += 1
        cell.tally.placements[reason] += 1
        self.send_placed(state, now_us)

    def adopt(self, state: RequestState, worker: WorkerState, attempt: Attempt, now_us: int) -> None:
        """An attempt of an older leader that a Snapshot shows becomes the current one."""
        state.attempt = attempt
        state.base_index = state.committed
        state.started = state.ran = state.decoding = False
        self._put(state, worker, now_us)
        state.placed = state.note("adopt", "snapshot", now_us)

    def hand_over(self, state: RequestState, numbers: Mapping[str, float], now_us: int) -> None:
        """The target of its move has it and goes on: that attempt is the current one now. The router only has to ask
        there for its tokens."""
        move, source, older = state.move, state.worker, state.attempt
        assert move is not None and source is not None
        self.forget_move(state, cancel=False)
        state.attempt = move.attempt
        state.base_index = state.committed
        state.started = state.ran = state.decoding = True
        self._cell.tally.moves_done[move.reason] += 1
        self._put(state, move.target, now_us)
        move.target.decodes_now(state)
        state.placed = state.note("moved", move.reason, now_us, {**numbers, "took_us": now_us - move.began_us})
        if not source.gone:
            self.cancel(source, state.request_id, older, "moved")
        self.send_placed(state, now_us)

    def forget_move(self, state: RequestState, cancel: bool = True) -> None:
        """No move of it is under way any more; its target is told, unless it was the one to say so."""
        move = state.move
        if move is None:
            return
        state.move = None
        move.target.expect_no_more(state.request_id)
        self._cell.fleet.links.end(move.source_slot, move.target.slot, move.gigabytes)
        if cancel and not move.target.gone:
            self.cancel(move.target, state.request_id, move.attempt, "move over")

    def send_placed(self, state: RequestState, now_us: int) -> None:
        worker = state.worker
        assert worker is not None and state.placed is not None
        placed = router_session_pb2.Placed(
            request_id=state.request_id,
            attempt=state.attempt.proto(),
            worker=worker.key.proto(),
            worker_address=worker.address,
            base_index=state.base_index,
            started=state.started,
            decision=state.placed.proto(now_us),
        )
        self._cell.to_router(state.router, placed=placed)

    def lose(self, state: RequestState, reason: str, now_us: int, numbers: Mapping[str, float] | None = None) -> None:
        """The attempt is over; the router hears of it and submits again, unless it has closed the request."""
        if state.done:
            self.finish(state, reason, now_us)
            return
        note = self.end(state, Phase.LOST, "lost", reason, now_us, numbers)
        self._cell.tally.lost[reason] += 1
        lost = router_session_pb2.Lost(
            request_id=state.request_id, attempt=state.attempt.proto(), decision=note.proto(now_us)
        )
        self._cell.to_router(state.router, lost=lost)

    def cancel_attempt(self, state: RequestState, reason: str) -> None:
        """Tells the worker to end the current attempt; for attempts that are not current use `cancel`."""
        if state.worker is not None and not state.worker.gone:
            self.cancel(state.worker, state.request_id, state.attempt, reason)

    def cancel(self, worker: WorkerState, request_id: str, attempt: Attempt, reason: str) -> None:
        message = worker_session_pb2.Cancel(request_id=request_id, attempt=attempt.proto(), reason=reason)
        self._cell.command(worker, cancel=message)

    def revoke(self, state: RequestState, reason: str, now_us: int) -> None:
        """Asks the worker to give an unstarted attempt back; the answer decides."""
        worker = state.worker
        assert worker is not None and not state.revoking
        state.revoking = True
        self._cell.fleet.pools[worker.model].revoking += 1
        state.note("revoke", reason, now_us)
        message = worker_session_pb2.Revoke(request_id=state.request_id, attempt=state.attempt.proto())
        self._cell.command(worker, revoke=message)

    def revoke_answered(self, state: RequestState) -> None:
        if state.revoking and state.worker is not None:
            state.revoking = False
            pool = self._cell.fleet.pools.get(state.worker.model)
            if pool is not None:
                pool.revoking -= 1

    def progressed(self, state: RequestState, started: bool, ran: bool) -> None:
        """What a report or Snapshot tells of the current attempt; progress never goes back."""
        worker = state.worker
        assert worker is not None
        state.started |= started or ran
        if ran and not state.ran:
            state.ran = True
            worker.revocable.pop(state.request_id, None)

    def finish(
        self,
        state: RequestState,
        reason: str,
        now_us: int,
        output_tokens: int = 0,
        numbers: Mapping[str, float] | None = None,
        at_us: int | None = None,
    ) -> None:
        numbers = {"output_tokens": output_tokens, **(numbers or {})}
        self.end(state, Phase.FINISHED, "finish", reason, now_us, numbers, at_us)
        state.started = True
        if not state.known:
            return
        self._cell.tally.finished(state.slo.tier, state.prompt_tokens, output_tokens)

    def end(
        self,
        state: RequestState,
        phase: Phase,
        kind: str,
        reason: str,
        now_us: int,
        numbers: Mapping[str, float] | None = None,
        at_us: int | None = None,
    ) -> Note:
        """Takes the request out of every index and moves it to an ended phase. `at_us`: when it ended, if not now."""
        self.release(state)
        self._cell.book.move(state, phase, now_us)
        return state.note(kind, reason, now_us if at_us is None else at_us, numbers)

    def release(self, state: RequestState) -> None:
        """Out of the hold queue, the settling ones and its worker's work; the phase stays to be moved."""
        self._cell.hold.remove(state.request_id)
        self._cell.settling.pop(state.request_id, None)
        self.forget_move(state)
        self.revoke_answered(state)
        if state.worker is not None and state.phase is Phase.PLACED:
            state.worker.drop(state.request_id)

    def _put(self, state: RequestState, worker: WorkerState, now_us: int) -> None:
        self.release(state)
        state.worker = worker
        self._cell.book.move(state, Phase.PLACED, now_us)
        worker.take(state)

    def run(self, state: RequestState, attempt: Attempt, now_us: int) -> worker_session_pb2.Run:
        return worker_session_pb2.Run(
            request_id=state.request_id,
            attempt=attempt.proto(),
            prompt_tokens=state.prompt_tokens,
            max_tokens=state.max_tokens,
            base_index=state.base_index,
            slo=state.promised_slo(),
            age_us=now_us - state.arrived_us,
            router_id=state.router.router_id if state.router else "",
            tenant=state.tenant,
            detach_grace_us=state.detach_grace_us,
        )
