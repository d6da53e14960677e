"""`hyperflexis generate`: one request, streamed to the terminal."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.markup import escape

from hyperflexis_cli.console import (
    DEFAULT_TARGET,
    FAILED,
    USAGE,
    ApiKey,
    Targets,
    fail,
    friendly,
    out,
    served_models,
    targets_of,
)
from hyperflexis_cli.figures import microseconds
from hyperflexis_cli.measured import choose_model
from hyperflexis_client import Accepted, AsyncClient, AsyncGeneration, Delta, Finished, Notice, Prompt, Sampling


@friendly
async def generate(
    prompt: Annotated[str, typer.Argument(help="Text; with --token-ids, ids separated by commas or spaces.")],
    target: Targets = DEFAULT_TARGET,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Default: the router's first.", show_default=False)] = None,
    tier: Annotated[str, typer.Option(help="Empty = the router's default.", show_default=False)] = "",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Output tokens at most.", show_default=False)] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 = greedy.")] = 0.0,
    top_p: Annotated[float | None, typer.Option(help="Nucleus sampling.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Repeats a sampled output.", show_default=False)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Ends the output; may be given more than once.")] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="PROMPT is a user's message to the model's chat template.")
    ] = False,
    system: Annotated[str, typer.Option(help="With --chat: the system's message before it.", show_default=False)] = "",
    token_ids: Annotated[bool, typer.Option("--token-ids", help="Prompt and output as token ids.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per event.")] = False,
) -> int:
    """Generates from PROMPT and streams the output; then a line with the measured times."""
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed, stop=stop or ())
    content: Prompt = _token_ids(prompt) if token_ids else prompt
    if chat:
        content = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": prompt}]
    routers = targets_of(target)
    name = choose_model(await served_models(routers, api_key), model).name
    async with AsyncClient(routers, api_key) as client:
        generation = client.generate(name, content, sampling=sampling, tier=tier)
        async for event in generation:
            if as_json:
                out.print(json.dumps(event_json(event)), markup=False, soft_wrap=True)
            elif isinstance(event, Delta):
                text = "".join(f"{token} " for token in event.token_ids) if token_ids else event.text
                out.print(text, end="", markup=False, soft_wrap=True)
            elif isinstance(event, Notice):
                out.print(f"[dim]({escape(event.kind.replace('_', ' '))}: {escape(event.message)})[/]", soft_wrap=True)
    return _end(generation, quiet=as_json)


def event_json(event: Accepted | Delta | Notice | Finished) -> dict[str, object]:
    """An event as plain data, with its kind."""
    return {"event": type(event).__name__.lower(), **dataclasses.asdict(event)}


def _token_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        fail(f"--token-ids: the prompt must hold whole numbers, got {text!r}", USAGE)


def _end(generation: AsyncGeneration, quiet: bool) -> int:
    """The line under the output; the exit status."""
    finished = generation.finished
    assert finished is not None
    if not quiet:
        out.print()
        if finished.message and not finished.reason.complete:
            out.print(f"[red]{escape(finished.reason)}[/]: {escape(finished.message)}", soft_wrap=True)
        resumed = f", {generation.reconnections} reconnections" if generation.reconnections else ""
        out.print(
            f"[dim]{finished.output_tokens} tokens ({finished.reason}), TTFT {microseconds(finished.ttft_us)}, "
            f"TPOT {microseconds(finished.tpot_us)}, {finished.verdict}{resumed}, {generation.request_id}[/]",
            soft_wrap=True,
        )
    return 0 if finished.reason.complete else FAILED
