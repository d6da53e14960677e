"""Chat messages to a prompt, by the model's own template (Jinja, as Hugging Face tokenizers carry it)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hyperflexis_common.config import ConfigError
from hyperflexis_router.model_files import read_model_file

TEMPLATE_NAME = "default"


class Message(NamedTuple):
    role: str
    content: str


class TemplateRefused(Exception):
    """The template will not have these messages; the text is its own reason."""


class ChatTemplate:
    """One model's template, in a process with limits: see `chat_sandbox`."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises ValueError for a template that makes no sense."""
        self._program = {"source": source, "special_tokens": special_tokens}
        self._one_at_a_time = threading.Lock()
        self._start()

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, up to where the assistant's answer begins. Raises TemplateRefused."""
        with self._one_at_a_time:
            try:
                if self._process.poll() is not None:
                    self._end()
                    self._start()
                return str(self._ask([message._asdict() for message in messages]))
            except ValueError as error:
                raise TemplateRefused(str(error)) from error

    def close(self) -> None:
        self._end()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hyperflexis_router.chat_sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the router, whose end ends it
        )
        self._end = weakref.finalize(self, _kill, self._process)
        try:
            self._ask(self._program)
        except ValueError:
            self._end()
            raise

    def _ask(self, question: Any) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        line = b""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        if not line.endswith(b"\n"):
            self._end()
            raise ValueError("the template takes too much time or memory")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["result"]


def load_chat_template(directory: Path) -> ChatTemplate | None:
    """Of a model's directory: chat_template.jinja, or the field of tokenizer_config.json. None = it has none.

    Raises ConfigError where it cannot be read.
    """
    config_file, template_file = directory / "tokenizer_config.json", directory / "chat_template.jinja"
    file = config_file
    try:
        config = json.loads(read_model_file(file)) if file.exists() else {}
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
        source = _named(config)
        if template_file.exists():
            file = template_file
            source = read_model_file(file).decode()
        return ChatTemplate(source, _special_tokens(config)) if source else None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"cannot use the chat template in {file}: {error}; put the model's own file there, as published"
        ) from error


def _named(config: dict[str, Any]) -> str:
    template = config.get("chat_template")
    if isinstance(template, list):
        templates = [entry.get("template") for entry in template if _is_named(entry)]
        template = templates[-1] if templates else None
    if template is not None and not isinstance(template, str):
        raise ValueError("chat_template must be a string, or a list of named ones")
    return template or ""


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get("name") == TEMPLATE_NAME


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and the like, as templates use them; newer files spell them as objects."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError), process:
        process.kill()
