from virtual_cell import VirtualCell
from virtual_end import leaks
from virtual_process import SECOND

from hyperflexis.common.v1 import sampling_pb2


def test_every_request_ends_with_its_reference_stream() -> None:
    cell = VirtualCell(seed=1)
    cell.time.run_until(cell.time.now_us + SECOND)
    clients = [cell.generate(f"q{i}", [i + 1, 2, 3], 5 + 3 * i, router=i % 2) for i in range(20)]
    cell.settle()
    for client in clients:
        assert client.ended is not None
        assert client.ended.reason == sampling_pb2.FINISH_REASON_LENGTH
        assert client.tokens == client.reference
    assert leaks(cell) == []
