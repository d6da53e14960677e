"""Broken tokenizer.json files: usable or refused with a reason; never a panic, never memory that a number asks for."""

from __future__ import annotations

import copy
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from broken_files import json_values, mutated
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from router_rig import MakeRouter, collect, generate, reference, status_of, text_of, tokens_of
from tokenizers import Tokenizer

from hyperflexis.common.v1 import sampling_pb2
from hyperflexis.router.v1 import inference_service_pb2 as pb
from hyperflexis_common.config import ConfigError, ModelSettings
from hyperflexis_common.tokens import unpack
from hyperflexis_router import model_files
from hyperflexis_router.core.text import Undecodable
from hyperflexis_router.tokenizing import ModelTokenizer, Unencodable, load_tokenizer
from hyperflexis_worker.sample_model import SampleShape, write_sample_model

FUZZ = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GROWTH_KB = 1_000_000
"""Resident memory may grow by so much over a whole test, whatever it imports: the tokenizer here has 27 kB."""
TEXTS = ["", "Hello, world", "wörld 1 €\n\0", "<|begin|> x  ", "\U0001f600" * 3]

# Each is valid to the library, and panics or does harm over some text or at some step.
PARTS: dict[str, list[Any]] = {
    "normalizer": [
        {"type": "Replace", "pattern": {"String": ""}, "content": "ab"},
        {"type": "Prepend", "prepend": ""},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Prepend", "prepend": "▁"}]},
    ],
    "pre_tokenizer": [
        {"type": "FixedLength", "length": 0},
        {"type": "Split", "pattern": {"Regex": "(?!x)"}, "behavior": "Isolated", "invert": True},
        {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    ],
    "post_processor": [
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [1, 2], "tokens": ["a"]}},
        },
        {"type": "BertProcessing", "sep": ["a", 2**32 - 1], "cls": ["b", 2]},
    ],
    "decoder": [
        {"type": "Strip", "content": " ", "start": 1, "stop": 1},
        {"type": "Strip", "content": "e", "start": 0, "stop": 2**60},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 1}]},
        {"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": "x"},
        {"type": "ByteFallback"},
    ],
    "model": [
        {"type": "BPE", "vocab": {"a": 0, "b": 7}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0, "b": 7, "ab": 2**32 - 1}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "continuing_subword_prefix": "longer"},
        {"type": "BPE", "vocab": {"é": 0, "b": 1, "éb": 2}, "merges": ["é b"], "continuing_subword_prefix": "é"},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "nowhere", "byte_fallback": True},
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]], "byte_fallback": False},
        {"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e308], ["", -1e308]], "byte_fallback": True},
        {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "#", "max_input_chars_per_word": 2**63},
        {"type": "WordLevel", "unk_token": "?", "vocab": {"a": 2**32 - 1}},
    ],
    "padding": [
        {
            "strategy": {"Fixed": 2**60},
            "direction": "Right",
            "pad_to_multiple_of": multiple,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
        for multiple in (None, 0, 2**40)
    ],
    "truncation": [
        {"direction": "Right", "max_length": length, "strategy": "LongestFirst", "stride": stride}
        for length, stride in ((0, 0), (1, 1), (5, 2**60))
    ],
}
BROKEN = [{part: broken} for part, several in PARTS.items() for broken in several]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What training writes: the sample model's."""
    directory = tmp_path_factory.mktemp("models") / "sample"
    write_sample_model(directory, SampleShape(hidden=128, layers=1, vocab=600))
    return (directory / "tokenizer.json").read_bytes()


@pytest.fixture(autouse=True)
def no_giant_allocation() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < GROWTH_KB


def works_or_says_why(file: Path) -> None:
    """Anything but these errors would be a crash."""
    try:
        tokenizer = load_tokenizer(file)
    except ConfigError as error:
        assert str(file) in str(error) and "put the model's own tokenizer.json there" in str(error)
        return
    used(tokenizer)


def used(tokenizer: ModelTokenizer) -> None:
    tokens = [[token] for token in (0, 1, 255, 599, 600, 2**32 - 1)]
    for text in TEXTS:
        try:
            tokens.append(list(unpack(tokenizer.encode(text))))
        except Unencodable as error:
            assert str(error)
    for ids in [*tokens, list(range(0, 700, 3))]:
        try:
            assert isinstance(tokenizer.decode(ids), str)
        except Undecodable as error:
            assert str(error)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key and, of long lists, the first few elements."""
    inside = value.items() if isinstance(value, dict) else enumerate(value[:8]) if isinstance(value, list) else ()
    for key, inner in list(inside)[:40]:
        yield (*path, key)
        yield from places(inner, (*path, key))


def change(definition: Any, data: st.DataObject) -> None:
    """A key goes, or its value becomes another: of the wrong type, huge, unknown elsewhere in the file."""
    *path, last = data.draw(st.sampled_from(list(places(definition))))
    parent = definition
    for key in path:
        parent = parent[key]
    if data.draw(st.booleans()):
        del parent[last]
    else:
        names = st.sampled_from(["Ġ Ġ", ["Ġ", "?"], "a b c", {"type": "Fuse"}, 2**31, 2**32 - 1, -1])
        parent[last] = data.draw(json_values | names)


@FUZZ
@given(data=st.data())
def test_any_bytes(whole: bytes, tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(mutated(whole, data))
    works_or_says_why(file)


@FUZZ
@given(data=st.data(), parts=st.lists(st.sampled_from(BROKEN), max_size=2))
def test_any_structure(whole: bytes, tmp_path: Path, data: st.DataObject, parts: list[dict[str, Any]]) -> None:
    definition = json.loads(whole)
    for part in parts:
        definition |= copy.deepcopy(part)
    for _ in range(data.draw(st.integers(0 if parts else 1, 3))):
        change(definition, data)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(definition), encoding="utf-8")
    works_or_says_why(file)


@FUZZ
@given(value=json_values)
@example({})
@example([])
def test_any_json(tmp_path: Path, value: Any) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(value), encoding="utf-8")
    works_or_says_why(file)


@pytest.mark.parametrize("part", BROKEN, ids=[json.dumps(part)[:60] for part in BROKEN])
def test_each_part_that_the_library_takes_and_breaks_over(whole: bytes, tmp_path: Path, part: dict[str, Any]) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(whole) | part), encoding="utf-8")
    works_or_says_why(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "EOF"),
        (b"\xff\xfe", "expected value"),
        (b"not JSON", "expected ident"),
        (b"[" * 100_000, "expected"),
        (b'{"version": "1.0", "normalizer": ' + b"[" * 100_000, "recursion limit"),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a zz"]}}', "a zz|zz|merge"),
        (b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 4294967296}, "merges": []}}', "u32|model"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s){file}.*({says})"):
        load_tokenizer(tmp_path)


def test_a_directory_without_a_usable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ConfigError, match="no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").rmdir()
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 100)
    monkeypatch.setattr(model_files, "MODEL_FILE_BYTES", 99)
    with pytest.raises(ConfigError, match="100 bytes are over the limit of 99"):
        load_tokenizer(tmp_path)


def test_prompts_are_neither_cut_nor_filled_up(whole: bytes) -> None:
    """As transformers does it: what training left in the file about lengths is not for prompts."""
    [padding, *_], [truncation, *_] = PARTS["padding"], PARTS["truncation"]
    text = "Hello, world " * 100
    tokenizer = ModelTokenizer(json.dumps(json.loads(whole) | {"padding": padding, "truncation": truncation}).encode())
    assert list(unpack(tokenizer.encode(text))) == Tokenizer.from_buffer(whole).encode(text).ids


async def test_a_failure_over_some_text_ends_that_request_alone(
    make_router: MakeRouter, cell: Any, tokenizer_file: Path, tmp_path: Path
) -> None:
    plain = json.loads(tokenizer_file.read_bytes())
    output, pieces = reference(40), {token: piece for piece, token in plain["model"]["vocab"].items()}
    # The library panics over a token that both ends would be stripped of; loading finds out about a letter or a space.
    letters = {token for token, piece in pieces.items() if piece.isascii() or piece == "Ġ"}
    first = next(at for at in range(5, 40) if output[at] not in {*output[:at], *letters})
    strip = {"type": "Strip", "content": pieces[output[first]], "start": 1, "stop": 1}
    decoder = {"type": "Sequence", "decoders": [strip, plain["decoder"]]}
    vocabulary = {piece: token for token, piece in pieces.items() if piece != "z"}
    model = plain["model"] | {"unk_token": "nowhere", "vocab": vocabulary}
    settings = []
    for name, change in (("decode", {"decoder": decoder}), ("encode", {"model": model}), ("text", {})):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(plain | change), encoding="utf-8")
        settings.append(ModelSettings(name=name, path=file, context_length=10_000, vocab_size=1_000))
    router = await make_router(models=settings)

    events = await collect(router.stub.Generate(generate("decode", 40, return_text=True)))
    finished = events[-1].finished
    assert finished.reason == sampling_pb2.FINISH_REASON_ERROR
    assert f"cannot decode the output after {first} tokens: the tokenizers library panicked" in finished.message
    assert tokens_of(events) == output[:first] and finished.output_tokens == first
    resume = pb.ResumeRequest(request_id=events[0].accepted.request_id, next_index=2)
    again = await collect(router.stub.Resume(resume))
    assert tokens_of(again) == output[2:first] and again[-1].finished == finished

    error = await status_of(router.stub.Generate(generate("encode", 5, text="a z")))
    status, bad = rpc_status.from_call(error), error_details_pb2.BadRequest()
    assert status is not None and status.details[0].Unpack(bad)
    assert bad.field_violations[0].field == "text" and "no tokens for it" in bad.field_violations[0].description
    for name in ("encode", "text"):
        whole = await collect(router.stub.Generate(generate(name, 30, text="hello")))
        assert whole[-1].finished.reason == sampling_pb2.FINISH_REASON_LENGTH and text_of(whole)
