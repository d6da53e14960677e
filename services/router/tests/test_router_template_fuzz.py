"""Broken and hostile chat templates: a reason, within seconds and within memory, and the router goes on."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from broken_files import json_values, mutated
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hyperflexis_common.config import ConfigError
from hyperflexis_router import model_files
from hyperflexis_router.chat import ChatTemplate, Message, TemplateRefused, load_chat_template
from hyperflexis_router.chat_sandbox import CPU_SECONDS, MEMORY_BYTES
from hyperflexis_router.tokenizing import ModelTokenizer, Unencodable
from hyperflexis_worker.sample_model import CHAT_TEMPLATE

# Every example starts a process.
FUZZ = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CONFIG = {"chat_template": CHAT_TEMPLATE, "bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}}
MESSAGES = [Message("user", "Why?")]

HOSTILE = {
    "endless": "{% for a in range(99999) %}" * 5 + "{% endfor %}" * 5,
    "endless constant": "{{ 10 ** (10 ** 10) }}",
    "huge constant": "{{ 'x' * 10 ** 11 }}",
    "huge": "{{ messages[0].content * 10 ** 11 }}",
    "huge number": "{{ 7 ** (messages | length * 10 ** 9) }}",
    "huge format": "{{ '%99999999999d' % (messages | length) }}",
    "huge filter": "{{ messages[0].content | center(10 ** 11) }}",
    "huge text": "{{ lipsum(n=10 ** 9) }}",
    "doubling": "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "twofold recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "long prompt": "{% for i in range(400) %}{% for j in range(100) %}{{ '%1000d' % i }}{% endfor %}{% endfor %}",
    "deep": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "deep list": "{{ " + "[" * 300 + "]" * 300 + " }}{% if %}",
    "nested loops": "{% for a in messages %}" * 40 + "{% endfor %}" * 40,
    "lone surrogate": "{{ '\ud800' }}{% if %}",
}


def works_or_says_why(directory: Path) -> None:
    """Anything but these errors would be a crash."""
    try:
        template = load_chat_template(directory)
    except ConfigError as error:
        assert str(directory) in str(error) and "put the model's own file there" in str(error)
        return
    if template is not None:
        try:
            assert isinstance(template.render(MESSAGES), str)
        except TemplateRefused as error:
            assert str(error)
        template.close()


@FUZZ
@given(data=st.data())
def test_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    text = json.dumps(CONFIG).encode()
    (tmp_path / "tokenizer_config.json").write_bytes(mutated(text, data))
    works_or_says_why(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(mutated(CHAT_TEMPLATE.encode(), data))
    works_or_says_why(tmp_path)


@FUZZ
@given(field=st.sampled_from(sorted(CONFIG)), value=json_values)
@example("chat_template", [{"name": []}, {"template": "x"}, 7, {"name": "default", "template": None}])
@example("chat_template", [{"name": "default"}])
@example("bos_token", {"content": {"content": "x"}})
def test_any_structure(tmp_path: Path, field: str, value: Any) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG | {field: value}), encoding="utf-8")
    works_or_says_why(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"7", b'{"chat_template": ' + b"9" * 10_000])
def test_what_is_broken_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=str(tmp_path / "tokenizer_config.json")):
        load_chat_template(tmp_path)


def test_a_file_beyond_any_use_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    monkeypatch.setattr(model_files, "MODEL_FILE_BYTES", 99)
    with pytest.raises(ConfigError, match="over the limit of 99"):
        load_chat_template(tmp_path)


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_stopped(source: str) -> None:
    begun, most_kb = time.monotonic(), children_kb()
    with pytest.raises((TemplateRefused, ValueError)):
        ChatTemplate(source, {}).render(MESSAGES)
    assert time.monotonic() - begun < 10 * CPU_SECONDS
    assert children_kb() <= max(most_kb, MEMORY_BYTES // 1024)


def children_kb() -> int:
    """Resident memory of the largest process that ended so far."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def test_the_next_conversation_finds_the_template_at_work() -> None:
    """Whether the last one was stopped, or somebody killed the process."""
    source = HOSTILE["endless"].join(["{% if messages[0].content == 'bad' %}", "{% endif %}{{ messages[0].content }}"])
    template = ChatTemplate(source, {})
    assert template.render([Message("user", "good")]) == "good"
    with pytest.raises(TemplateRefused, match="too much time or memory"):
        template.render([Message("user", "bad")])
    assert template.render([Message("user", "good")]) == "good"
    os.kill(template._process.pid, signal.SIGKILL)
    template._process.wait()
    assert template.render([Message("user", "as before")]) == "as before"
    template.close()
    template.close()


def test_a_prompt_that_is_no_text_is_refused(tokenizer_file: Path) -> None:
    prompt = ChatTemplate("{{ '\\ud800' }}", {}).render(MESSAGES)
    with pytest.raises(Unencodable):
        ModelTokenizer(tokenizer_file.read_bytes()).encode(prompt)
