"""Every way in which a request can be wrong, with its status and its message."""

from __future__ import annotations

import math

import pytest

from hyperflexis.common.v1.sampling_pb2 import ResponseFormat, SamplingParams
from hyperflexis.router.v1.inference_service_pb2 import GenerateRequest, TokenIds
from hyperflexis_common.tokens import pack
from hyperflexis_router.core.catalog import BUILT_IN_TIERS, Catalog, ModelSpec, RequestLimits
from hyperflexis_router.core.validation import InvalidRequest, body_digest, check_prompt, check_request

TEXT = ModelSpec("text", context_length=100, vocab_size=1_000, has_tokenizer=True)
IDS = ModelSpec("ids", context_length=100, vocab_size=1_000)
FEATURES = frozenset({"min_p", "presence_penalty", "logit_bias", "response_format", "logprobs"})
CATALOG = Catalog({model.name: model for model in (TEXT, IDS)}, BUILT_IN_TIERS, "chat")
LIMITS = RequestLimits(prompt_bytes=200, default_max_tokens=20)


def request(model: str = "ids", **fields: object) -> GenerateRequest:
    if not {"text", "token_ids"} & fields.keys():
        fields["token_ids"] = TokenIds(packed=pack([1, 2, 3]))
    return GenerateRequest(model=model, **fields)


def problem(message: GenerateRequest, prompt: bytes | None = None) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        checked = check_request(message, CATALOG, LIMITS, frozenset())
        check_prompt(checked, message.token_ids.packed if prompt is None else prompt, "token_ids", LIMITS)
    return caught.value


@pytest.mark.parametrize(
    ("message", "status", "field", "says"),
    [
        (request("nope"), "NOT_FOUND", "model", "models: ids, text"),
        (request(tier="gold"), "INVALID_ARGUMENT", "tier", "tiers: chat, code, math, summarise"),
        (GenerateRequest(model="ids"), "INVALID_ARGUMENT", "prompt", "missing"),
        (request(token_ids=TokenIds()), "INVALID_ARGUMENT", "token_ids", "empty"),
        (request("text", text=""), "INVALID_ARGUMENT", "text", "empty"),
        (request(text="hello"), "INVALID_ARGUMENT", "text", "no tokenizer; send token_ids"),
        (request("text", text="é" * 101), "INVALID_ARGUMENT", "text", "202 bytes are over the limit of 200"),
        (request(token_ids=TokenIds(packed=b"12345")), "INVALID_ARGUMENT", "token_ids", "multiple of 4 bytes, not 5"),
        (request(token_ids=TokenIds(packed=b"1234" * 51)), "INVALID_ARGUMENT", "token_ids", "over the limit of 200"),
        (request(ttft_us=-1), "INVALID_ARGUMENT", "ttft_us", "not -1"),
        (request(tpot_us=-1), "INVALID_ARGUMENT", "tpot_us", "not -1"),
        (request(tpot_us=2**62), "INVALID_ARGUMENT", "tpot_us", "not 4611686018427387904"),
        (request(ttft_us=1), "INVALID_ARGUMENT", "ttft_us", "tighter than the 500000 of tier chat"),
        (request(detach_grace_ms=-1), "INVALID_ARGUMENT", "detach_grace_ms", "0 to 3600000"),
        (request(detach_grace_ms=3_600_001), "INVALID_ARGUMENT", "detach_grace_ms", "0 to 3600000"),
        (request(idempotency_key="k" * 257), "INVALID_ARGUMENT", "idempotency_key", "256 characters, not 257"),
        (request(return_text=True), "INVALID_ARGUMENT", "return_text", "no tokenizer"),
    ],
)
def test_bad_request(message: GenerateRequest, status: str, field: str, says: str) -> None:
    error = problem(message)
    assert error.status == status
    assert error.violations[0].field == field
    assert says in str(error)


@pytest.mark.parametrize(
    ("sampling", "field", "says"),
    [
        *[
            (SamplingParams(**{name: value}), name, "must be")
            for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
            for value in (math.nan, math.inf, -math.inf, -3.0)
        ],
        (SamplingParams(top_p=0.0), "top_p", "above 0"),
        (SamplingParams(top_p=1.5), "top_p", "at most 1"),
        (SamplingParams(min_p=1.5), "min_p", "0 to 1"),
        (SamplingParams(repetition_penalty=0.0), "repetition_penalty", "above 0"),
        (SamplingParams(max_tokens=0), "max_tokens", "at least 1"),
        (SamplingParams(logprobs=21), "logprobs", "0 to 20, not 21"),
        (SamplingParams(max_tokens=98), "max_tokens", "3 prompt tokens + max_tokens 98 exceed the context of 100"),
        (SamplingParams(max_tokens=2**32 - 1), "max_tokens", "at most 97 are left"),
        (SamplingParams(min_tokens=21), "min_tokens", ""),
        (SamplingParams(min_tokens=9, max_tokens=8), "min_tokens", "9 is more than max_tokens 8"),
        (SamplingParams(stop_token_ids=[1, 1_000]), "stop_token_ids", "entry 1 is 1000"),
        (SamplingParams(stop_token_ids=[1] * 65), "stop_token_ids", "at most 64"),
        (SamplingParams(stop=["x"]), "stop", "no tokenizer"),
        (SamplingParams(logit_bias={1_000: 1.0}), "logit_bias", "token 1000"),
        (SamplingParams(logit_bias={1: math.nan}), "logit_bias", "finite"),
    ],
)
def test_bad_sampling(sampling: SamplingParams, field: str, says: str) -> None:
    if field == "min_tokens" and not says:
        # Without max_tokens the default stretches to min_tokens.
        assert check_prompt(check_request(request(sampling=sampling), CATALOG, LIMITS), pack([1]), "text", LIMITS) == 21
        return
    error = problem(request(sampling=sampling))
    assert error.status == "INVALID_ARGUMENT"
    assert error.violations[0].field == f"sampling.{field}"
    assert says in str(error)


@pytest.mark.parametrize("stops", [["x"] * 17, [""], ["x" * 257]])
def test_bad_stop_strings(stops: list[str]) -> None:
    error = problem(request("text", text="hello", sampling=SamplingParams(stop=stops)))
    assert error.violations[0].field == "sampling.stop"


def test_most_stop_strings_allowed() -> None:
    sampling = SamplingParams(stop=["x" * 256] * 16)
    assert check_request(request("text", text="hello", sampling=sampling), CATALOG, LIMITS).return_text


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        (SamplingParams(n=2), "n"),
        (SamplingParams(logprobs=0), "logprobs"),
        (SamplingParams(response_format=ResponseFormat(regex="a")), "response_format"),
        (SamplingParams(min_p=0.5), "min_p"),
        (SamplingParams(repetition_penalty=1.1), "repetition_penalty"),
        (SamplingParams(presence_penalty=1.0), "presence_penalty"),
        (SamplingParams(frequency_penalty=1.0), "frequency_penalty"),
        (SamplingParams(logit_bias={1: 1.0}), "logit_bias"),
    ],
)
def test_what_nothing_stands_behind_is_unimplemented(sampling: SamplingParams, field: str) -> None:
    error = problem(request(sampling=sampling))
    assert error.status == "UNIMPLEMENTED"
    assert [violation.field for violation in error.violations] == [f"sampling.{field}"]


def test_what_the_engine_honours_is_served() -> None:
    sampling = SamplingParams(min_p=0.5, presence_penalty=1.0, logit_bias={1: 1.0}, n=1, repetition_penalty=1.0)
    for features in (FEATURES, None):  # None: no worker has said what it honours
        assert check_request(request(sampling=sampling), CATALOG, LIMITS, features).sampling == sampling


def test_all_violations_are_told_at_once() -> None:
    error = problem(request(tier="x", ttft_us=-1, detach_grace_ms=-1, sampling=SamplingParams(top_p=2, temperature=-1)))
    assert {violation.field for violation in error.violations} == {
        "tier",
        "detach_grace_ms",
        "sampling.top_p",
        "sampling.temperature",
    }


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "empty"),
        ([1] * 100, "100 prompt tokens leave no room in the context of 100"),
        ([1, 2, 1_000, 1_001], "token 2 is 1000; ids must be below the vocabulary size 1000"),
    ],
)
def test_bad_prompt_tokens(tokens: list[int], says: str) -> None:
    assert says in str(problem(request("text", text="hello"), pack(tokens)))


def test_defaults() -> None:
    checked = check_request(request(ttft_us=600_000, tpot_us=100_000), CATALOG, LIMITS)
    assert (checked.slo.tier, checked.slo.ttft_us, checked.slo.tpot_us) == ("chat", 600_000, 100_000)
    assert checked.slo.max_gap_us == 400_000
    assert not checked.return_text
    assert check_prompt(checked, pack([1] * 90), "token_ids", LIMITS) == 10
    assert check_prompt(checked, pack([1] * 3), "token_ids", LIMITS) == 20


def test_the_digest_is_of_the_body_alone() -> None:
    one, two = request(idempotency_key="a"), request(idempotency_key="b")
    assert body_digest(one) == body_digest(two)
    assert body_digest(one) != body_digest(request(idempotency_key="a", detach_grace_ms=1))
    assert one.idempotency_key == "a"
