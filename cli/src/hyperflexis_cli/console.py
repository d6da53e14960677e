"""The terminal: one console for results, one for what goes wrong, and errors in one line."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, NoReturn, ParamSpec

import grpc
import typer
from rich.console import Console
from rich.markup import escape

from hyperflexis_cli.stack import StackError
from hyperflexis_cli.trace import TraceError
from hyperflexis_client import AsyncClient, HyperFlexisError, InvalidRequest, Models, RetryPolicy, Unavailable
from hyperflexis_common.config import ConfigError

out = Console(highlight=False)
if not out.is_terminal:
    # Rich would cut tables to 80 columns, in a file or a pipe too.
    out = Console(highlight=False, width=160)
errors = Console(stderr=True, highlight=False)

FAILED, USAGE, INTERRUPTED = 1, 2, 130

Targets = Annotated[
    str,
    typer.Option("--target", "-t", envvar="HYPERFLEXIS_TARGET", help="Router as host:port; several with commas."),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="HYPERFLEXIS_API_KEY", help="Key of your tenant.", show_default=False)
]
DEFAULT_TARGET = "127.0.0.1:50051"

Parameters = ParamSpec("Parameters")


PATIENCE = RetryPolicy(deadline_s=3.0)
"""For a person who waits: who does not answer by then is not there."""


def targets_of(text: str) -> list[str]:
    """`a:1,b:2` as a list. Exits with status 2 without any."""
    targets = [target.strip() for target in text.split(",") if target.strip()]
    if not targets:
        fail("--target must name at least one router as host:port", USAGE)
    return targets


async def served_models(targets: list[str], api_key: str | None) -> Models:
    """Models and tiers; Unavailable comes soon where no router answers."""
    async with AsyncClient(targets, api_key, retry=PATIENCE) as client:
        return await client.list_models()


def fail(message: str, status: int = FAILED) -> NoReturn:
    """One line to stderr, then the end."""
    errors.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(status)


def friendly(command: Callable[Parameters, Coroutine[Any, Any, int | None]]) -> Callable[Parameters, None]:
    """A coroutine as a command: its result is the exit status, its known errors are one line."""

    @functools.wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            status = asyncio.run(command(*args, **kwargs))
        except (TraceError, ConfigError, InvalidRequest) as error:
            fail(str(error), USAGE)
        except Unavailable as error:
            fail(f"no router answers: {error} (is it running? `hyperflexis up` starts a stack)")
        except HyperFlexisError as error:
            fail(str(error))
        except StackError as error:
            fail(str(error))
        except grpc.RpcError as error:
            fail(f"{error.code().name}: {error.details()}")
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        raise typer.Exit(status or 0)

    return run
