"""ScalerService over the running scaler."""

from __future__ import annotations

from typing import Any, NoReturn

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]

from hyperflexis.scaler.v1 import scaler_service_pb2, scaler_service_pb2_grpc
from hyperflexis_scaler.core.fleet import OverLimit, UnknownGroup
from hyperflexis_scaler.core.report import group_report, instances_report
from hyperflexis_scaler.fleet_log import NotRecorded
from hyperflexis_scaler.lease import Lease
from hyperflexis_scaler.scaler import Scaler

DETAILS_KEY = "grpc-status-details-bin"


class ScalerServicer(scaler_service_pb2_grpc.ScalerServiceServicer):
    """Reads are answered by every scaler, changes by the leader."""

    def __init__(self, scaler: Scaler, lease: Lease) -> None:
        self._scaler = scaler
        self._lease = lease

    async def GetFleet(
        self, request: scaler_service_pb2.GetFleetRequest, context: Any
    ) -> scaler_service_pb2.GetFleetResponse:
        return self._scaler.report()

    async def SetTarget(
        self, request: scaler_service_pb2.SetTargetRequest, context: Any
    ) -> scaler_service_pb2.SetTargetResponse:
        if self._lease.term is None:
            leader = self._lease.leader_address
            hint = f"; ask {leader}" if leader else "; no leader is known, try again"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this scaler does not lead{hint}")
        try:
            await self._scaler.set_target(request.group, request.target)
        except UnknownGroup as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except OverLimit as error:
            failure = error_details_pb2.QuotaFailure()
            failure.violations.add(subject=f"group:{request.group}", description=str(error))
            await _abort_with(context, code_pb2.RESOURCE_EXHAUSTED, str(error), failure)
        except NotRecorded as error:
            text = f"the target cannot be recorded: {error}; try again"
            await context.abort(grpc.StatusCode.UNAVAILABLE, text)
        core = self._scaler.core
        instances = instances_report(core, self._scaler.now_us())
        return scaler_service_pb2.SetTargetResponse(group=group_report(core, request.group, instances))


async def _abort_with(context: Any, code: int, message: str, detail: Message) -> NoReturn:
    """Aborts with a google.rpc.Status, so that clients can read the detail by type."""
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(detail)
    grpc_code = next(member for member in grpc.StatusCode if member.value[0] == code)
    await context.abort(grpc_code, message, ((DETAILS_KEY, status.SerializeToString()),))
    raise AssertionError("abort() raises")
