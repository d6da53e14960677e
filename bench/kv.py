"""`python bench/kv.py`: how fast a cache moves between two processes of this machine, over each transport.

Pools in host memory. A read of many blocks that lie one after the other on both sides (contiguous), in runs of eight in
random order (fragmented), and each somewhere else (scattered), against a plain copy of as many bytes in the same
process, in turn, several times; medians. And what a link costs. Then what moving costs requests on live services
(live_moves.py). Writes build/bench/kv.json, a flat list of rows.

`grpc` is a unary call between the processes with the engines' frames packed and unpacked on the way, as shells do; the
two sockets between shell and engine are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import queue
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from kv_last_reads import Reader
from kv_last_reads import row as last_read_row
from live_moves import rows as live_rows

from hyperflexis_common.clock import SystemClock
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.kv.nixl import NixlTransport
from hyperflexis_worker.kv.relay import RelayTransport
from hyperflexis_worker.kv.storage import HostStorage
from hyperflexis_worker.kv.transport import Progress, Transport

TRANSPORTS: dict[str, dict[str, str]] = {"nixl shm": {}, "nixl tcp": {"UCX_TLS": "tcp"}, "grpc": {}}
BLOCK_KIB = (16, 64, 1024)
READ_BYTES = 64 * 2**20
RUN_BLOCKS = 8
METHOD = "/bench.Kv/Read"
RAW: dict[str, Callable[[bytes], bytes]] = {"request_serializer": bytes, "response_deserializer": bytes}

Lists = dict[str, tuple[list[int], list[int]]]


def pool(block_bytes: int, fill: int) -> tuple[Any, HostStorage]:
    """Twice what one read takes, every page of it touched."""
    blocks = np.full((2 * READ_BYTES // block_bytes, block_bytes), fill, dtype=np.uint8)
    return blocks, HostStorage(blocks, b"bench")


def block_lists(total: int, seed: int) -> Lists:
    """(remote, local) for each pattern, half of the pool."""
    chance, count = random.Random(seed), total // 2

    def runs(length: int) -> list[int]:
        firsts = list(range(0, total - length + 1, length))
        chance.shuffle(firsts)
        return [block for first in firsts for block in range(first, first + length)][:count]

    return {
        "contiguous": (list(range(count)), list(range(count))),
        "fragmented": (runs(RUN_BLOCKS), runs(RUN_BLOCKS)),
        "scattered": (runs(1), runs(1)),
    }


# --- the source's process --------------------------------------------------------------------------------


class _Bytes(grpc.GenericRpcHandler):
    def __init__(self, storage: HostStorage) -> None:
        self._storage = storage

    def service(self, handler_call_details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._read)

    def _read(self, request: bytes, context: Any) -> bytes:
        asked = frames.decode_to_engine(request[frames.HEADER.size :])
        assert isinstance(asked, kv.ReadBlocks)
        return frames.encode(kv.BlockBytes(asked.number, self._storage.read(asked.blocks)))


def serve(name: str, block_bytes: int) -> None:
    """Says what a target must know, then answers until its standard input ends."""
    _, storage = pool(block_bytes, 1)
    if name == "grpc":
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        server = grpc.server(futures.ThreadPoolExecutor(4), options=options, handlers=[_Bytes(storage)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        print(f"127.0.0.1:{port}".encode().hex(), flush=True)
    else:
        transport = NixlTransport("source", storage)
        print(transport.metadata().hex(), flush=True)
    sys.stdin.read()
    os._exit(0)


# --- the target's process --------------------------------------------------------------------------------


class GrpcPath:
    """What shells do between two relays."""

    def __init__(self, storage: HostStorage, address: str) -> None:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self._call: Any = grpc.insecure_channel(address, options=options).unary_unary(METHOD, **RAW)
        self._answers: queue.Queue[kv.FetchedBytes] = queue.Queue()
        self.answer: Callable[[kv.FetchedBytes], object] = self._answers.put
        self.transport = RelayTransport(storage, SystemClock(), self.ask)

    def ask(self, fetch: kv.FetchBytes) -> None:
        request = frames.encode(kv.ReadBlocks(fetch.number, fetch.lease_id, fetch.blocks))
        self._call.future(request).add_done_callback(lambda call: self._answer(fetch.number, call.result()))

    def _answer(self, number: int, response: bytes) -> None:
        answer = frames.decode_from_engine(response[frames.HEADER.size :])
        assert isinstance(answer, kv.BlockBytes)
        packed = frames.encode(kv.FetchedBytes(number, answer.data))
        fetched = frames.decode_to_engine(packed[frames.HEADER.size :])
        assert isinstance(fetched, kv.FetchedBytes)
        self.answer(fetched)

    def wait(self) -> None:
        self.transport.fetched(self._answers.get(timeout=60))


def read(transport: Transport, remote: list[int], local: list[int], wait: Callable[[], None]) -> float:
    """Seconds."""
    began = time.perf_counter()
    handle = transport.post("source", 1, remote, local)
    while (progress := transport.poll(handle)) is Progress.PENDING:
        wait()
    if progress is Progress.FAILED:
        raise RuntimeError("the transfer failed")
    return time.perf_counter() - began


def target(name: str, block_bytes: int, repeats: int) -> list[dict[str, Any]]:
    blocks, storage = pool(block_bytes, 0)
    command = [sys.executable, __file__, "--serve", name, "--block-bytes", str(block_bytes)]
    source = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert source.stdout is not None
    began = time.perf_counter()
    wait: Callable[[], None] = lambda: time.sleep(0.00005)  # noqa: E731
    metadata = b""
    transport: Transport
    path: GrpcPath | None = None
    if name != "grpc":
        transport = NixlTransport("target", storage)
        made_s = time.perf_counter() - began
        metadata = bytes.fromhex(source.stdout.readline())
    else:
        path = GrpcPath(storage, bytes.fromhex(source.stdout.readline()).decode())
        transport, wait, made_s = path.transport, path.wait, 0.0
    common = {"transport": name, "block_kib": block_bytes // 1024}
    began = time.perf_counter()
    transport.connect("source", metadata)
    connect_s = time.perf_counter() - began
    first_s = read(transport, [0], [0], wait)
    small = statistics.median(read(transport, [1], [1], wait) for _ in range(20))
    for remote, local in block_lists(storage.total, 0).values():
        read(transport, remote, local, wait)  # maps what has to be mapped
    wire = transport.used("source")
    rows: list[dict[str, Any]] = [
        {**common, "measure": "link", "wire": wire, "transport_made_ms": round(1e3 * made_s, 1)}
        | {"connect_ms": round(1e3 * connect_s, 2), "first_block_ms": round(1e3 * first_s, 2)}
        | {"one_block_ms": round(1e3 * small, 3)}
    ]
    into = np.full_like(blocks[: len(blocks) // 2], 2)
    for pattern, (remote, local) in block_lists(storage.total, 1).items():
        size, times, copies = len(remote) * block_bytes, [], []
        blocks[:] = 0
        for _ in range(repeats):
            times.append(read(transport, remote, local, wait))
            copies.append(plain_copy(blocks, into))
        assert (blocks[local] == 1).all()
        rows.append(
            {**common, "measure": "read", "wire": wire, "pattern": pattern, "mib": size >> 20}
            | {"gb_per_s": round(size / statistics.median(times) / 1e9, 3)}
            | {"copy_gb_per_s": round(size / statistics.median(copies) / 1e9, 3)}
        )
    transport.disconnect("source")
    transport.close()
    reader = reader_of(storage, metadata, path)
    reader.link()
    rows.append(last_read_row(reader, storage.total, storage.total // 2 - 1, repeats, {**common, "wire": wire}))
    reader.close()
    source.kill()
    source.communicate()
    return rows


def reader_of(storage: HostStorage, metadata: bytes, path: GrpcPath | None) -> Reader:
    if path is None:
        return Reader(storage, lambda tell: NixlTransport("target", storage), {"nixl": metadata}, lambda fetch: None)
    reader = Reader(storage, lambda tell: RelayTransport(storage, SystemClock(), tell), {"grpc": b""}, path.ask)
    path.answer = reader.order
    return reader


def plain_copy(blocks: Any, into: Any) -> float:
    """Seconds for as many bytes as a read moves, within this process."""
    began = time.perf_counter()
    np.copyto(into, blocks[: len(into)])
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("build/bench/kv.json"))
    parser.add_argument("--no-live", action="store_true", help="Only transports, no live services.")
    parser.add_argument("--quick", action="store_true", help="Less of the live services: one minute instead of three.")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--target", help=argparse.SUPPRESS)
    parser.add_argument("--block-bytes", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.block_bytes)
    if arguments.target:
        print(json.dumps(target(arguments.target, arguments.block_bytes, arguments.repeats)))
        return
    rows: list[dict[str, Any]] = []
    for name, environment in TRANSPORTS.items():
        for kib in BLOCK_KIB:
            command = [sys.executable, __file__, "--target", name, "--block-bytes", str(kib * 1024)]
            ran = subprocess.run(
                [*command, "--repeats", str(arguments.repeats)],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            for row in json.loads(ran.stdout.splitlines()[-1]):
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
                rows.append(row)
    if not arguments.no_live:
        for row in asyncio.run(live_rows(arguments.quick)):
            print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
            rows.append(row)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    document = {"cores": os.cpu_count(), "repeats": arguments.repeats, "rows": rows}
    arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
