"""The engine process: `python -m hyperflexis_worker.engine FD`, settings as JSON in the environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

import structlog

from hyperflexis_common.clock import SystemClock
from hyperflexis_common.logs import configure_logs
from hyperflexis_worker.config import WorkerSettings
from hyperflexis_worker.engine.command_socket import CommandSocket
from hyperflexis_worker.engine.factory import build_engine
from hyperflexis_worker.engine.frames import EngineFailed
from hyperflexis_worker.engine.loop import EngineLoop
from hyperflexis_worker.engine.step_log import StepLog

SETTINGS_VARIABLE = "HYPERFLEXIS_ENGINE_SETTINGS"


def serve(sock: socket.socket, settings: WorkerSettings) -> None:
    """Builds the engine and runs its loop; a failure is told to the shell and raised."""
    commands = CommandSocket(sock)
    log = StepLog(settings.step_log, settings.worker_id) if settings.step_log else None
    try:
        EngineLoop(build_engine(settings), commands, SystemClock(), log).run()
    except Exception as error:
        structlog.get_logger(__name__).exception("engine failed")
        with contextlib.suppress(OSError):
            commands.send(EngineFailed(f"{type(error).__name__}: {error}"))
        raise
    finally:
        sock.close()
        if log is not None:
            log.close()


def main() -> None:
    # The terminal's Ctrl-C goes to the whole group; the shell decides when the engine stops.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    settings = WorkerSettings.model_validate(json.loads(os.environ[SETTINGS_VARIABLE]))
    configure_logs(settings.log_level, service="worker", part="engine", worker=settings.worker_id)
    serve(socket.socket(fileno=int(sys.argv[1])), settings)


if __name__ == "__main__":
    main()
