"""`hyperflexis migrate`, `role`, `drain`: what an operator may want of a worker or a request."""

from __future__ import annotations

import secrets
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.markup import escape

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import scheduler_service_pb2 as wire
from hyperflexis.scheduler.v1 import scheduler_service_pb2_grpc, worker_session_pb2
from hyperflexis_cli.console import friendly, out
from hyperflexis_cli.leader import Scheduler, leader_of
from hyperflexis_common.channel import open_channel

APPLY_S = 5.0

Worker = Annotated[str, typer.Argument(help="As `hyperflexis cluster` names it.", show_default=False)]


class Role(StrEnum):
    mixed = "mixed"
    prefill = "prefill"
    decode = "decode"


@friendly
async def migrate(
    request_id: Annotated[str, typer.Argument(help="One that runs; `hyperflexis requests` lists them.")],
    worker: Worker,
    scheduler: Scheduler = "",
) -> None:
    """Moves a running request to another worker, cache and all; its client notices nothing."""
    action = wire.MigrateRequest(request_id=request_id, target_worker_id=worker)
    await _apply(scheduler, migrate=action)
    out.print(f"{escape(request_id)} is on its way to {escape(worker)}; `hyperflexis explain` tells what comes of it")


@friendly
async def role(worker: Worker, role: Annotated[Role, typer.Argument()], scheduler: Scheduler = "") -> None:
    """Says what a worker may be sent from now on; what runs there goes on."""
    number = capability_pb2.Role.Value(f"ROLE_{role.value.upper()}")
    await _apply(scheduler, worker_id=worker, set_role=worker_session_pb2.SetRole(role=number))
    out.print(f"{escape(worker)} is {role.value} now")


@friendly
async def drain(
    worker: Worker,
    undo: Annotated[bool, typer.Option("--undo", help="Let it take new requests again.")] = False,
    scheduler: Scheduler = "",
) -> None:
    """Lets a worker take nothing new; what runs there moves away, or ends there where no other has room."""
    await _apply(scheduler, worker_id=worker, drain=worker_session_pb2.Drain(reason="operator", undo=undo))
    out.print(f"{escape(worker)} {'serves again' if undo else 'drains'}")


async def _apply(scheduler: str, **action: Any) -> None:
    """Raises AioRpcError with the scheduler's own words."""
    leader = await leader_of(scheduler)
    request = wire.ApplyRequest(action_id=f"cli-{secrets.token_hex(8)}", **action)
    async with open_channel(leader) as channel:
        await scheduler_service_pb2_grpc.SchedulerServiceStub(channel).Apply(request, timeout=APPLY_S)
