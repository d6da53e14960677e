"""Engines with links between them, and the part of their shells that moves caches."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from engine_rig import SECOND_US, EngineEnd, EngineRig, modelled_settings, on_wire
from memory_wire import MemoryWire

from hyperflexis_common.tokens import unpack
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.engine import frames
from hyperflexis_worker.engine import kv_frames as kv
from hyperflexis_worker.engine.factory import build_engine

Frame = TypeVar("Frame", bound=frames.FromEngine)


class Cell:
    """Engines, and shells that carry bytes between them (`cut`: pairs of names between which they do not)."""

    def __init__(self, *engines: EngineEnd) -> None:
        self.engines = list(engines)
        self.cut: set[tuple[str, str]] = set()
        self._asked: dict[int, tuple[EngineEnd, int]] = {}
        self._number = 0

    def number(self) -> int:
        self._number += 1
        return self._number

    def until(self, condition: Callable[[], Any], limit_s: float = 20.0) -> Any:
        """Carries messages until the condition holds; returns what it returned."""
        end = time.monotonic() + limit_s
        while not (result := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {limit_s} s: {[engine.said[-5:] for engine in self.engines]}")
            readable, _, _ = select.select([engine.sock for engine in self.engines], [], [], 0.05)
            for engine in self.engines:
                if engine.sock in readable:
                    for message in engine.receive():
                        self._carry(engine, message)
        return result

    def answer(self, engine: EngineEnd, kind: type[Frame], matches: Callable[[Frame], bool] = lambda _: True) -> Frame:
        """The next of this kind; it is taken out of what was said."""

        def found() -> Frame | None:
            for message in engine.said:
                if isinstance(message, kind) and matches(message):
                    engine.said.remove(message)
                    return message
            return None

        return self.until(found)  # type: ignore[no-any-return]

    def link(self, target: EngineEnd, source: EngineEnd) -> kv.Linked:
        target.send(kv.LinkPeer(source.name, source.ready.kv_metadata))
        return self.answer(target, kv.Linked, lambda linked: linked.peer == source.name)

    def export(
        self, engine: EngineEnd, name: str, seq: int = 1, lease_id: int = 0, lease_us: int = 60 * SECOND_US, **more: Any
    ) -> kv.Exported:
        number = self.number()
        engine.send(kv.Export(number, name, 1, seq, more.pop("from_block", 0), lease_id, lease_us, **more))
        return self.answer(engine, kv.Exported, lambda exported: exported.number == number)

    def reserve(self, engine: EngineEnd, name: str, tokens: int, seq: int = 2) -> kv.Reserved:
        engine.send(kv.Reserve(name, 1, seq, tokens))
        return self.answer(engine, kv.Reserved, lambda one: one.request_id == name)

    def pull(
        self,
        target: EngineEnd,
        source: EngineEnd,
        name: str,
        exported: kv.Exported,
        first_block: int = 0,
        within_us: int = 10 * SECOND_US,
        seq: int = 2,
    ) -> int:
        """Begins it; the number that its answer will have."""
        number = self.number()
        target.send(
            kv.Pull(number, name, 1, seq, source.name, exported.lease_id, first_block, exported.blocks, within_us)
        )
        return number

    def pulled(self, target: EngineEnd, number: int) -> kv.Pulled:
        return self.answer(target, kv.Pulled, lambda pulled: pulled.number == number)

    def release(self, source: EngineEnd, lease_id: int) -> kv.Released:
        number = self.number()
        source.send(kv.ReleaseLease(number, lease_id))
        return self.answer(source, kv.Released, lambda released: released.number == number)

    def move(
        self,
        name: str,
        source: EngineEnd,
        target: EngineEnd,
        prompt: list[int],
        max_tokens: int,
        seq: int = 1,
        **rules: Any,
    ) -> kv.Exported:
        """A hand-off as it should be: pre-copy under way, then the rest. Attaches; returns the final export."""
        first = self.export(source, name, seq)
        assert not first.error, first.error
        assert self.reserve(target, name, first.computed + 40, seq + 1).ok
        if first.blocks:
            pulled = self.pulled(target, self.pull(target, source, name, first, seq=seq + 1))
            assert not pulled.error, pulled.error
        done = len(first.blocks)
        last = self.export(source, name, seq, first.lease_id, final=True, from_block=done)
        assert not last.error, last.error
        assert self.reserve(target, name, last.computed, seq + 1).ok
        if last.blocks:
            pulled = self.pulled(target, self.pull(target, source, name, last, done, seq=seq + 1))
            assert not pulled.error, pulled.error
        assert self.release(source, last.lease_id).held
        committed = unpack(last.output)
        target.outputs[name] = list(committed)
        add = target.add_frame(name, prompt, max_tokens, committed, seq + 1, **rules)
        target.send(frames.Attach(add, last.computed))
        return last

    def _carry(self, engine: EngineEnd, message: frames.FromEngine) -> None:
        if isinstance(message, kv.FetchBytes):
            source = next((one for one in self.engines if one.name == message.peer), None)
            if source is None or (engine.name, source.name) in self.cut:
                engine.send(kv.FetchedBytes(message.number, b"", "that worker is not to be reached"))
                return
            number = self.number()
            self._asked[number] = engine, message.number
            source.send(kv.ReadBlocks(number, message.lease_id, message.blocks))
        elif isinstance(message, kv.BlockBytes):
            asker, number = self._asked.pop(message.number)
            asker.send(kv.FetchedBytes(number, message.data, message.error))


@contextmanager
def cell(*all_settings: WorkerSettings, wire: MemoryWire | None = None) -> Iterator[Cell]:
    """Engines with links from each to each, over the wire or through their shells; at the end nothing is held."""
    built = [on_wire(one, wire) if wire else build_engine(one) for one in all_settings]
    rigs = [EngineRig(one) for one in built]
    cell = Cell(*rigs)
    try:
        for target in cell.engines:
            for source in cell.engines:
                if target is not source:
                    linked = cell.link(target, source)
                    assert linked.transport == ("peer" if wire else "grpc"), linked.error
        yield cell
    finally:
        for engine in rigs:
            engine.stop()


def slow(worker_id: str, **changes: Any) -> WorkerSettings:
    """A millisecond or so a step: there is time to act between two."""
    return modelled_settings(worker_id, **{"time_scale": 3.0, **changes})
