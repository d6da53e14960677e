"""Finding a place: choose, hold where there is none, refuse where there never will be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hyperflexis.common.v1 import slo_pb2
from hyperflexis.scheduler.v1 import router_session_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.promise import too_late
from hyperflexis_scheduler.core.cell import Cell
from hyperflexis_scheduler.core.decode_placement import at_once
from hyperflexis_scheduler.core.dispatch_policy import Ask, Prospect, in_time
from hyperflexis_scheduler.core.fleet import Pool
from hyperflexis_scheduler.core.grants import Grants
from hyperflexis_scheduler.core.link_orders import LinkOrders
from hyperflexis_scheduler.core.loads import C0, PACE, PREFILL, ROLE, Slots
from hyperflexis_scheduler.core.prefix_sources import Prefix, PrefixSources
from hyperflexis_scheduler.core.request import Phase, RequestState

_HINTLESS = (
    router_session_pb2.REFUSAL_REASON_UNSERVABLE,
    router_session_pb2.REFUSAL_REASON_ATTEMPTS_EXHAUSTED,
    router_session_pb2.REFUSAL_REASON_UNSPECIFIED,
)
"""Retrying what was refused so will not help."""


class Placement:
    def __init__(self, cell: Cell, grants: Grants, links: LinkOrders) -> None:
        self._cell = cell
        self._grants = grants
        self._sources = PrefixSources(cell, links)

    def place(self, state: RequestState, now_us: int, reason: str = "", among: Slots | None = None) -> None:
        """Grants an attempt, or holds, or refuses. `reason` replaces the policy's in the decision, `among` narrows
        where it may go.

        A request whose router is away cannot be placed, as nobody would send its prompt: it waits, as LOST,
        for that router, or another one, to submit it again.
        """
        cell = self._cell
        self._grants.release(state)
        if state.router not in cell.routers.by_key:
            self._grants.end(state, Phase.LOST, "lost", "router_away", now_us)
            return
        if state.granted >= cell.rules.max_attempts:
            message = f"lost or moved {state.granted} times; submit it as a new request"
            self.refuse(state, router_session_pb2.REFUSAL_REASON_ATTEMPTS_EXHAUSTED, message, now_us)
            return
        pool = cell.fleet.pool(state.model)
        if pool is not None and state.context_tokens > pool.max_context:
            message = (
                f"{state.prompt_tokens} prompt and {state.max_tokens} output tokens exceed every worker's "
                f"context of {pool.max_context}; shorten the prompt or lower max_tokens"
            )
            self.refuse(state, router_session_pb2.REFUSAL_REASON_UNSERVABLE, message, now_us)
            return
        if among is None:
            among = self._straight(state, pool) if pool is not None and pool.hands_off else _NOWHERE
            among = among if len(among) else _candidates(state, pool)
        if pool is None or not len(among):
            self._hold(state, now_us)
            return
        ask = self._ask(state, now_us)
        prefixes = self._sources.look(state, ask, pool, among, now_us)
        asked = ask
        if prefixes is not None:
            asked = ask._replace(cached_tokens=prefixes.cached + prefixes.pulled, read_us=prefixes.read_us)
        choice = cell.policy.choose(asked, cell.fleet.loads, among)
        worker, prefix = pool.at[choice.slot], Prefix()
        if prefixes is not None:
            at = int(np.flatnonzero(among == choice.slot)[0])
            prefix = self._sources.settle(state, ask, prefixes, at, worker, now_us)
        state.cached_tokens = prefix.cached + prefix.pulled
        foretold = choice.foretold
        if foretold is None or prefixes is not None:
            cached, read_us = np.array([state.cached_tokens]), np.array([prefix.read_us])
            left = ask._replace(cached_tokens=cached, read_us=read_us)
            foretold = Prospect(left, cell.fleet.loads.view(np.array([choice.slot]))).of(0)
        state.turn_us = now_us + foretold["turn_us"]
        if "empty_step_us" in foretold:
            self._name_if_too_short(state, pool)
        numbers = {**choice.numbers, **foretold, **prefix.numbers}
        if state.committed:
            numbers["committed_tokens"] = state.committed
        self._grants.grant(state, worker, reason or choice.reason, numbers, now_us, prefix.source)

    def _name_if_too_short(self, state: RequestState, pool: Pool) -> None:
        """Where a step with nothing in it takes longer than the TPOT on every worker that could decode."""
        view = self._cell.fleet.loads.view(pool.admitting)
        steps_us = (view.of(C0) * view.of(PACE))[view.of(ROLE) != PREFILL]
        if len(steps_us) and state.tpot_us <= steps_us.min():
            self._cell.tpot_too_short(state.slo.tier, state.model, state.tpot_us, float(steps_us.min()))

    def _straight(self, state: RequestState, pool: Pool) -> Slots:
        """Workers where a short prompt would be done at once, and need not be handed off: it goes there."""
        loads, among = self._cell.fleet.loads, pool.able_decoders(state.context_tokens)
        prefill_us = loads.prefill_us(state.prefill_tokens, among)
        return _without(state.avoid, pool, at_once(prefill_us, state.tpot_us, loads, among))

    def _ask(self, state: RequestState, now_us: int) -> Ask:
        return Ask(
            prefill_tokens=state.prefill_tokens,
            age_us=now_us - state.arrived_us,
            ttft_us=state.deadline_us - state.arrived_us,
            tpot_us=state.tpot_us,
            max_tokens=state.max_tokens,
            tier=state.slo.tier,
            expected_tokens=min(self._cell.tally.output_tokens(state.slo.tier), state.max_tokens),
            weight=state.slo.weight or 1.0,
        )

    def drain_hold(self, now_us: int) -> None:
        """Places held requests of the models that have a place now, a bounded number of them. Those that only a worker
        which is not ready could hold stay, and keep nobody behind them waiting."""
        cell = self._cell
        budget = cell.rules.hold_burst
        for model, pool in list(cell.fleet.pools.items()):
            if not pool.eligible or pool.hold_seen:
                continue
            for request_id in cell.hold.all(model):
                state = cell.book.get(request_id)
                assert state is not None
                if pool.ready_context < state.context_tokens <= pool.max_context:
                    continue
                if budget == 0:
                    return
                budget -= 1
                self.place(state, now_us)
            pool.hold_seen = True

    def expire_hold(self, now_us: int) -> None:
        for request_id in self._cell.hold.expired(self._cell.rules.hold_us, now_us):
            state = self._cell.book.get(request_id)
            assert state is not None
            message = f"no worker for model {state.model!r} became ready in time"
            self.refuse(state, router_session_pb2.REFUSAL_REASON_NO_WORKER, message, now_us)

    def refuse(
        self,
        state: RequestState,
        reason: router_session_pb2.RefusalReason.ValueType,
        message: str,
        now_us: int,
        numbers: Mapping[str, float] | None = None,
    ) -> None:
        """`numbers` may hold predicted_ttft_us, which also sets the retry hint."""
        name = router_session_pb2.RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_").lower()
        note = self._grants.end(state, Phase.REFUSED, "refuse", name, now_us, numbers)
        predicted_us = int((numbers or {}).get("predicted_ttft_us", 0))
        retry_us = 0 if reason in _HINTLESS else max(self._cell.rules.retry_after_us, predicted_us - state.slo.ttft_us)
        state.refusal = router_session_pb2.Refused(
            request_id=state.request_id,
            reason=reason,
            message=message,
            retry_after_us=retry_us,
            predicted_ttft_us=predicted_us,
            decision=note.proto(now_us),
        )
        self._cell.tally.refused(state.slo.tier, reason)
        self._cell.to_router(state.router, refused=state.refusal)

    def gave_up(self, state: RequestState, numbers: Mapping[str, float], now_us: int) -> None:
        """The worker's planner cannot keep the promise: once another worker that still can, else what the tier says."""
        pool = self._cell.fleet.pool(state.model)
        state.gave_up += 1
        if state.gave_up == 1 and pool is not None:
            others = _without(state.avoid, pool, _candidates(state, pool))
            timely = in_time(self._ask(state, now_us), self._cell.fleet.loads, others)
            if len(timely):
                self.place(state, now_us, reason="second_try", among=timely)
                return
        slo = state.slo
        fallback = self._cell.rules.tiers.get(slo.downgrade_tier)
        tried = (*state.downgraded_from, slo.tier)
        if slo.on_violation == slo_pb2.ON_VIOLATION_REFUSE:
            message = f"tier {slo.tier!r} cannot be kept now{too_late(numbers.get('predicted_ttft_us', 0), slo)}"
            self.refuse(state, router_session_pb2.REFUSAL_REASON_SLO, message, now_us, numbers)
        elif slo.on_violation == slo_pb2.ON_VIOLATION_DOWNGRADE and fallback is not None and fallback.tier not in tried:
            state.downgraded_from = tried
            state.slo = fallback
            state.gave_up = 0
            note = state.note("downgrade", fallback.tier, now_us, numbers)
            downgraded = router_session_pb2.Downgraded(
                request_id=state.request_id, slo=fallback, decision=note.proto(now_us)
            )
            self._cell.to_router(state.router, downgraded=downgraded)
            self.place(state, now_us, reason="downgraded")
        else:
            self._give_up_promise(state, numbers, now_us)
            self.place(state, now_us, reason="best_effort")

    def _give_up_promise(self, state: RequestState, numbers: Mapping[str, float], now_us: int) -> None:
        if state.best_effort:
            return  # its client knows
        state.best_effort = True
        note = state.note("best_effort", state.slo.tier, now_us, numbers)
        told = router_session_pb2.BestEffort(request_id=state.request_id, slo=state.slo, decision=note.proto(now_us))
        self._cell.to_router(state.router, best_effort=told)

    def send_queued(self, state: RequestState, now_us: int) -> None:
        decision = state.notes[-1].proto(now_us)
        self._cell.to_router(
            state.router, queued=router_session_pb2.Queued(request_id=state.request_id, decision=decision)
        )

    def _hold(self, state: RequestState, now_us: int) -> None:
        cell = self._cell
        if cell.hold.full:
            message = f"{len(cell.hold)} requests wait for a worker already"
            self.refuse(state, router_session_pb2.REFUSAL_REASON_QUEUE_FULL, message, now_us)
            return
        cell.book.move(state, Phase.HELD, now_us)
        cell.hold.add(state.request_id, state.model, cell.policy.hold_key(state.deadline_us), now_us)
        state.worker = None
        state.note("hold", "no_ready_worker", now_us, {"held": len(cell.hold)})
        self.send_queued(state, now_us)


_NOWHERE: Slots = np.empty(0, np.intp)


def _candidates(state: RequestState, pool: Pool | None) -> Slots:
    """Where it may go now; where it did not fare well only if there is no other place."""
    if pool is None:
        return _NOWHERE
    able = pool.able(state.context_tokens)
    if state.avoid is None:
        return able
    others = _without(state.avoid, pool, able)
    return others if len(others) else able


def _without(key: WorkerKey | None, pool: Pool, slots: Slots) -> Slots:
    worker = pool.workers.get(key) if key is not None else None
    return slots if worker is None else slots[slots != worker.slot]
