"""From logits to tokens. A row's token is a function of its logits, its rules and (seed, index) alone.

Sampling is the Gumbel race: the token with the largest logit / temperature + noise wins, and the noise of token t is
a hash of (seed, index, t). So whichever worker computes it, in whichever batch, the draw is the same.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from hyperflexis_worker.core.sequence import Sequence
from hyperflexis_worker.embedded.mix64 import GOLDEN, mix64, shift_right, signed

SAMPLING_VERSION = "gumbel-splitmix64-1"
"""Part of the fingerprint: change it with anything below that changes a draw."""


def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[int]:
    """The next token of each row [rows, vocabulary]; the logits are overwritten."""
    _bar_stop_tokens(logits, sequences)
    greedy = [row for row, s in enumerate(sequences) if s.sampling.temperature <= 0]
    plain = [row for row, s in enumerate(sequences) if s.sampling.temperature > 0 and not _filters(s)]
    filtered = [row for row, s in enumerate(sequences) if s.sampling.temperature > 0 and _filters(s)]
    tokens = torch.empty(len(sequences), dtype=torch.int64, device=logits.device)
    if greedy:
        tokens[greedy] = logits[greedy].argmax(-1)  # the first of equals
    if plain:
        members = [sequences[row] for row in plain]
        ids = torch.arange(logits.shape[1], device=logits.device)
        tokens[plain] = (_scaled(logits[plain], members) + _gumbel(members, ids.unsqueeze(0))).argmax(-1)
    if filtered:
        members = [sequences[row] for row in filtered]
        tokens[filtered] = _draw_filtered(_scaled(logits[filtered], members), members)
    return tokens.tolist()


def _filters(sequence: Sequence) -> bool:
    return sequence.sampling.top_k > 0 or sequence.sampling.top_p < 1


def _bar_stop_tokens(logits: Tensor, sequences: Rows[Sequence]) -> None:
    for row, sequence in enumerate(sequences):
        rules = sequence.sampling
        if len(sequence.output) < rules.min_tokens and rules.stop_token_ids:
            logits[row, [token for token in rules.stop_token_ids if token < logits.shape[1]]] = float("-inf")


def _scaled(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    # In double precision a difference between two devices' logarithms practically never changes the winner.
    return logits.double() / _column([s.sampling.temperature for s in sequences], logits.device)


def _draw_filtered(scores: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Keeps the top_k best, of those the fewest that hold top_p of the probability, then draws."""
    scores, ids = scores.sort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device)
    vocabulary = scores.shape[1]
    limits = torch.tensor([[s.sampling.top_k or vocabulary] for s in sequences], device=scores.device)
    scores = scores.masked_fill(ranks >= limits, float("-inf"))
    probability = scores.softmax(-1)
    before = probability.cumsum(-1) - probability
    outside = before >= _column([s.sampling.top_p for s in sequences], scores.device)
    outside[:, 0] = False
    raced = scores.masked_fill(outside, float("-inf")) + _gumbel(sequences, ids)
    return ids.gather(1, raced.argmax(-1, keepdim=True)).squeeze(1)


def _gumbel(sequences: Rows[Sequence], ids: Tensor) -> Tensor:
    """Noise [rows, ids] of the tokens `ids` ([rows or 1, ids]), from the stream of each row's (seed, index)."""
    seeds = torch.tensor([signed(s.sampling.seed) for s in sequences], device=ids.device)
    indices = torch.tensor([len(s.output) for s in sequences], device=ids.device)
    # Two rounds, so that the streams of neighbouring seeds and indices have nothing in common.
    streams = mix64(mix64(seeds + GOLDEN) ^ mix64(indices * GOLDEN + 1))
    bits = shift_right(mix64(streams.unsqueeze(1) + (ids + 1) * GOLDEN), 12)
    uniform = (bits.double() + 0.5) * 2.0**-52  # 52 bits and a half: never 0, never 1
    return uniform.log_().neg_().log_().neg_()


def _column(values: Rows[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=device).unsqueeze(1)
