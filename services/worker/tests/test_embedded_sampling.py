from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from hyperflexis.common.v1.sampling_pb2 import SamplingParams
from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_common.sampling import features_asked
from hyperflexis_worker.embedded.mix64 import GOLDEN, MASK, mix64, signed
from hyperflexis_worker.embedded.sampling import FEATURES, Sampler
from hyperflexis_worker.steps.sequence import Sampling, Sequence

VOCAB = 50


def row(rules: Sampling, made: int = 0, prompt: list[int] | None = None, output: list[int] | None = None) -> Sequence:
    return Sequence("r", NO_ATTEMPT, prompt or [1], output or [0] * made, rules, 10_000)


def sample(logits: torch.Tensor, rows: list[Sequence]) -> list[int]:
    return Sampler(logits.shape[1], logits.device).sample(logits, rows).tokens


def draws(logits: torch.Tensor, rules: Sampling, count: int) -> torch.Tensor:
    """Shares of each token over `count` pairs of seed and output index."""
    rows = [row(replace(rules, seed=rules.seed + i // 50), i % 50) for i in range(count)]
    tokens = sample(logits.expand(count, -1).clone(), rows)
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[0]) / count


def test_greedy_takes_the_lowest_of_equals() -> None:
    logits = torch.zeros(3, VOCAB)
    logits[1, [7, 30]] = 2.0
    logits[2, 49] = 1.0
    assert sample(logits, [row(Sampling())] * 3) == [0, 7, 49]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_rows_token_does_not_depend_on_the_batch(data: st.DataObject) -> None:
    rules = st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_p=st.sampled_from([0.1, 0.7, 1.0]),
        top_k=st.sampled_from([0, 1, 5, VOCAB, 10 * VOCAB]),
        min_p=st.sampled_from([0.0, 0.0, 0.2]),
        repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
        frequency_penalty=st.sampled_from([0.0, 0.0, 0.5]),
        logit_bias=st.sampled_from([(), (), ((2, 3.0),)]),
        logprobs=st.sampled_from([None, None, 3]),
        seed=st.integers(0, 2**64 - 1),
        min_tokens=st.sampled_from([0, 5]),
        stop_token_ids=st.sampled_from([frozenset[int](), frozenset({3, 4})]),
    )
    rows = [row(r, data.draw(st.integers(0, 9))) for r in data.draw(st.lists(rules, min_size=1, max_size=9))]
    logits = torch.randn(len(rows), VOCAB, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    alone = [sample(logits[i : i + 1].clone(), [rows[i]])[0] for i in range(len(rows))]
    order = data.draw(st.permutations(range(len(rows))))
    together = sample(logits[order].clone(), [rows[i] for i in order])
    assert together == [alone[i] for i in order]


def test_shares_follow_the_softmax() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(5))
    shares = draws(logits, Sampling(temperature=0.7, seed=9), 20_000)
    expected = (logits / 0.7).softmax(-1)
    deviation = (shares - expected) / (expected * (1 - expected) / 20_000).sqrt()
    assert float(deviation.abs().max()) < 4.5
    assert float(deviation.square().mean()) == pytest.approx(1, abs=0.6)


def test_top_k_and_top_p_keep_what_they_say() -> None:
    logits = torch.log(torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1]))
    assert set(draws(logits, Sampling(1.0, top_k=2), 500).nonzero().flatten().tolist()) == {1, 2}
    assert set(draws(logits, Sampling(1.0, top_p=0.6), 500).nonzero().flatten().tolist()) == {1, 2}
    assert set(draws(logits, Sampling(1.0, top_p=0.7), 500).nonzero().flatten().tolist()) == {1, 2, 3}
    # top_p counts within what top_k left: 0.4 of 0.65 is more than 0.6
    assert set(draws(logits, Sampling(1.0, top_p=0.6, top_k=2), 500).nonzero().flatten().tolist()) == {1}
    assert set(draws(logits, Sampling(1.0, top_p=1e-9), 50).nonzero().flatten().tolist()) == {1}
    kept = draws(logits, Sampling(1.0, top_k=2, seed=4), 5_000)
    assert float(kept[1]) == pytest.approx(0.4 / 0.65, abs=0.03)


def test_equal_logits_at_the_border_of_top_k_go_to_the_lower_ids() -> None:
    assert set(draws(torch.zeros(VOCAB), Sampling(1.0, top_k=3), 300).nonzero().flatten().tolist()) == {0, 1, 2}


def test_stop_tokens_are_barred_until_min_tokens() -> None:
    rules = Sampling(min_tokens=2, stop_token_ids=frozenset({7, VOCAB + 5}))
    logits = torch.zeros(3, VOCAB)
    logits[:, 7], logits[:, 9] = 5.0, 4.0
    assert sample(logits, [row(rules, made) for made in (0, 1, 2)]) == [9, 9, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_neighbouring_seeds_and_indices_are_independent(dtype: torch.dtype) -> None:
    """Pairs of draws with related streams agree as often as independent ones: once in VOCAB."""
    count = 2_000
    logits = torch.zeros(count, VOCAB, dtype=dtype)

    def tokens(seed: int, first: int) -> torch.Tensor:
        return torch.tensor(sample(logits.clone(), [row(Sampling(1.0, seed=seed), first + i) for i in range(count)]))

    base, bound = tokens(0, 0), 5 * math.sqrt(VOCAB / count) / VOCAB
    for other in (tokens(1, 0), tokens(0, 1), tokens(1, 1), tokens(2**63, 0), tokens(2**64 - 1, 0)):
        assert float((base == other).double().mean()) == pytest.approx(1 / VOCAB, abs=bound)


def test_mix64_is_splitmix64() -> None:
    """The published first outputs of splitmix64 from state 1234567."""
    states = torch.tensor([signed(1234567 + n * (GOLDEN & MASK)) for n in (1, 2, 3)])
    assert [word & MASK for word in mix64(states).tolist()] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest() -> None:
    logits = torch.log(torch.tensor([0.05, 0.4, 0.25, 0.2, 0.1]))
    assert set(draws(logits, Sampling(1.0, min_p=0.49), 500).nonzero().flatten().tolist()) == {1, 2, 3}
    assert set(draws(logits, Sampling(1.0, min_p=1.0), 50).nonzero().flatten().tolist()) == {1}


def test_logit_bias_moves_greedy_and_drawn_tokens() -> None:
    logits = torch.zeros(VOCAB)
    logits[3] = 1.0
    assert sample(logits[None].clone(), [row(Sampling(logit_bias=((7, 1.5), (3, 0.4))))]) == [7]
    shares = draws(logits, Sampling(1.0, logit_bias=((3, -100.0),), seed=2), 2_000)
    assert float(shares[3]) == 0 and float(shares[7]) > 0


def test_penalties_are_what_transformers_and_openai_say() -> None:
    """Repetition over prompt and output as transformers does it; frequency and presence over the output alone."""
    generator = torch.Generator().manual_seed(1)
    prompt, output = [1, 2, 2, 3], [3, 4, 4, 4]
    for rules in (
        Sampling(repetition_penalty=1.7),
        Sampling(frequency_penalty=0.6, presence_penalty=0.3),
        Sampling(repetition_penalty=0.8, frequency_penalty=-0.4),
    ):
        for _ in range(50):
            logits = torch.randn(1, 12, generator=generator)
            expected = RepetitionPenaltyLogitsProcessor(rules.repetition_penalty)(
                torch.tensor([prompt + output]), logits.double()
            )
            for token in set(output):
                expected[0, token] -= rules.frequency_penalty * output.count(token) + rules.presence_penalty
            one = row(rules, prompt=prompt, output=output)
            assert sample(logits.clone(), [one]) == [int(expected.argmax())]


def test_penalties_follow_a_sequence_through_its_steps_and_end_with_it() -> None:
    sampler = Sampler(VOCAB, torch.device("cpu"))
    rows = [row(Sampling(frequency_penalty=2.0), prompt=[n]) for n in range(6)]  # more than one growth of the counts
    for step in range(5):
        logits = torch.arange(VOCAB, 0, -1).double().expand(6, -1).clone()
        tokens = sampler.sample(logits, rows).tokens
        fresh = sample(torch.arange(VOCAB, 0, -1).double().expand(6, -1).clone(), rows)
        assert tokens == fresh == [[0, 1, 0, 2, 1][step]] * 6
        for one, token in zip(rows, tokens, strict=True):
            one.output.append(token)
    for one in rows:
        sampler.forget(one)
    assert len(sampler._counts) == 0
    again = [row(Sampling(frequency_penalty=2.0), prompt=[n]) for n in range(6)]
    assert sampler.sample(torch.arange(VOCAB, 0, -1).double().expand(6, -1).clone(), again).tokens == [0] * 6


def test_logprobs_are_those_of_the_model_itself() -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(3))
    expected = logits.double().log_softmax(-1)
    rules = Sampling(0.7, top_k=3, logit_bias=((5, 2.0),), seed=1, logprobs=4)
    sampled = Sampler(VOCAB, torch.device("cpu")).sample(logits.clone(), [row(Sampling()), row(rules)])
    assert sampled.logprobs.keys() == {1}
    told = sampled.logprobs[1]
    assert told.chosen == pytest.approx(float(expected[1, sampled.tokens[1]]))
    values, ids = expected[1].topk(4)
    assert [token for token, _ in told.top] == ids.tolist()
    assert [value for _, value in told.top] == pytest.approx(values.tolist())
    only_chosen = Sampler(VOCAB, torch.device("cpu")).sample(logits.clone(), [row(Sampling(logprobs=0))] * 2)
    assert [one.top for one in only_chosen.logprobs.values()] == [(), ()]


def test_every_feature_that_is_named_is_honoured() -> None:
    all_of_them = SamplingParams(
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        logit_bias={1: 1.0},
        logprobs=1,
    )
    assert set(features_asked(all_of_them)) == set(FEATURES)
