"""The core of a worker whose grants say who keeps the beginning of a prompt; engine and source are whatever the test
says."""

from __future__ import annotations

from collections.abc import Callable

from arrival_rig import Kind
from worker_rig import FIRST, SECOND, ready

from hyperflexis.common.v1 import movement_pb2, slo_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import worker_service_pb2 as svc
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.prefix import prefix_hashes
from hyperflexis_common.tokens import pack
from hyperflexis_worker.core import effects, move_event
from hyperflexis_worker.core.prefix_leases import LEASE_US

PROMPT = pack(range(1, 22))
HASHES = prefix_hashes(PROMPT, 4)


class Reader:
    """Worker `w`, to be given request `a`, of whose 21 tokens `w0` keeps some."""

    def __init__(self) -> None:
        self.rig = ready()
        self.asked = 0
        """Number of the question to the source."""
        self.rig.core.moves.links.layout = b"layout"

    def grant(self, tokens: int = 20, attempt: Attempt = FIRST, ttft_us: int = SECOND) -> Reader:
        peer = movement_pb2.WorkerRef(worker_id="w0", incarnation=7, address="w0:1")
        slo = slo_pb2.Slo(tier="chat", ttft_us=ttft_us, tpot_us=SECOND)
        source = ws.PrefixSource(worker=peer, tokens=tokens)
        run = ws.Run(request_id="a", attempt=attempt.proto(), prompt_tokens=21, max_tokens=8, slo=slo)
        run.prefix_source.CopyFrom(source)
        self.rig.command(run=run)
        self.rig.start(attempt=attempt, prompt=PROMPT)
        self.asked = next((ask.number for ask in self.rig.out if isinstance(ask, effects.AskPrefix)), 0)
        return self

    def tell(self, event: move_event.MoveEvent) -> None:
        self.rig.take(self.rig.core.move_event(event, self.rig.now_us))

    def one(self, kind: type[Kind]) -> Kind:
        found = [effect for effect in self.rig.out if isinstance(effect, kind)]
        assert len(found) == 1, self.rig.out
        return found[0]

    def none(self, kind: type) -> bool:
        return not self.rig.of(kind)

    def reserved(self, cached: int = 0, ok: bool = True) -> None:
        self.tell(move_event.Reserved("a", FIRST, ok, cached))

    def answer(self, *blocks: int) -> None:
        part = movement_pb2.RankPart(block_ids=pack(blocks))
        response = svc.ExportPrefixResponse(lease_id=5, lease_us=LEASE_US, parts=[part], engine="e0")
        self.tell(move_event.PeerPrefix(self.asked, response))

    def linked(self) -> None:
        part = movement_pb2.RankPart(layout_fingerprint=b"layout", agent_metadata=b"m")
        told = svc.LinkResponse(parts=[part], engine="e0")
        self.tell(move_event.PeerLinked(self.one(effects.AskLink).number, told))
        self.tell(move_event.Linked("e0", movement_pb2.LinkStatus(transport="nixl")))

    def pulled(self, error: str = "") -> None:
        self.tell(move_event.Pulled(self.one(effects.PullBlocks).number, error))

    def released(self, held: bool = True) -> None:
        self.tell(move_event.PeerReleased(self.one(effects.AskRelease).number, held))

    def up_to(self, step: str) -> Reader:
        self.grant()
        answers: dict[str, Callable[[], None]] = {
            "reserving": self.reserved,
            "asking": lambda: self.answer(4, 9, 2, 3, 6),
            "linking": self.linked,
            "reading": self.pulled,
            "releasing": self.released,
        }
        for name, go in answers.items():
            if name == step:
                return self
            go()
        return self

    def computed(self, outcome: str = "") -> None:
        """It went to the engine, and nothing of the pull is left."""
        assert self.one(effects.AddSequence).sequence.attempt == FIRST
        self.nothing_left()
        if outcome:
            assert dict(self.rig.core.moves.pulls.outcomes) == {outcome: 1}

    def nothing_left(self) -> None:
        pulls = self.rig.core.moves.pulls
        assert not len(pulls) and not len(pulls._questions) and not pulls.tokens
