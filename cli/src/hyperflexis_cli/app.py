"""The `hyperflexis` command."""

from __future__ import annotations

import importlib.metadata
import inspect
from typing import Annotated

import typer

from hyperflexis_cli.commands.cluster import cluster, top
from hyperflexis_cli.commands.demo import demo
from hyperflexis_cli.commands.generate import generate
from hyperflexis_cli.commands.inspect import explain, models, requests
from hyperflexis_cli.commands.operate import drain, migrate, role
from hyperflexis_cli.commands.profile import profile
from hyperflexis_cli.commands.replay import replay
from hyperflexis_cli.commands.simulate import simulate
from hyperflexis_cli.commands.up import up
from hyperflexis_cli.console import out

RUN, USE, LOOK, ACT = "Run a stack", "Use it", "Look inside", "Operate it"

app = typer.Typer(
    name="hyperflexis",
    help="LLM serving with a service-level objective on every request.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, command in (
    (RUN, up),
    (RUN, demo),
    (USE, generate),
    (USE, replay),
    (USE, simulate),
    (LOOK, profile),
    (LOOK, requests),
    (LOOK, explain),
    (LOOK, models),
    (LOOK, cluster),
    (LOOK, top),
    (ACT, migrate),
    (ACT, role),
    (ACT, drain),
):
    # One line per paragraph: the docstring's own line ends would otherwise show.
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split("\n")) for paragraph in paragraphs)
    app.command(command.__name__, help=text, rich_help_panel=panel)(command)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"hyperflexis {importlib.metadata.version('hyperflexis-cli')}")
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """LLM serving with a service-level objective on every request."""


def main() -> None:
    app()
