"""The small sample model, made when it is first needed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from hyperflexis_cli.stack import StackError

TIMEOUT_S = 300.0


async def ensure_sample_model(directory: Path) -> None:
    """Writes the model with the worker's own tool unless it is there. Raises StackError."""
    if (directory / "config.json").exists():
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "hyperflexis_worker.sample_model",
        str(directory),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(TIMEOUT_S):
            _, said = await process.communicate()
    except TimeoutError:
        raise StackError(f"the sample model was not written within {TIMEOUT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise StackError(f"the sample model cannot be written to {directory}: {' '.join(last)}")
