"""Sections a and b: what mapping costs, and how fast fragmented lists of blocks are gathered."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from kv_actor import Actor
from kv_section import Section
from kv_side import Side, milliseconds, timed

from hyperflexis_worker.cuda.gather import Grid
from hyperflexis_worker.cuda.vmm import DeviceMemory

MIB = 1 << 20


class LinkSide(Side):
    """Times the steps of the driver one by one."""

    def steps(self, nbytes: int, rdma: bool) -> dict[str, float]:
        began = time.perf_counter()
        memory = DeviceMemory.create(nbytes, self.device, rdma=rdma)
        found = {"create_map_ms": milliseconds(began)}
        began = time.perf_counter()
        memory.tensor()[:: 2 * MIB].fill_(1)
        torch.cuda.synchronize(self.device)
        found["first_touch_ms"] = milliseconds(began)
        began = time.perf_counter()
        descriptor = memory.export()
        found["export_ms"] = milliseconds(began)
        os.close(descriptor)
        began = time.perf_counter()
        memory.close()
        found["close_ms"] = milliseconds(began)
        memory.close()
        free, total = torch.cuda.mem_get_info(self.device)
        return found | {"free_gib": round(free / 2**30, 2), "of_gib": round(total / 2**30, 2)}

    def again(self, peer: str, metadata: bytes, repeat: int) -> dict[str, Any]:
        """Links made and ended."""
        assert self.transport is not None
        transport = self.transport
        took = sorted(timed(lambda: transport.connect(peer, metadata), repeat))
        return {"link_ms_median": took[len(took) // 2], "link_ms_worst": took[-1], "unlink_ms": self.unlink(peer)}

    def free_mib(self) -> int:
        return int(torch.cuda.mem_get_info(self.device)[0] >> 20)

    def descriptors(self) -> int:
        """Open in this process: exported ones must not stay."""
        return len(os.listdir("/proc/self/fd"))


class WideSide(LinkSide):
    """Sees all GPUs and is on the last one."""

    def __init__(self) -> None:
        super().__init__(torch.cuda.device_count() - 1)

    def copy(self, nbytes: int) -> dict[str, Any]:
        """torch's own copy between the first GPU and the last."""
        there = torch.empty(nbytes, dtype=torch.uint8, device="cuda:0").random_()
        here = torch.empty_like(there, device=f"cuda:{self.device}")
        rates = []
        for _ in range(6):
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize(0)
            torch.cuda.synchronize(self.device)
            began.record()
            here.copy_(there)
            ended.record()
            torch.cuda.synchronize(self.device)
            rates.append(nbytes / began.elapsed_time(ended) / 1e6)
        same = torch.equal(here[-MIB:].cpu(), there[-MIB:].cpu())
        return {"gb_s": round(sorted(rates)[len(rates) // 2], 1), "right": same}


def link(section: Section) -> None:
    """Section a."""
    pool = section.pick(4 << 30, 4 * MIB)
    with (
        section.actor("exporter", LinkSide, section.exporter_gpu) as exporter,
        section.actor("importer", LinkSide, section.importer_gpu) as importer,
        section.actor("wide", WideSide, None) as wide,
        section.actor("neighbour", LinkSide, section.exporter_gpu) as neighbour,
    ):
        exporter.ready()
        importer.ready()
        for size in section.pick((1 << 30, 16 << 30), (MIB, 4 * MIB)):
            section.tried(f"steps_{size >> 20}_mib", exporter.call, "steps", nbytes=size, rdma=False)
        section.tried("steps_rdma", exporter.call, "steps", nbytes=pool, rdma=True)
        block = section.pick(2 * MIB, 65_536)
        card = exporter.call("make", nbytes=pool) | exporter.call("open", block_bytes=block)
        exporter.call("fill")
        section.say(f"exporter: pool {card['create_ms']} ms, transport {card['open_ms']} ms (the kernel is compiled)")
        before = exporter.call("descriptors")
        for actor in (importer, neighbour, wide):
            section.tried(f"link_of_{actor.name}", _link, section, actor, card["metadata"], block)
        section.tried("descriptors_left", lambda: exporter.call("descriptors") - before)
        section.tried("owner_closes_first", _outlived, section, exporter, importer, card["metadata"])


def _link(section: Section, actor: Actor, metadata: bytes, block: int) -> dict[str, Any]:
    """Links one process, gathers, and links again and again."""
    if actor.name != "importer":
        actor.ready()
    made = actor.call("make", nbytes=section.pick(4 << 30, 4 * MIB))
    opened = actor.call("open", block_bytes=block)
    found = actor.call("link", peer="exporter", metadata=metadata)
    nbytes = section.pick(1 << 30, MIB)
    gathered = actor.call("gather", peer="exporter", nbytes=nbytes, repeat=5, seed=1, programs=24)
    again = actor.call("again", peer="exporter", metadata=metadata, repeat=10)
    return {**made, "open_ms": opened["open_ms"], **found, "gather": gathered, **again}


def _outlived(section: Section, exporter: Actor, importer: Actor, metadata: bytes) -> dict[str, Any]:
    """The owner gives its pool up while it is mapped elsewhere: it can be read on, and comes back with the link."""
    importer.call("link", peer="exporter", metadata=metadata)
    free = exporter.call("free_mib")
    closed_ms = exporter.call("release")
    still_held = exporter.call("free_mib")
    nbytes = section.pick(1 << 30, MIB)
    gathered = importer.call("gather", peer="exporter", nbytes=nbytes, repeat=3, seed=2, programs=24)
    unlink_ms = importer.call("unlink", peer="exporter")
    return {
        "close_ms": closed_ms,
        "returned_at_close_mib": still_held - free,
        "gather_afterwards": gathered,
        "unlink_ms": unlink_ms,
        "returned_at_unlink_mib": exporter.call("free_mib") - free,
    }


def gather(section: Section) -> None:
    """Section b."""
    pool = section.pick(4 << 30, MIB)
    # Also what no power of two divides.
    sizes = section.pick((16_384, 24_576, 40_960, 65_536, 262_144, 917_504, 2 * MIB, 8 * MIB), (16_384, 65_536))
    with (
        section.actor("exporter", LinkSide, section.exporter_gpu) as exporter,
        section.actor("importer", LinkSide, section.importer_gpu) as importer,
        section.actor("wide", WideSide, None) as wide,
    ):
        exporter.ready()
        importer.ready()
        exporter.call("make", nbytes=pool)
        exporter.call("fill")
        importer.call("make", nbytes=pool)
        # Also small ones, and one that is no multiple of a line of memory.
        for size in (*sizes, 12_288, 49_168, 4_096):
            section.tried(f"pieces_{size}", _gathers, section, exporter, importer, size)
        for tile, warps in ((16_384, 8), (65_536, 16), (32_768, 8)):
            section.tried(f"tile_{tile}_warps_{warps}", _shaped, section, exporter, importer, tile, warps)
        section.tried("torch_peer_copy", _copied, section, wide)
    _judge(section, sizes)


def _judge(section: Section, sizes: tuple[int, ...]) -> None:
    usual = str(Grid().programs)
    found = [section.found[f"pieces_{size}"] for size in sizes]
    rates = [one[usual]["gb_s"] for one in found if usual in one]
    section.found["programs"] = Grid().programs
    section.found["slowest_gb_s"] = min(rates, default=0.0)
    section.found["reaches_330_gb_s"] = len(rates) == len(sizes) and min(rates) >= 330
    section.say(f"slowest at {usual} programs: {section.found['slowest_gb_s']} GB/s")


def _copied(section: Section, wide: Actor) -> Any:
    wide.ready()
    return wide.call("copy", nbytes=section.pick(2 << 30, MIB))


def _gathers(section: Section, exporter: Actor, importer: Actor, size: int) -> dict[str, Any]:
    """All grids at one size of blocks."""
    opened = exporter.call("open", block_bytes=size)
    importer.call("open", block_bytes=size)
    found: dict[str, Any] = importer.call("link", peer="exporter", metadata=opened["metadata"])
    nbytes = section.pick(1 << 30, 1 << 18)
    for programs in section.pick((16, 17, 18, 20, 24, 1_000_000), (2, Grid().programs)):
        name = str(programs) if programs < 1_000 else "uncapped"
        found[name] = importer.call("gather", peer="exporter", nbytes=nbytes, repeat=7, seed=size, programs=programs)
    wrong = sum(one["wrong_blocks"] for one in found.values() if isinstance(one, dict))
    if wrong:
        raise AssertionError(f"{wrong} wrong blocks: {found}")
    return found


def _shaped(section: Section, exporter: Actor, importer: Actor, tile: int, warps: int) -> dict[str, Any]:
    """24 programs of another shape, at 64 KiB."""
    opened = exporter.call("open", block_bytes=65_536)
    importer.call("open", block_bytes=65_536, tile_bytes=tile, warps=warps)
    importer.call("link", peer="exporter", metadata=opened["metadata"])
    nbytes = section.pick(1 << 30, 1 << 18)
    found: dict[str, Any] = importer.call("gather", peer="exporter", nbytes=nbytes, repeat=7, seed=3, programs=24)
    return found
