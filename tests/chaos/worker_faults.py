"""Workers and their engines that die, hang, stop and come back."""

from __future__ import annotations

import contextlib
import os
import signal

from chaos import Chaos


async def kill_worker(chaos: Chaos) -> None:
    """And another process under the same id."""
    await chaos.cell.respawn(chaos.worker())


async def kill_engine(chaos: Chaos) -> None:
    pid = chaos.cell.engine_pid(chaos.worker())
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


async def stop_engine(chaos: Chaos) -> None:
    """The engine hangs: the shell lives and says so."""
    pid = chaos.cell.engine_pid(chaos.worker())
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            await chaos.pause(0.5, 4.0)
            os.kill(pid, signal.SIGCONT)


async def stop_worker(chaos: Chaos) -> None:
    name = chaos.worker()
    chaos.cell.signal(name, signal.SIGSTOP)
    await chaos.pause(0.2, 5.0)
    chaos.cell.signal(name, signal.SIGCONT)


async def stop_replace_continue_worker(chaos: Chaos) -> None:
    """SIGSTOP, another process takes its id, then SIGCONT: it must not be let in again."""
    name = chaos.worker()
    old = chaos.cell.children[name]
    chaos.cell.signal(name, signal.SIGSTOP)
    await chaos.cell.replace_stopped_worker(name)
    await chaos.pause(0.1, 3.0)
    with contextlib.suppress(Exception):
        old.send(signal.SIGCONT)


async def restart_worker(chaos: Chaos) -> None:
    """Asked to stop (it drains), then started again under its id."""
    name = chaos.worker()
    await chaos.cell.children[name].stop()
    await chaos.cell.respawn(name)
