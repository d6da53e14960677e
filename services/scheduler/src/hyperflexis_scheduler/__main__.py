"""`python -m hyperflexis_scheduler [--health] [--config FILE] [--field value ...]`"""

from __future__ import annotations

import asyncio
import sys

from hyperflexis_common.config import ConfigError, exit_with, load_settings
from hyperflexis_common.logs import configure_logs
from hyperflexis_common.server import advertised, check_health, run
from hyperflexis_scheduler.app import serve
from hyperflexis_scheduler.config import SchedulerSettings


def main() -> None:
    arguments = sys.argv[1:]
    health = "--health" in arguments
    if health:
        arguments.remove("--health")
    try:
        settings = load_settings(SchedulerSettings, arguments)
    except ConfigError as error:
        exit_with(error)
        return
    if health:
        port = int(settings.listen.rpartition(":")[2])
        healthy = asyncio.run(check_health(advertised(settings.listen, port, "")))
        raise SystemExit(0 if healthy else 1)
    configure_logs(settings.log_level, service="scheduler")
    try:
        run(lambda: serve(settings))
    except RuntimeError as error:
        exit_with(ConfigError(str(error)))


if __name__ == "__main__":
    main()
