"""Section e: NIXL beside the gather, with the same lists of blocks, over plain memory and over mapped memory."""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import time
from typing import Any

import numpy as np
import torch
from kv_section import Section
from kv_side import Side, milliseconds

PATIENCE_S = 15.0


def installed() -> str:
    """The module there is; empty where there is none."""
    return next((name for name in ("nixl_cu13", "nixl") if importlib.util.find_spec(name)), "")


class NixlSide(Side):
    """One agent, and one piece of memory at a time."""

    def agent(self, name: str) -> dict[str, Any]:
        api = importlib.import_module(f"{installed()}._api")
        began = time.perf_counter()
        self.nixl: Any = api.nixl_agent(name, api.nixl_agent_config(backends=["UCX"]))
        self.registered: Any = None
        return {"agent_ms": milliseconds(began)}

    def register(self, nbytes: int, kind: str) -> dict[str, Any]:
        """`kind`: torch = the caching allocator's, vmm = mapped, rdma = mapped and known to network cards."""
        if self.registered is not None:
            self.nixl.deregister_memory(self.registered)
            self.registered = None
        self.release()
        if kind == "torch":
            self.words = torch.empty(nbytes // 4, dtype=torch.int32, device=f"cuda:{self.device}")
        else:
            from hyperflexis_worker.cuda.vmm import DeviceMemory

            self.memory = DeviceMemory.create(nbytes, self.device, rdma=kind == "rdma")
            self.words = self.memory.tensor().view(torch.int32)[: nbytes // 4]
        self.fill()
        began = time.perf_counter()
        place = [(self.words.data_ptr(), nbytes, self.device, "")]
        self.registered = self.nixl.register_memory(place, mem_type="VRAM")
        took = milliseconds(began)
        return {"register_ms": took, "address": self.words.data_ptr(), "metadata": self.nixl.get_agent_metadata()}

    def add(self, metadata: bytes) -> dict[str, Any]:
        began = time.perf_counter()
        self.nixl.add_remote_agent(metadata)
        return {"link_ms": milliseconds(began)}

    def read(self, remote_base: int, nbytes: int, block_bytes: int, repeat: int, seed: int) -> dict[str, Any]:
        """Random blocks from the peer, contents checked."""
        total = self.words.nbytes // block_bytes
        chance = np.random.default_rng(seed)
        count = min(max(1, nbytes // block_bytes), total)
        remote, local = chance.permutation(total)[:count], chance.permutation(total)[:count]
        self.wipe()
        began = time.perf_counter()
        everywhere = np.arange(count, dtype=np.int32)
        sides = [
            self.nixl.prep_xfer_dlist(name, self._places(base, blocks, block_bytes), mem_type="VRAM")
            for name, base, blocks in (("", self.words.data_ptr(), local), ("exporter", remote_base, remote))
        ]
        transfer = self.nixl.make_prepped_xfer("READ", sides[0], everywhere, sides[1], everywhere)
        prepared = milliseconds(began)
        took = []
        for _ in range(repeat):
            began = time.perf_counter()
            state = self.nixl.transfer(transfer)
            while state not in ("DONE", "ERR"):
                if time.perf_counter() - began > PATIENCE_S:
                    raise TimeoutError(f"not over in {PATIENCE_S:.0f} s")
                state = self.nixl.check_xfer_state(transfer)
            if state == "ERR":
                raise RuntimeError("the transfer failed")
            took.append(time.perf_counter() - began)
        self.nixl.release_xfer_handle(transfer)
        for side in sides:
            self.nixl.release_dlist_handle(side)
        self.blocks.total, self.blocks.block_bytes = total, block_bytes
        torch.cuda.synchronize(self.device)
        return {
            "blocks": count,
            "prepare_ms": prepared,
            "gb_s": round(count * block_bytes / statistics.median(took) / 1e9, 1),
            "wrong_blocks": self.wrong(remote, local),
        }

    def _places(self, base: int, blocks: np.ndarray, block_bytes: int) -> np.ndarray:
        places = np.empty((len(blocks), 3), dtype=np.uint64)
        places[:, 0] = base + blocks.astype(np.uint64) * np.uint64(block_bytes)
        places[:, 1], places[:, 2] = block_bytes, self.device
        return places


def nixl(section: Section) -> None:
    """Section e."""
    if not installed():
        section.found["skipped"] = "neither nixl_cu13 nor nixl is installed"
        section.say("NIXL is not installed: skipped")
        return
    nbytes, sizes = 1 << 30, (65_536, 262_144, 2 << 20, 8 << 20)
    for kind in ("torch", "vmm", "rdma"):
        # Fresh processes: what one kind of memory breaks must not be told of the next.
        section.tried(kind, _kind, section, kind, nbytes, sizes)


def _kind(section: Section, kind: str, nbytes: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with (
        section.actor("exporter", NixlSide, section.exporter_gpu) as exporter,
        section.actor("importer", NixlSide, section.importer_gpu) as importer,
    ):
        exporter.ready()
        importer.ready()
        exporter.send("agent", name="exporter")
        found |= importer.call("agent", name="importer")
        exporter.receive()
        card = exporter.call("register", nbytes=nbytes, kind=kind)
        importer.call("register", nbytes=nbytes, kind=kind)
        found |= {"register_ms": card["register_ms"]}
        found |= importer.call("add", metadata=card["metadata"])
        for size in sizes:
            try:
                found[str(size)] = importer.call(
                    "read", remote_base=card["address"], nbytes=nbytes // 2, block_bytes=size, repeat=3, seed=size
                )
            except Exception as error:
                found[str(size)] = {"error": str(error)}
                section.errors.append(f"{kind}, {size}: {error}")
                break
    return found
