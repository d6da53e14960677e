"""`hyperflexis up`: the whole stack on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.live import Live
from rich.markup import escape

from hyperflexis_cli.cluster import look_at_cluster
from hyperflexis_cli.console import friendly, out
from hyperflexis_cli.sample import ensure_sample_model
from hyperflexis_cli.stack import LocalStack
from hyperflexis_cli.stack_settings import SAMPLE_MODEL, Document, built_in_document
from hyperflexis_cli.status import Row, status_rows, status_table
from hyperflexis_common.config import read_document

LOOK_EVERY_S = 1.0


@friendly
async def up(
    config: Annotated[
        Path | None, typer.Option(help="The stack's YAML. Default: the small sample model.", show_default=False)
    ] = None,
    engine: Annotated[
        Literal["embedded", "modelled"] | None, typer.Option(help="What the workers run.", show_default=False)
    ] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Workers per model.", show_default=False)] = None,
    routers: Annotated[int | None, typer.Option(min=1, help="Routers.", show_default=False)] = None,
) -> None:
    """Runs routers, schedulers, the scaler, its workers and Redis as processes of this machine.

    The first router listens on router.listen of the YAML (default 127.0.0.1:50051), everything else on free ports.
    Logs are in .hyperflexis/<run>/. Ctrl-C ends everything.
    """
    with stop_signal() as stopping:
        document = await stack_document(config, engine)
        stack = LocalStack(document, engine=engine, workers=workers, routers=routers)
        out.print(f"starting, logs in {stack.run_dir}", soft_wrap=True)
        starting = asyncio.create_task(stack.start())
        try:
            await _first_of(starting, stopping)
            if not stopping.is_set():
                out.print(f"up: clients connect to {', '.join(stack.routers)} (Ctrl-C ends it)", soft_wrap=True)
                await _show(stack, stopping)
        finally:
            out.print("stopping", soft_wrap=True)
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await starting
            await stack.stop()
    out.print("stopped")


async def stack_document(config: Path | None, engine: str | None) -> Document:
    """The YAML, or the built-in one with its sample model. Raises ConfigError, StackError."""
    if config is not None:
        return read_document(config)
    engine = engine or "embedded"
    if engine == "embedded":
        await ensure_sample_model(SAMPLE_MODEL)
    return built_in_document(engine)


@contextlib.contextmanager
def stop_signal() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT or SIGTERM sets, instead of ending the program."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        loop.add_signal_handler(number, stopping.set)
    try:
        yield stopping
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _first_of(task: asyncio.Task[None], stopping: asyncio.Event) -> None:
    """Until the task ends or the stop is asked for. Raises what the task raised."""
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()


async def _show(stack: LocalStack, stopping: asyncio.Event) -> None:
    """The table on a terminal; elsewhere a line per change."""
    title = f"HyperFlexis, logs in {stack.run_dir}"
    shown: dict[tuple[str, str], Row] = {}
    live = Live(console=out, auto_refresh=False) if out.is_terminal else None
    with live or contextlib.nullcontext():
        while not stopping.is_set():
            rows = status_rows(stack, await look_at_cluster(stack.schedulers))
            if live is not None:
                live.update(status_table(rows, title), refresh=True)
            else:
                now = {row[:2]: row for row in rows}
                for key in now.keys() | shown.keys():
                    if now.get(key) != shown.get(key):
                        out.print(_line(now.get(key), key), soft_wrap=True)
                shown = now
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await stopping.wait()


def _line(row: Row | None, key: tuple[str, str]) -> str:
    if row is None:
        return escape(f"{key[0]} {key[1]}: gone")
    service, name, address, state, pid = row
    return escape(f"{service} {name}: {state}{f' at {address}' if address else ''} (pid {pid})")
