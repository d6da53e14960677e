"""`hyperflexis profile`: how long a model's steps take on this machine."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from hyperflexis_cli.console import FAILED, USAGE, fail

MODULE = "hyperflexis_worker.embedded.profile"


def profile(
    model: Annotated[Path, typer.Option(help="Hugging Face directory.", exists=True, file_okay=False)],
    device: Annotated[str, typer.Option(help="torch device, such as cpu or cuda:0.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float64 or bfloat16.")] = "float32",
    max_num_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a step at most.")] = 512,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Decodes of a step at most.")] = 64,
    num_blocks: Annotated[int, typer.Option(min=2, help="KV blocks.")] = 1_024,
    block_tokens: Annotated[int, typer.Option(min=1, help="Tokens per KV block.")] = 16,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each step shape.")] = 5,
    start: Annotated[str, typer.Option(help="Profile that the fit starts from.")] = "cpu/tiny/tp1",
    out: Annotated[Path, typer.Option(help="File to write; worker.profile takes it.")] = Path("build/profile.json"),
) -> None:
    """Sweeps prefill, decode and mixed steps of a model on this machine, fits the step-time model to them, and says how
    wrong it is about steps that it never saw.
    """
    # The engine is the worker's; this command knows it only as a program.
    if importlib.util.find_spec("hyperflexis_worker") is None or importlib.util.find_spec("torch") is None:
        fail("the embedded engine is not installed: pip install 'hyperflexis-worker[embedded]'", USAGE)
    options = {
        "--model": model, "--device": device, "--dtype": dtype, "--max-num-tokens": max_num_tokens,
        "--max-num-seqs": max_num_seqs, "--num-blocks": num_blocks, "--block-tokens": block_tokens,
        "--repeat": repeat, "--start": start, "--out": out,
    }  # fmt: skip
    words = [str(word) for pair in options.items() for word in pair]
    if subprocess.run([sys.executable, "-m", MODULE, *words], check=False).returncode:
        raise typer.Exit(FAILED)
