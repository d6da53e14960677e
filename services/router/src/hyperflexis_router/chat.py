"""Chat messages to a prompt, by the model's own template (Jinja, as Hugging Face tokenizers carry it)."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hyperflexis_common.config import ConfigError

TEMPLATE_NAME = "default"
PROMPT_CHARACTERS = 64 * 2**20
"""A template that makes more of a request is broken."""


class Message(NamedTuple):
    role: str
    content: str


class TemplateRefused(Exception):
    """The template will not have these messages; the text is its own reason."""


class ChatTemplate:
    """One model's template. Runs in a sandbox: it can neither change what it is given nor reach beyond it."""

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        """Raises jinja2.TemplateError for a template that makes no sense."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
        self._template = environment.from_string(source)
        self._special_tokens = special_tokens

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt, up to where the assistant's answer begins. Raises TemplateRefused."""
        try:
            pieces, size = [], 0
            for piece in self._template.generate(
                messages=[message._asdict() for message in messages], add_generation_prompt=True, **self._special_tokens
            ):
                size += len(piece)
                if size > PROMPT_CHARACTERS:
                    raise TemplateRefused("the template makes too long a prompt of them")
                pieces.append(piece)
        except TemplateRefused:
            raise
        except Exception as error:  # a template is a program: it may fail over these messages in any way
            raise TemplateRefused(str(error)) from error
        return "".join(pieces)


def load_chat_template(directory: Path) -> ChatTemplate | None:
    """Of a model's directory: chat_template.jinja, or the field of tokenizer_config.json. None = it has none.

    Raises ConfigError where it cannot be read.
    """
    config_file, template_file = directory / "tokenizer_config.json", directory / "chat_template.jinja"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
        if not isinstance(config, dict):
            raise ValueError("it holds no JSON object")
        source = template_file.read_text(encoding="utf-8") if template_file.is_file() else _named(config)
        return ChatTemplate(source, _special_tokens(config)) if source else None
    except (OSError, ValueError, jinja2.TemplateError) as error:
        raise ConfigError(f"cannot use the chat template in {directory}: {error}") from error


def _named(config: dict[str, Any]) -> str:
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template if isinstance(entry, dict)}
        template = named.get(TEMPLATE_NAME)
    if template is not None and not isinstance(template, str):
        raise ValueError("chat_template must be a string, or a list of named ones")
    return template or ""


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token and the like, as templates use them; newer files spell them as objects."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            found[name] = token
    return found


def _tojson(value: Any, indent: int | None = None) -> str:
    """Jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
