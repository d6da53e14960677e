"""What an executor made of a step: a token for each chunk that samples, and what the model thought of it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Natural logarithms of probabilities in the model's own distribution: before bias, penalties and temperature."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob) of the likeliest, best first."""


@dataclass(slots=True)
class Sampled:
    tokens: list[int]
    """One for each chunk with `samples`, in order."""
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    """By place in `tokens`, where the sequence asked for them."""
