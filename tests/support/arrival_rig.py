"""The core of a worker to which a request comes with its cache; engine and source are whatever the test says."""

from __future__ import annotations

from typing import Any, TypeVar

from worker_rig import FIRST, SECOND, Update, ready

from hyperflexis.common.v1 import movement_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import token_feed_pb2 as tf
from hyperflexis.worker.v1 import worker_service_pb2 as svc
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.tokens import pack
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.departures import LEASE_US

SECOND_ATTEMPT = Attempt(1, 2)

Kind = TypeVar("Kind")


class Target:
    """Request `a` comes from `w0`."""

    def __init__(self) -> None:
        self.rig = ready()
        self.rig.core.moves.links.layout = b"layout"

    def attach(self, **run: Any) -> Target:
        slo = slo_pb2.Slo(tier="chat", ttft_us=SECOND, tpot_us=SECOND)
        values = {"request_id": "a", "attempt": SECOND_ATTEMPT.proto(), "prompt_tokens": 3, "max_tokens": 8, "slo": slo}
        source = movement_pb2.WorkerRef(worker_id="w0", incarnation=7, address="w0:1")
        ticket = movement_pb2.KvTicket(request_id="a", attempt=FIRST.proto(), source=source, num_tokens=3)
        self.rig.command(attach_kv=ws.AttachKv(run=ws.Run(**{**values, **run}), ticket=ticket))
        return self

    def tell(self, event: move_event.MoveEvent) -> None:
        self.rig.take(self.rig.core.move_event(event, self.rig.now_us))

    def one(self, kind: type[Kind]) -> Kind:
        found = [effect for effect in self.rig.out if isinstance(effect, kind)]
        assert len(found) == 1, self.rig.out
        return found[0]

    def reserved(self, ok: bool = True) -> None:
        self.tell(move_event.Reserved("a", SECOND_ATTEMPT, ok))

    def answer(self, *blocks: int, output: list[int] | None = None) -> None:
        """The source's answer to the question that is open; with `output`, the last one."""
        asked = self.one(effects.AskExport)
        part = movement_pb2.RankPart(block_ids=pack(blocks))
        response = svc.ExportKvResponse(lease_id=5, lease_us=LEASE_US, parts=[part], engine="e0", computed_tokens=5)
        if output is not None:
            start = tf.Start(request_id="a", attempt=FIRST.proto(), prompt=pack([1, 2, 3]), max_tokens=8)
            start.committed = pack(output)
            response.start.CopyFrom(start)
        self.tell(move_event.PeerExported(asked.number, response))

    def link(self, layout: bytes = b"layout", engine: str = "e0") -> None:
        part = movement_pb2.RankPart(layout_fingerprint=layout, agent_metadata=b"m")
        told = svc.LinkResponse(parts=[part], engine=engine)
        self.tell(move_event.PeerLinked(self.one(effects.AskLink).number, told))

    def linked(self, transport: str = "nixl") -> None:
        status = movement_pb2.LinkStatus(transport=transport, error="" if transport else "no")
        self.tell(move_event.Linked("e0", status))

    def pulled(self, error: str = "") -> None:
        self.tell(move_event.Pulled(self.one(effects.PullBlocks).number, error))

    def failed(self) -> str:
        """The reason told, where the move came to nothing, and nothing of it is left."""
        updates = [u for report in self.rig.reports() for u in report.updates if u.kind == Update.KIND_NOT_ATTACHED]
        assert len(updates) == 1, self.rig.out
        assert not self.rig.core.requests.unfinished and not len(self.rig.core.moves.arrivals)
        return updates[0].decision.reason

    def up_to_the_last_read(self) -> Target:
        self.attach().reserved()
        self.answer(4)
        self.link()
        self.linked()
        self.pulled()
        self.answer(6, output=[10, 11, 12])
        return self
