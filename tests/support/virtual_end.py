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
    assert cell.leaks() == []
