"""`python -m hyperflexis_worker`: one GPU worker."""

from __future__ import annotations

import asyncio
import sys

from hyperflexis_common.config import ConfigError, exit_with, load_settings
from hyperflexis_common.logs import configure_logs
from hyperflexis_common.server import check_health, run
from hyperflexis_worker.app import EngineUnusable, run_worker
from hyperflexis_worker.config import WorkerSettings


def main() -> None:
    arguments = sys.argv[1:]
    health = "--health" in arguments
    try:
        settings = load_settings(WorkerSettings, [a for a in arguments if a != "--health"])
        if not health:
            settings.check()
    except ConfigError as error:
        exit_with(error)
    except ValueError as error:
        exit_with(ConfigError(str(error)))
    if health:
        raise SystemExit(0 if asyncio.run(check_health(settings.listen)) else 1)
    configure_logs(settings.log_level, service="worker", worker=settings.worker_id)
    status = 1

    async def serve() -> None:
        nonlocal status
        status = await run_worker(settings)

    try:
        run(serve)
    except EngineUnusable as error:
        print(f"the engine did not start: {error}", file=sys.stderr)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
