"""T(n): pure, monotone, and in the end what the tokenizer itself decodes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hyperflexis_router.core.text import REPLACEMENT, UNDECIDED_TOKENS, Detokenizer, OutputText


def byte_level() -> Tokenizer:
    """One token per byte plus a few that span characters and parts of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for left, right in [("h", "e"), ("Ġ", "w"), ("Ã", "©"), ("â", "Ĥ")]:
        vocabulary[left + right] = len(vocabulary)
        merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return tokenizer


def metaspace() -> Tokenizer:
    """Words with leading spaces, and bytes as a last resort."""
    pieces = ["<unk>", "▁", "▁hello", "▁world", "a", "b", "é", "▁a", "!"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return tokenizer


BYTES = byte_level()
WORDS = metaspace()
byte_tokens = st.lists(st.integers(0, BYTES.get_vocab_size() - 1), max_size=60)
texts = st.text(st.sampled_from("he wé€😀ab!\n"), max_size=30)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> str:
    detokenizer = Detokenizer(tokenizer.decode)
    return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()


@given(byte_tokens)
@settings(max_examples=300)
def test_any_bytes_stream_to_what_the_tokenizer_decodes(tokens: list[int]) -> None:
    assert streamed(BYTES, tokens) == BYTES.decode(tokens)


@given(texts, st.lists(st.integers(0, 100), max_size=3))
@settings(max_examples=200)
def test_words_stream_to_what_the_tokenizer_decodes(text: str, specials: list[int]) -> None:
    tokens = WORDS.encode(text).ids
    for at in specials:
        tokens.insert(min(at, len(tokens)), WORDS.token_to_id("</s>"))
    assert streamed(WORDS, tokens) == WORDS.decode(tokens)


@given(texts)
def test_no_character_is_ever_split(text: str) -> None:
    detokenizer = Detokenizer(BYTES.decode)
    for token in BYTES.encode(text).ids:
        assert REPLACEMENT not in detokenizer.push(token)


@given(
    byte_tokens,
    st.lists(st.integers(0, 60), max_size=8),
    st.lists(st.sampled_from(["he", " wé", "é€", "ab!"]), max_size=3),
)
@settings(max_examples=200)
def test_any_split_and_any_resume_index_give_the_same_text(
    tokens: list[int], cuts: list[int], stops: list[str]
) -> None:
    whole = OutputText(BYTES.decode, stops)
    whole.push(tokens)
    whole.finish()
    end = whole.tokens
    reference = whole.between(0, end) + whole.tail

    grown = OutputText(BYTES.decode, stops)
    edges = sorted({0, end, *(cut for cut in cuts if cut < end)})
    parts = []
    for start, stop in zip(edges, edges[1:], strict=False):
        grown.push(tokens[start:stop])
        parts.append(grown.between(start, stop))
    grown.finish()
    assert "".join(parts) + grown.tail == reference
    for resume in edges:
        again = OutputText(BYTES.decode, stops)
        again.push(tokens[:resume])
        assert "".join(parts[: edges.index(resume)]) == again.between(0, resume)
        again.push(tokens[resume:])
        again.finish()
        assert again.between(0, resume) + again.between(resume, end) + again.tail == reference


@given(byte_tokens, st.lists(st.text(st.sampled_from("he wé€ab"), min_size=1, max_size=4), min_size=1, max_size=3))
@settings(max_examples=300)
def test_text_ends_before_the_first_stop_string(tokens: list[int], stops: list[str]) -> None:
    text = OutputText(BYTES.decode, stops)
    text.push(tokens)
    text.finish()
    shown = text.between(0, text.tokens) + text.tail
    whole = BYTES.decode(tokens[: text.tokens])
    assert whole.startswith(shown)
    assert not any(stop in shown for stop in stops)
    if text.stopped is None:
        assert shown == whole == BYTES.decode(tokens)
    else:
        assert whole[len(shown) :].startswith(text.stopped)


def test_endless_undecodable_output_costs_little_a_token() -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return str(BYTES.decode(ids))

    half = BYTES.token_to_id("Ã")
    detokenizer = Detokenizer(decode)
    shown = "".join(detokenizer.push(half) for _ in range(500)) + detokenizer.flush()
    assert shown == REPLACEMENT * 500
    assert longest <= 2 * UNDECIDED_TOKENS


@pytest.mark.parametrize("tokenizer", [BYTES, WORDS])
def test_no_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    text = OutputText(tokenizer.decode)
    text.finish()
    assert text.tail == ""
