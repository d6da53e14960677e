"""Workers and their engines that die, hang, stop and come back."""

from __future__ import annotations

import signal

from chaos import EFFECT_S, Chaos
from leadership import life_of, wait_for_another_life
from process_signs import freeze, send, until

from hyperflexis_cli.child import Child

LEAVE_S = 10.0
"""A worker that another process has replaced must be gone this long after it hears of it."""


async def kill_worker(chaos: Chaos) -> bool:
    """And another process under the same id."""
    return await chaos.cell.respawn(chaos.worker())


async def kill_engine(chaos: Chaos) -> bool:
    name = chaos.worker()
    pid = await _engine(chaos, name)
    mark = chaos.cell.mark(name)
    killed = pid is not None and send(pid, signal.SIGKILL)
    dead = killed and await mark.saw("the engine died", f"{pid}", timeout_s=EFFECT_S)
    chaos.cell.kills["engine"] += dead
    return dead


async def stop_engine(chaos: Chaos) -> bool:
    """The engine hangs: the shell lives and says so."""
    pid = await _engine(chaos, chaos.worker())
    if pid is None or not await freeze(pid):
        return False
    await chaos.pause(0.5, 4.0)
    return send(pid, signal.SIGCONT)


async def stop_worker(chaos: Chaos) -> bool:
    name = chaos.worker()
    frozen = await chaos.cell.freeze(name)
    await chaos.pause(0.2, 5.0)
    return await chaos.cell.thaw(name) and frozen


async def stop_replace_continue_worker(chaos: Chaos) -> bool:
    """SIGSTOP, another process takes its id, then SIGCONT: it must not be let in again, and leave by itself."""
    cell, name = chaos.cell, chaos.worker()
    older_life = await life_of(cell, name)
    if not await cell.freeze(name):
        return False
    # Sometimes its life has been given up by then, and only the registration tells that it was replaced.
    await chaos.pause(0.0, 7.0)
    old = await cell.replace_stopped_worker(name)
    life = await wait_for_another_life(cell, name, older_life, EFFECT_S)
    await chaos.pause(0.1, 3.0)
    if life is None or old.pid is None or not send(old.pid, signal.SIGCONT):
        return False
    wrong = await _eviction(chaos, name, old, life)
    if wrong:
        chaos.load.tally.evicted_replacements += 1
        chaos.load.tally.note(f"stop_replace_continue_worker: {name}: {wrong}")
        if old.pid is not None:
            send(old.pid, signal.SIGKILL)
        await cell.respawn(name)
    return True


async def _eviction(chaos: Chaos, name: str, old: Child, life: int) -> str:
    """What is wrong, once the old process has had its time to leave; empty where nothing is."""
    new = chaos.cell.children[name]
    left = await until(lambda: not old.running, LEAVE_S)
    found = await life_of(chaos.cell, name)
    if not new.running:
        return f"the replacement {new.state}; the old process {old.state}; {found} is registered, not {life}"
    if found != life:
        return f"{found} is registered, not the replacement {life}, which runs"
    return "" if left else f"the old process has not left within {LEAVE_S:g} s"


async def restart_worker(chaos: Chaos) -> bool:
    """Asked to stop (it drains), then started again under its id."""
    name = chaos.worker()
    child = chaos.cell.children[name]
    await child.stop()
    left = child.state == "exited 0"
    await chaos.cell.respawn(name)
    return left


async def _engine(chaos: Chaos, name: str) -> int | None:
    """Its pid, once it has one: it may be between two lives."""
    await until(lambda: chaos.cell.engine_pid(name) is not None, EFFECT_S)
    return chaos.cell.engine_pid(name)
