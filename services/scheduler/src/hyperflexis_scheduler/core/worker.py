"""One life of one worker, as the leader sees it."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2, movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis_common.attempt import WorkerKey
from hyperflexis_common.step_time import StepShape, StepTimeModel
from hyperflexis_scheduler.core import loads as columns
from hyperflexis_scheduler.core.heartbeat import Heartbeat
from hyperflexis_scheduler.core.ledger import Ledger
from hyperflexis_scheduler.core.load_row import MOST_US, LoadRow
from hyperflexis_scheduler.core.loads import WorkerLoads
from hyperflexis_scheduler.core.request import RequestState

PREFILL_US_PER_TOKEN = 20.0
"""Assumed until a worker reports its step-time model; only the comparison between workers matters."""

_ROLES = {capability_pb2.ROLE_PREFILL: columns.PREFILL, capability_pb2.ROLE_DECODE: columns.DECODE}
_PREFILLS = (capability_pb2.ROLE_UNSPECIFIED, capability_pb2.ROLE_MIXED, capability_pb2.ROLE_PREFILL)


class WorkerState:
    """Identity, session, health and work of a worker. Changes of `eligible` go through Fleet.refresh.

    What dispatch has to know is in the worker's row of the loads, which is written from here alone.
    """

    def __init__(self, register: worker_session_pb2.Register, session: int, now_us: int, loads: WorkerLoads) -> None:
        self.key = WorkerKey.of(register.identity)
        self.attempts: dict[str, RequestState] = {}
        """Current attempts that are here and have not ended."""
        self.revocable: dict[str, RequestState] = {}
        """Those of them whose first chunk is not known to have run, oldest first."""
        self.incoming: dict[str, RequestState] = {}
        """Requests that are to move here."""
        self.links: dict[str, movement_pb2.LinkStatus] = {}
        """By worker id: what this one says of its links to others."""
        self.decoding: dict[str, int] = {}
        """TPOT of each attempt here that has made a token, in microseconds."""
        self._row = LoadRow(loads)
        self.slot = self._row.slot
        self.ledger = Ledger()
        self.load = worker_session_pb2.WorkerLoad()
        self.telemetry = worker_session_pb2.Telemetry()
        self.step_time = capability_pb2.StepTimeModel()
        self.draining = False
        self.drain_reason = ""
        self.undo_seq: int | None = None
        """A drain is to be undone, by this command of the session (0: not sent); None once the worker knows."""
        self.wanted_role = capability_pb2.ROLE_UNSPECIFIED
        self.hung = False
        self.gone = False
        """Lost for good: replaced, or away longer than its grace."""
        self.eligible = False
        self.standing = (False, False, False)
        """Admits, accepts, decodes: as the fleet has last seen it."""
        self._busy_until_us = 0
        self._stepped_us = now_us
        self._steps = 0
        self._model = StepTimeModel(0.0, 0.0, PREFILL_US_PER_TOKEN, 0.0, 0.0, host_us=0.0)
        self._row.show_model(self._model)
        self.opened(register, session, now_us)

    def opened(self, register: worker_session_pb2.Register, session: int, now_us: int) -> None:
        """The same life on a new session; it is of no use before its Snapshot."""
        self.address = register.address
        self.model = register.model
        self.fingerprint = register.fingerprint
        self.gpu_type = register.gpu_type
        self.version = register.version
        self.tags = dict(register.tags)
        self.capabilities = register.capabilities
        self.role = register.role
        self.readiness = register.readiness
        self.session: int | None = session
        self.disconnected_us: int | None = None
        self.snapshotted = False
        self.sent_seq = 0
        self._behind_since_us: int | None = None
        self.report_seq = 0
        self.pulse = Heartbeat(now_us)
        self.take_role(register.role)
        self.ledger.restart()
        self._show_queue()

    def command_lost(self, applied_seq: int, limit_us: int, now_us: int) -> bool:
        """Have reports been silent about the next command for too long? The last one before a pause leaves no
        gap that the worker could see."""
        if applied_seq >= self.sent_seq:
            self._behind_since_us = None
        elif self._behind_since_us is None or applied_seq > self.ledger.applied_seq:
            self._behind_since_us = now_us
        return self._behind_since_us is not None and now_us - self._behind_since_us > limit_us

    def closed(self, now_us: int) -> None:
        self.session = None
        self.undo_seq = None if self.undo_seq is None else 0
        self.snapshotted = False
        self.disconnected_us = now_us

    @property
    def connected(self) -> bool:
        return self.session is not None and self.snapshotted

    @property
    def admits(self) -> bool:
        """May be given anything new now."""
        return (
            self.connected
            and not (self.hung or self.draining or self.gone)
            and self.readiness == capability_pb2.READINESS_READY
        )

    @property
    def accepts(self) -> bool:
        """May be given new requests now."""
        return self.admits and self.role in _PREFILLS

    @property
    def decodes(self) -> bool:
        """May be given what others have prefilled."""
        return self.admits and self.moves and self.role != capability_pb2.ROLE_PREFILL

    @property
    def hands_off(self) -> bool:
        """What decodes here is to decode elsewhere."""
        return self.role == capability_pb2.ROLE_PREFILL

    def take_role(self, reported: capability_pb2.Role.ValueType = capability_pb2.ROLE_UNSPECIFIED) -> None:
        """Roles say what is sent to a worker: one that was ordered holds at once, whatever is still reported."""
        self.role = self.wanted_role or reported or self.role
        self._row.show(columns.ROLE, _ROLES.get(self.role, columns.MIXED))

    @property
    def bytes_per_token(self) -> float:
        """Of its cache, over all layers."""
        kv = self.load.kv
        return kv.block_bytes / kv.block_tokens if kv.block_tokens else 0.0

    @property
    def moves(self) -> bool:
        """Its engine's caches can be read, and it can read others'."""
        return self.capabilities.kv_ticket == capability_pb2.KV_TICKET_KIND_BLOCKS

    def ref(self) -> movement_pb2.WorkerRef:
        """How other workers find it."""
        return movement_pb2.WorkerRef(
            worker_id=self.key.worker_id, incarnation=self.key.incarnation, address=self.address
        )

    @property
    def leaving(self) -> bool:
        return self.draining or self.readiness == capability_pb2.READINESS_DRAINING

    def take(self, state: RequestState) -> None:
        """An attempt is here now."""
        self.attempts[state.request_id] = state
        if not state.ran:
            self.revocable[state.request_id] = state
        self._show_requests()

    def drop(self, request_id: str) -> None:
        self.attempts.pop(request_id, None)
        self.revocable.pop(request_id, None)
        if self.decoding.pop(request_id, None) is not None:
            self.show_decodes()
        self._show_requests()

    def decodes_now(self, state: RequestState) -> None:
        """An attempt that is here has made a token."""
        self.decoding[state.request_id] = state.tpot_us
        self.show_decodes()

    def expect(self, state: RequestState) -> None:
        """It is to move here."""
        self.incoming[state.request_id] = state
        self.show_decodes()

    def expect_no_more(self, request_id: str) -> None:
        if self.incoming.pop(request_id, None) is not None:
            self.show_decodes()

    def show_decodes(self) -> None:
        """What is decoded here, and what is on its way to be."""
        coming = self.incoming.values()
        tpots_us = (*self.decoding.values(), *(state.tpot_us for state in coming))
        self._row.show_decodes(tpots_us, [state.prefill_tokens for state in coming])

    def charge(self, seq: int, state: RequestState, now_us: int) -> None:
        """Its Run was sent as command `seq`."""
        tokens = max(state.prefill_tokens - state.cached_tokens, 1)
        prefill_us = int(min(self._model.prefill_us(tokens, state.cached_tokens), MOST_US))
        self.ledger.charge(seq, state.request_id, tokens, prefill_us, state.turn_us - now_us)
        self._show_queue()

    def leave(self) -> None:
        """For good; its row is another worker's from now on."""
        self.gone = True
        self._row.close()

    def reported(self, applied_seq: int, load: worker_session_pb2.WorkerLoad | None, now_us: int) -> None:
        """`load` (None: as before) reflects every command up to `applied_seq`."""
        self.ledger.apply(applied_seq)
        if load is not None:
            self._take_load(load, now_us)
        self._show_queue()

    def _take_load(self, load: worker_session_pb2.WorkerLoad, now_us: int) -> None:
        self.load = load
        self._row.show_load(load)
        self._row.take_queue(load, self._model)
        if load.steps != self._steps or not load.waiting + load.running:
            self._stepped_us = now_us
        self._steps = load.steps

    def report_step_time(self, model: capability_pb2.StepTimeModel) -> None:
        """A model that cannot be (no number, or a negative one) is none."""
        values = (model.c0_us, model.c1_us, model.c2_us, model.c3_us, model.c4_us, model.c5_us, model.host_us)
        if not all(0 <= value < MOST_US for value in values):
            return
        self.step_time = model
        c0_us, c1_us, c2_us, *others = values
        self._model = StepTimeModel(c0_us, c1_us, c2_us or PREFILL_US_PER_TOKEN, *others)
        self._row.show_model(self._model)
        self._row.take_queue(self.load, self._model)
        self._show_queue()

    def report_busy(self, for_us: int, now_us: int) -> None:
        self._busy_until_us = max(self._busy_until_us, now_us + for_us)

    def stalled(self, least_us: int, steps: float, now_us: int) -> bool:
        """Has work and makes no step for longer than `least_us` and `steps` predicted steps, undeclared."""
        if now_us < self._busy_until_us or not self.load.waiting + self.load.running:
            return False
        still_us = max(self.load.stalled_us, now_us - self._stepped_us)
        return still_us >= max(least_us, steps * self._predicted_step_us())

    def hang(self) -> None:
        self.hung = True
        self._hung_steps = self._steps

    def recovered(self, load: worker_session_pb2.WorkerLoad) -> bool:
        """It has stepped since, or its engine has let go of everything it was told to: an idle worker that
        would have to step first would never be given a reason to."""
        return load.steps != self._hung_steps or not (load.running or load.waiting)

    def forgive(self, gap_us: int, now_us: int) -> None:
        """This process slept: none of that time counts against the worker."""
        self.pulse.forgive(gap_us, now_us)
        self._stepped_us = min(now_us, self._stepped_us + gap_us)
        if self.disconnected_us is not None:
            self.disconnected_us = min(now_us, self.disconnected_us + gap_us)
        if self._behind_since_us is not None:
            self._behind_since_us = min(now_us, self._behind_since_us + gap_us)

    def _predicted_step_us(self) -> float:
        if not self._model.c0_us:
            return 0.0
        chunk = min(self.load.queued_prefill_tokens, self.capabilities.max_num_tokens)
        shape = StepShape(
            prefill_chunks=((chunk, 0),) if chunk else (),
            decodes=self.load.running,
            decode_context_tokens=self.load.decode_context_tokens,
        )
        return self._model.predict_us(shape)

    def _show_requests(self) -> None:
        self._row.show_requests(self.load, self.ledger, len(self.attempts))

    def _show_queue(self) -> None:
        self._row.show_queue(self.ledger)
        self._show_requests()
