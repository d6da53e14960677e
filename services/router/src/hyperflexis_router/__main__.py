"""`python -m hyperflexis_router` and `hyperflexis-router`."""

from __future__ import annotations

import asyncio
import sys

from hyperflexis_common.config import ConfigError, exit_with, load_settings
from hyperflexis_common.logs import configure_logs
from hyperflexis_common.server import check_health, run
from hyperflexis_router.app import serve
from hyperflexis_router.config import RouterSettings


def main() -> None:
    arguments = sys.argv[1:]
    only_health = "--health" in arguments
    if only_health:
        arguments.remove("--health")
    try:
        settings = load_settings(RouterSettings, arguments)
        if only_health:
            raise SystemExit(0 if asyncio.run(check_health(settings.listen)) else 1)
        configure_logs(settings.log_level, service="router", instance=settings.router_id)
        run(lambda: serve(settings))
    except ConfigError as error:
        exit_with(error)
    except RuntimeError as error:
        print(f"router: {error}", file=sys.stderr)
        raise SystemExit(1) from error


if __name__ == "__main__":
    main()
