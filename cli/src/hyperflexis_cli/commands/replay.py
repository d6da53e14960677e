"""`hyperflexis replay`: a trace against a running stack, open loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
from hyperflexis_cli.display import print_summary
from hyperflexis_cli.machine import describe_machine
from hyperflexis_cli.measured import choose_model, make_plan, measure
from hyperflexis_cli.plan import Shape, parse_tier_mix
from hyperflexis_cli.trace import read_trace
from hyperflexis_client import AsyncClient


@friendly
async def replay(
    trace: Annotated[Path, typer.Option(help="CSV: arrival_s,prompt_tokens,output_tokens[,tier].")],
    target: Targets = DEFAULT_TARGET,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Default: the router's first.", show_default=False)] = None,
    speed: Annotated[float, typer.Option(help="Arrivals come this many times faster.")] = 1.0,
    scale_lengths: Annotated[float, typer.Option(help="Prompt and output lengths are multiplied by this.")] = 1.0,
    duration: Annotated[
        float | None, typer.Option(help="Only what arrives within this many seconds.", show_default=False)
    ] = None,
    tier_mix: Annotated[
        str, typer.Option(help="Tiers drawn by weight, like chat=0.5,code=0.5.", show_default=False)
    ] = "",
    max_inflight: Annotated[int, typer.Option(min=1, help="Open requests at most.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Of the prompts and the tiers drawn.")] = 0,
    json_path: Annotated[
        Path | None, typer.Option("--json", help="Write the summary here.", show_default=False)
    ] = None,
    html_path: Annotated[Path | None, typer.Option("--html", help="Write a report here.", show_default=False)] = None,
) -> int:
    """Replays a trace: every request is sent when it is due, whatever has become of the earlier ones.

    Prompts are random token ids of the trace's lengths, outputs have the trace's lengths exactly. Ends with status 1
    where a token was lost or repeated, or a request failed.
    """
    mix = _checked(tier_mix, speed, scale_lengths, duration)
    rows = read_trace(trace)
    routers = targets_of(target)
    models = await served_models(routers, api_key)
    served = choose_model(models, model)
    context = served.context_length
    shape = Shape(context_length=context, speed=speed, scale_lengths=scale_lengths, duration_s=duration, tier_mix=mix)
    planned = make_plan(rows, shape, models, seed)
    out.print(f"{len(planned)} of {len(rows)} requests of {trace}, over {planned[-1].at_s:.0f} s", soft_wrap=True)
    machine = describe_machine()
    async with AsyncClient(routers, api_key) as client:
        measured = await measure(
            client,
            planned,
            served,
            out,
            seed=seed,
            max_inflight=max_inflight,
            trace=str(trace),
            speed=speed,
            scale=scale_lengths,
            machine=machine,
        )
    print_summary(out, measured.summary)
    about = {
        "Trace": str(trace),
        "Arrivals": f"open loop, {speed:g} times the trace's speed",
        "Lengths": f"× {scale_lengths:g}, clipped to {context:,} tokens of context",
        "Model": served.name,
        "Seed": str(seed),
        "Client's machine": machine,
    }
    await measured.write(json_path, html_path, about, f"Replay of {trace.name}")
    return 0 if measured.clean else FAILED


def _checked(tier_mix: str, speed: float, scale_lengths: float, duration: float | None) -> dict[str, float]:
    """The tier mix; ends with status 2 where an option is out of range."""
    if speed <= 0 or scale_lengths <= 0 or (duration is not None and duration <= 0):
        fail("--speed, --scale-lengths and --duration must be above 0", USAGE)
    try:
        return parse_tier_mix(tier_mix) if tier_mix else {}
    except ValueError as error:
        fail(str(error), USAGE)
