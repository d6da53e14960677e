"""The least a grpc.aio server can do for the same clients: the yardstick for what a router costs.

`python bench/bare_server.py` answers Generate with messages of the same kinds and sizes: for one token at once, for
more a delta every `--period-ms` with `--tokens` ids. No scheduler, no worker, no record, nothing checked.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
import grpc.aio

from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.channel import SERVER_OPTIONS
from hyperflexis_common.server import run, wait_for_signal
from hyperflexis_common.tokens import pack

REQUEST_ID = "0" * 32
SERVICE = "hyperflexis.router.v1.InferenceService"


class BareService:
    def __init__(self, tokens: int) -> None:
        self._packed = pack(range(tokens))
        self._step = asyncio.Event()

    async def tick(self, period_s: float) -> None:
        """All streams write at once, as after an engine's step."""
        while True:
            await asyncio.sleep(period_s)
            step, self._step = self._step, asyncio.Event()
            step.set()

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> None:
        accepted = pb.Accepted(request_id=REQUEST_ID, prompt_tokens=512, max_tokens=1, seed=1, router_id="bare")
        await context.write(pb.GenerateResponse(event=pb.StreamEvent(accepted=accepted)))
        index, end = 0, request.sampling.max_tokens
        while index < end:
            if end > 1:
                await self._step.wait()
            delta = pb.Delta(start_index=index, token_ids=pb.TokenIds(packed=self._packed if end > 1 else bytes(4)))
            await context.write(pb.GenerateResponse(event=pb.StreamEvent(delta=delta)))
            index += len(delta.token_ids.packed) // 4
        finished = pb.Finished(prompt_tokens=512, output_tokens=index)
        await context.write(pb.GenerateResponse(event=pb.StreamEvent(finished=finished)))


async def serve(tokens: int, period_s: float) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    service = BareService(tokens)
    handler = grpc.unary_stream_rpc_method_handler(
        service.Generate, pb.GenerateRequest.FromString, pb.GenerateResponse.SerializeToString
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"Generate": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready service=bare id=bare address=127.0.0.1:{port}", flush=True)
    ticks = asyncio.create_task(service.tick(period_s))
    await wait_for_signal()
    ticks.cancel()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1, help="token ids in a delta")
    parser.add_argument("--period-ms", type=float, default=25.0, help="from delta to delta of a stream")
    options = parser.parse_args()
    run(lambda: serve(options.tokens, options.period_ms / 1e3))
