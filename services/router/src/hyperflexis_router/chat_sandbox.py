"""One chat template as a process of its own: `python -m hyperflexis_router.chat_sandbox`, a JSON line in, one out.

A template is a program by whoever published the model. Jinja's sandbox keeps it from reaching out, but one expression
may ask for all memory, a loop need not end, and constants are computed even when it is only compiled. A process can be
kept within limits, and when it breaks them, the router is not what dies.
"""

from __future__ import annotations

import datetime
import json
import resource
import signal
import sys
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 2.0
"""For one conversation, or for compiling: real templates take milliseconds."""
MEMORY_BYTES = 512 * 2**20
PROMPT_CHARACTERS = 16 * 2**20
"""A template that makes more of a request is broken."""


class Renderer:
    """One model's template. It can neither change what it is given nor reach beyond it."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises all kinds of things for a template that makes no sense."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(self, messages: list[dict[str, str]]) -> str:
        """The prompt, up to where the assistant's answer begins. Raises what the template raises."""
        pieces, size = [], 0
        for piece in self._template.generate(messages=messages, add_generation_prompt=True, **self._special_tokens):
            size += len(piece)
            if size > PROMPT_CHARACTERS:
                _refuse("the template makes too long a prompt of them")
            pieces.append(piece)
        return "".join(pieces)


def _tojson(value: Any, indent: int | None = None) -> str:
    """Without Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _within_limits(step: Any, *arguments: Any) -> dict[str, Any]:
    """The step's result, or its error. The process dies where the step takes too long."""
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        return {"result": step(*arguments)}
    except Exception as error:  # a template is a program: it may fail in any way
        return {"error": str(error) or type(error).__name__}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    renderer: Renderer | None = None

    def compiled(source: str, special_tokens: dict[str, str]) -> None:
        nonlocal renderer
        renderer = Renderer(source, special_tokens)

    first = json.loads(sys.stdin.readline())
    _say(_within_limits(compiled, first["source"], first["special_tokens"]))
    for line in sys.stdin:
        assert renderer is not None, "nothing is asked of a template that makes no sense"
        _say(_within_limits(renderer.render, json.loads(line)))


if __name__ == "__main__":
    main()
