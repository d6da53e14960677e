"""`python -m hyperflexis_scaler`: the fleet of one cell."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from hyperflexis_common.config import CONFIG_VARIABLE, ConfigError, exit_with, load_settings
from hyperflexis_common.logs import configure_logs
from hyperflexis_common.server import check_health, run
from hyperflexis_scaler.app import run_scaler
from hyperflexis_scaler.config import ScalerSettings
from hyperflexis_scaler.faults import Faults


def config_file(arguments: list[str]) -> Path | None:
    """The file that load_settings reads, for the workers to read it too."""
    named = arguments[arguments.index("--config") + 1] if "--config" in arguments else os.environ.get(CONFIG_VARIABLE)
    return Path(named) if named else None


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--health"]
    try:
        settings = load_settings(ScalerSettings, arguments)
        faults = Faults.from_environment()
    except ConfigError as error:
        exit_with(error)
    except ValueError as error:
        exit_with(ConfigError(str(error)))
    if "--health" in sys.argv[1:]:
        raise SystemExit(0 if asyncio.run(check_health(settings.listen)) else 1)
    configure_logs(settings.log_level, service="scaler")
    succeeded = False

    async def serve() -> None:
        nonlocal succeeded
        succeeded = await run_scaler(settings, config_file(arguments), faults)

    run(serve)
    raise SystemExit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
