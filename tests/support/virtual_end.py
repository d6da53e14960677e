"""What any virtual cell comes to, whatever was done to it."""

from __future__ import annotations

from virtual_cell import VirtualCell

from hyperflexis.common.v1 import sampling_pb2


def check(cell: VirtualCell) -> None:
    """Every client has its tokens, and nothing is left of any request."""
    cell.settle()
    for client in cell.clients.values():
        if client.cancelled:
            continue  # its router may have died with the cancellation: the request then ends with its grace
        assert client.ended is not None, f"{client.request_id} is stuck at {len(client.tokens)} of {client.max_tokens}"
        assert client.ended.reason == sampling_pb2.FINISH_REASON_LENGTH, f"{client.request_id}: {client.ended}"
        assert client.tokens == client.reference
    assert leaks(cell) == []


def leaks(cell: VirtualCell) -> list[str]:
    """What should be gone and is not, and who should be there and is not."""
    found = []
    for worker in cell.workers.values():
        if worker.left:
            continue
        engine = worker.engine
        if engine.loop.busy or engine.pool.free != engine.pool.usable:
            found.append(f"{worker.key}: {engine.pool.usable - engine.pool.free} blocks")
        if engine.caches:
            found.append(f"{worker.key}: leases, reservations or transfers")
        if len(worker.core.moves.pulls):
            found.append(f"{worker.key}: {len(worker.core.moves.pulls)} requests that wait for a prefix")
        if len(worker.core.moves.arrivals):
            found.append(f"{worker.key}: {len(worker.core.moves.arrivals)} requests on their way there")
        if worker.core.requests.unfinished:
            found.append(f"{worker.key}: {worker.core.requests.unfinished} requests")
    for router in cell.routers:
        if len(router.core):
            found.append(f"{router.core.router_id}: {len(router.core)} requests")
        if not router.core.session_open:
            found.append(f"{router.core.router_id}: no session")
    if cell.leader is None or len(cell.leaders) > 1:
        return [*found, f"{len(cell.leaders)} leaders"]
    cluster = cell.leader.core.cluster(cell.leader.now_us())
    if cluster.active or cluster.held:
        found.append(f"scheduler: {cluster.active} active, {cluster.held} held")
    unused = [worker for worker in cell.workers.values() if not cell.leader.uses(worker.key)]
    if cell.leaders.blind:
        unused = [worker for worker in unused if not worker.left]
    else:
        found += [f"{worker.key}: replaced, and still there" for worker in cell.retired if not worker.left]
    found += [f"{worker.key}: not in use" for worker in unused]
    return found
