"""From logits to tokens. A row's token is a function of its logits, its rules and (seed, index) alone.

In this order: logit bias, penalties, stop tokens barred until min_tokens, temperature, top_k, top_p, min_p, draw.
The draw is the Gumbel race: the token with the largest logit / temperature + noise wins, and the noise of token t is a
hash of (seed, index, t). So whichever worker computes it, in whichever batch, it is the same.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperflexis_worker.embedded.mix64 import GOLDEN, mix64, shift_right, signed
from hyperflexis_worker.embedded.token_counts import TokenCounts
from hyperflexis_worker.steps.sampled import Sampled, TokenLogprobs
from hyperflexis_worker.steps.sequence import Sequence

SAMPLING_VERSION = "gumbel-splitmix64-2"
"""Part of the fingerprint: change it with anything below that changes a draw."""
FEATURES = ("frequency_penalty", "logit_bias", "logprobs", "min_p", "presence_penalty", "repetition_penalty")
"""SamplingParams fields honoured beyond temperature, top_p, top_k, seed and lengths."""


class Sampler:
    """Keeps what penalties need of the sequences under way, and nothing else."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._counts = TokenCounts(vocab_size, device)

    def forget(self, sequence: Sequence) -> None:
        self._counts.forget(sequence)

    def sample(self, logits: Tensor, sequences: Rows[Sequence]) -> Sampled:
        """The next token of each row [rows, vocabulary]; the logits may be overwritten."""
        if all(_plainly_greedy(sequence) for sequence in sequences):
            return Sampled(logits.argmax(-1).tolist())  # the first of equals
        # In double precision a difference between two devices' logarithms practically never changes the winner.
        logits = logits.double()
        told = [row for row, s in enumerate(sequences) if s.sampling.logprobs is not None]
        believed = logits[told].log_softmax(-1) if told else None
        self._edit(logits, sequences)
        tokens = _choose(logits, sequences)
        sampled = Sampled(tokens.tolist())
        if believed is not None:
            widths = [sequences[row].sampling.logprobs or 0 for row in told]
            logprobs = _logprobs(believed, tokens[told], widths)
            sampled.logprobs = dict(zip(told, logprobs, strict=True))
        return sampled

    def _edit(self, logits: Tensor, sequences: Rows[Sequence]) -> None:
        biased = [(row, *one) for row, s in enumerate(sequences) for one in s.sampling.logit_bias]
        if biased:
            rows, ids, values = zip(*biased, strict=True)
            _add(logits, rows, ids, torch.tensor(values, dtype=logits.dtype))
        penalised = [row for row, s in enumerate(sequences) if s.sampling.penalised]
        if penalised:
            members = [sequences[row] for row in penalised]
            logits[penalised] = _penalised(logits[penalised], members, self._counts)
        barred = [
            (row, token)
            for row, s in enumerate(sequences)
            if len(s.output) < s.sampling.min_tokens
            for token in s.sampling.stop_token_ids
            if token < logits.shape[1]
        ]
        if barred:
            rows, ids = zip(*barred, strict=True)
            _add(logits, rows, ids, torch.full((len(rows),), float("-inf"), dtype=logits.dtype))


def _plainly_greedy(sequence: Sequence) -> bool:
    rules = sequence.sampling
    edited = rules.logit_bias or rules.penalised or (len(sequence.output) < rules.min_tokens and rules.stop_token_ids)
    return rules.temperature <= 0 and not edited and rules.logprobs is None


def _filters(sequence: Sequence) -> bool:
    rules = sequence.sampling
    return rules.top_k > 0 or rules.top_p < 1 or rules.min_p > 0


def _choose(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """[rows] token ids: greedy rows by argmax, the others by the race, with a sort only where something is cut off."""
    tokens = logits.argmax(-1)
    plain = [row for row, s in enumerate(sequences) if s.sampling.temperature > 0 and not _filters(s)]
    filtered = [row for row, s in enumerate(sequences) if s.sampling.temperature > 0 and _filters(s)]
    if plain:
        rules = _Rules.of([sequences[row] for row in plain], logits.device)
        ids = torch.arange(logits.shape[1], device=logits.device)
        tokens[plain] = (logits[plain] / rules.temperature + _gumbel(rules, ids.unsqueeze(0))).argmax(-1)
    if filtered:
        rules = _Rules.of([sequences[row] for row in filtered], logits.device)
        tokens[filtered] = _draw_filtered(logits[filtered] / rules.temperature, rules)
    return tokens


@dataclass(frozen=True, slots=True)
class _Rules:
    """Rules of some rows as columns [rows, 1], moved to the device in two copies."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    top_k: Tensor
    seed: Tensor
    index: Tensor

    @staticmethod
    def of(sequences: Rows[Sequence], device: torch.device) -> _Rules:
        rules = [s.sampling for s in sequences]
        real = torch.tensor([(r.temperature, r.top_p, r.min_p) for r in rules], dtype=torch.float64).to(device)
        whole = torch.tensor(
            [(r.top_k or 2**62, signed(r.seed), len(s.output)) for r, s in zip(rules, sequences, strict=True)],
            dtype=torch.int64,
        ).to(device)
        return _Rules(*torch.split(real, 1, dim=1), *torch.split(whole, 1, dim=1))


def _draw_filtered(scores: Tensor, rules: _Rules) -> Tensor:
    """Keeps the top_k best, of those the fewest that hold top_p of the probability, then the min_p, then draws."""
    scores, ids = scores.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device)
    scores = scores.masked_fill(ranks >= rules.top_k, float("-inf"))
    probability = scores.softmax(-1)
    before = probability.cumsum(-1) - probability
    outside = (before >= rules.top_p) & (rules.top_p < 1)
    outside |= probability < rules.min_p * probability[:, :1]
    outside[:, 0] = False
    raced = scores.masked_fill(outside, float("-inf")) + _gumbel(rules, ids)
    return ids.gather(1, raced.argmax(-1, keepdim=True)).squeeze(1)


def _gumbel(rules: _Rules, ids: Tensor) -> Tensor:
    """Noise [rows, ids] of the tokens `ids` ([rows or 1, ids]), from the stream of each row's (seed, index)."""
    # Two rounds, so that the streams of neighbouring seeds and indices have nothing in common.
    streams = mix64(mix64(rules.seed + GOLDEN) ^ mix64(rules.index * GOLDEN + 1))
    bits = shift_right(mix64(streams + (ids + 1) * GOLDEN), 12)
    uniform = (bits.double() + 0.5) * 2.0**-52  # 52 bits and a half: never 0, never 1
    return uniform.log_().neg_().log_().neg_()


def _penalised(logits: Tensor, sequences: Rows[Sequence], counts: TokenCounts) -> Tensor:
    prompt, output = counts.of(sequences)
    factors = torch.tensor(
        [(s.sampling.repetition_penalty, s.sampling.presence_penalty, s.sampling.frequency_penalty) for s in sequences],
        dtype=logits.dtype,
    )
    repetition, presence, frequency = torch.split(factors.to(logits.device), 1, dim=1)
    seen = (prompt + output) > 0
    logits = torch.where(seen, torch.where(logits > 0, logits / repetition, logits * repetition), logits)
    return logits - frequency * output - presence * (output > 0)


def _logprobs(believed: Tensor, tokens: Tensor, widths: Rows[int]) -> list[TokenLogprobs]:
    """Of the model's own distribution, before bias, penalties and temperature."""
    chosen = believed.gather(1, tokens.unsqueeze(1)).squeeze(1)
    widest = min(max(widths), believed.shape[1])
    values, ids = believed.topk(widest, dim=-1)
    rows = zip(chosen.tolist(), ids.tolist(), values.tolist(), widths, strict=True)
    return [TokenLogprobs(one, tuple(zip(best[:width], logs[:width], strict=True))) for one, best, logs, width in rows]


def _add(logits: Tensor, rows: Rows[int], ids: Rows[int], values: Tensor) -> None:
    where = torch.tensor([rows, ids], dtype=torch.int64).to(logits.device)
    logits.index_put_((where[0], where[1]), values.to(logits.device), accumulate=True)
