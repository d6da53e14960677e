"""Which transports an engine has: those that its settings name, as far as they are to be had here."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import TYPE_CHECKING

import structlog

from hyperflexis_common.clock import Clock
from hyperflexis_worker.kv.nixl import NixlTransport
from hyperflexis_worker.kv.relay import RelayTransport
from hyperflexis_worker.kv.transfers import News
from hyperflexis_worker.kv.transport import LinkError, Storage, Transport

if TYPE_CHECKING:
    from hyperflexis_worker.cuda.vmm import DeviceMemory

log = structlog.get_logger(__name__)


def open_transports(
    names: Rows[str],
    engine_name: str,
    storage: Storage,
    clock: Clock,
    tell: Callable[[News], None],
    memory: DeviceMemory | None = None,
) -> list[Transport]:
    """In the order of `names`, best first. One that is not to be had is left out, with a warning. `memory`: that of a
    pool which peers on this host can map."""
    made: list[Transport] = []
    for name in names:
        try:
            match name:
                case "nixl":
                    made.append(NixlTransport(engine_name, storage))
                case "grpc":
                    made.append(RelayTransport(storage, clock, tell))
                case "peer":
                    made.append(_peer(storage, memory))
                case _:
                    raise LinkError("there is no such transport in this build")
        except LinkError as error:
            log.warning("caches move without this transport", transport=name, error=str(error))
    return made


def _peer(storage: Storage, memory: DeviceMemory | None) -> Transport:
    if memory is None:
        raise LinkError("the pool is not in GPU memory that a peer could map")
    from hyperflexis_worker.cuda.peer import PeerTransport

    try:
        return PeerTransport(storage, memory)
    except (ImportError, OSError, ValueError, RuntimeError) as error:
        raise LinkError(f"{type(error).__name__}: {error}") from error
