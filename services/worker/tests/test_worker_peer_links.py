"""Links to other engines, as the worker's core keeps them."""

from __future__ import annotations

from arrival_rig import Target
from worker_rig import SECOND

from hyperflexis.common.v1 import movement_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2 as ws
from hyperflexis.worker.v1 import worker_service_pb2 as svc
from hyperflexis_worker.core import move_event
from hyperflexis_worker.core.effects import AskLink, Effect, LinkEngine
from hyperflexis_worker.core.peer_links import PeerLinks

PEER = movement_pb2.WorkerRef(worker_id="w0", incarnation=7, address="w0:1")


class Links:
    """Of one worker to engine `e0`, and what those who needed it were told."""

    def __init__(self) -> None:
        self.effects: list[Effect] = []
        self.links = PeerLinks(self.effects)
        self.links.layout = b"layout"
        self.told: list[str] = []

    def need(self) -> None:
        self.links.need("e0", PEER, lambda error, now_us: self.told.append(error), 0)

    def peer_answers(self) -> None:
        asked = [effect for effect in self.effects if isinstance(effect, AskLink)][-1]
        part = movement_pb2.RankPart(layout_fingerprint=b"layout", agent_metadata=b"m")
        self.links.told(asked.number, svc.LinkResponse(parts=[part], engine="e0"), "", 0)

    def engine_answers(self) -> None:
        assert isinstance(self.effects[-1], LinkEngine)
        self.links.linked("e0", movement_pb2.LinkStatus(transport="grpc"), 0)

    def up(self) -> None:
        self.need()
        self.peer_answers()
        self.engine_answers()


def test_a_read_that_fails_while_the_link_is_made_anew_leaves_nobody_waiting() -> None:
    """Two reads were under way when it broke. The second one fails after somebody has asked for the link again."""
    links = Links()
    links.up()
    links.links.lost("e0")
    links.need()
    links.peer_answers()
    links.links.lost("e0")
    links.engine_answers()
    assert links.told == ["", ""]
    links.need()
    assert links.told == ["", "", ""], "it is up"


def test_one_that_is_lost_is_asked_for_anew() -> None:
    links = Links()
    links.up()
    links.links.lost("e0")
    links.up()
    assert links.told == ["", ""]
    assert sum(isinstance(effect, AskLink) for effect in links.effects) == 2


def test_one_is_made_when_told_and_reported(target: Target) -> None:
    peer = movement_pb2.WorkerRef(worker_id="w0", incarnation=7, address="w0:1")
    target.rig.command(link=ws.LinkPeer(peer=peer))
    target.link()
    target.linked()
    target.rig.pass_time(SECOND)
    (link,) = target.rig.reports()[-1].links
    assert (link.peer.worker_id, link.transport) == ("w0", "nixl")
    target.rig.command(link=ws.LinkPeer(peer=peer, unlink=True))
    target.rig.pass_time(SECOND)
    assert not target.rig.reports()[-1].links


def test_one_that_cannot_be_made_is_reported_too(target: Target) -> None:
    target.rig.command(link=ws.LinkPeer(peer=movement_pb2.WorkerRef(worker_id="w0", address="w0:1")))
    target.tell(move_event.PeerLinked(target.one(AskLink).number, None, "source_unavailable"))
    target.rig.pass_time(SECOND)
    (link,) = target.rig.reports()[-1].links
    assert (link.transport, link.error) == ("", "source_unavailable")
