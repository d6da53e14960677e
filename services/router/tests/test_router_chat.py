"""Chat templates: the same prompt as transformers makes, in a sandbox, with the template's own refusals told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from router_rig import MakeRouter, collect, generate, reference, status_of, text_of
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.config import ConfigError, ModelSettings
from hyperflexis_router.chat import ChatTemplate, Message, TemplateRefused, load_chat_template

# As Llama 3, Qwen 2.5 and Mistral write theirs, shortened: loops, trims, namespaces, refusals, filters, dates.
TEMPLATES = [
    """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' %}
{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}""",
    """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    """{% set ns = namespace(found=false) %}{{ bos_token }}{% for m in messages %}
{% if m.role == 'tool' %}{% continue %}{% endif %}
{% if m.role == 'user' %}{% set ns.found = true %}[INST] {{ m.content }} [/INST]
{% else %}{{ m.content | tojson }}{{ eos_token }}{% endif %}{% endfor %}""",
]
CONVERSATIONS = [
    [("user", "Hi")],
    [("system", " Be kind. "), ("user", "Why?"), ("assistant", 'Because "of" <that> & this é.'), ("user", "So?\n")],
]


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_prompts_equal_those_of_transformers(
    template: str, conversation: list[tuple[str, str]], tokenizer_file: Path
) -> None:
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_file), bos_token="<s>", eos_token="</s>", chat_template=template
    )
    expected = theirs.apply_chat_template(
        [{"role": role, "content": content} for role, content in conversation],
        tokenize=False,
        add_generation_prompt=True,
    )
    ours = ChatTemplate(template, {"bos_token": "<s>", "eos_token": "</s>"})
    assert ours.render([Message(*message) for message in conversation]) == expected


def test_a_template_may_refuse_and_may_not_reach_out() -> None:
    picky = ChatTemplate("{{ raise_exception('roles must alternate') }}", {})
    with pytest.raises(TemplateRefused, match="roles must alternate"):
        picky.render([Message("user", "x")])
    assert ChatTemplate("{{ raise_exception.__globals__ }}", {}).render([Message("user", "x")]) == ""
    for attack in (
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].content.nothing.there }}",
        "{% for a in range(10**9) %}x{% endfor %}",
    ):
        with pytest.raises(TemplateRefused):
            ChatTemplate(attack, {}).render([Message("user", "x")])


def write(directory: Path, **config: Any) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return directory


def test_where_a_template_is_found(tmp_path: Path) -> None:
    def rendered(directory: Path) -> str | None:
        template = load_chat_template(directory)
        return template.render([Message("user", "x")]) if template is not None else None

    assert rendered(tmp_path) is None and rendered(write(tmp_path / "none")) is None
    assert rendered(write(tmp_path / "one", chat_template="{{ bos_token }}!", bos_token={"content": "<b>"})) == "<b>!"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert rendered(write(tmp_path / "named", chat_template=named)) == "d"
    directory = write(tmp_path / "file", chat_template="old", bos_token="<s>")
    (directory / "chat_template.jinja").write_text("{{ bos_token }}new", encoding="utf-8")
    assert rendered(directory) == "<s>new"
    for broken in ({"chat_template": 7}, {"chat_template": "{% if %}"}):
        with pytest.raises(ConfigError, match="cannot use the chat template .*broken/tokenizer_config.json"):
            load_chat_template(write(tmp_path / "broken", **broken))
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"cannot use the chat template .*file/chat_template.jinja"):
        load_chat_template(directory)


async def test_a_chat_becomes_a_prompt_and_a_refusal_a_status(
    make_router: MakeRouter, cell: Any, tokenizer_file: Path, tmp_path: Path
) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    )
    directory = write(tmp_path / "model", chat_template=template)
    (directory / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    plain = ModelSettings(name="plain", path=tokenizer_file, context_length=10_000, vocab_size=1_000)
    chatty = ModelSettings(name="ids", path=directory, context_length=10_000, vocab_size=1_000)
    router = await make_router(models=[chatty, plain])

    def chat(model: str, *messages: tuple[str, str]) -> pb.GenerateRequest:
        request = generate(model, 20, text="x")
        request.chat.SetInParent()
        for role, content in messages:
            request.chat.messages.add(role=role, content=content)
        return request

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    ids = tokenizer.encode("user: hello\nassistant:", add_special_tokens=False).ids
    events = await collect(router.stub.Generate(chat("ids", ("user", "hello"))))
    assert events[0].accepted.prompt_tokens == len(ids)
    assert text_of(events) == tokenizer.decode(reference(20, ids))
    for request, field, says in (
        (chat("ids", ("tool", "x")), "chat.messages", "no tools here"),
        (chat("ids"), "chat.messages", "empty"),
        (chat("ids", ("", "x")), "chat.messages[0].role", "empty"),
        (chat("plain", ("user", "x")), "chat", "no chat template"),
    ):
        error = await status_of(router.stub.Generate(request))
        status, bad = rpc_status.from_call(error), error_details_pb2.BadRequest()
        assert status is not None and status.details[0].Unpack(bad)
        assert bad.field_violations[0].field == field and says in bad.field_violations[0].description
    models = await router.stub.ListModels(pb.ListModelsRequest())
    assert {m.name: m.has_chat_template for m in models.models} == {"ids": True, "plain": False}
