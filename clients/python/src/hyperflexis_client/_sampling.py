"""How to sample and when to stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyperflexis.common.v1 import sampling_pb2


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Sampling parameters of one request. The defaults are greedy decoding without limits of its own."""

    max_tokens: int | None = None
    """Output tokens at most; None = what the context leaves, within the router's default."""
    min_tokens: int = 0
    temperature: float = 0.0
    """0 = greedy."""
    top_p: float | None = None
    top_k: int = 0
    """0 = off."""
    min_p: float = 0.0
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    """None = drawn by the router, which tells it in Accepted."""
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """None = none; 0 = the chosen token's only; k = also the k likeliest."""
    json_schema: str | None = None
    """Constrain the output to this JSON schema."""

    def proto(self) -> sampling_pb2.SamplingParams:
        """The wire message. Raises ValueError for numbers it cannot hold."""
        message = sampling_pb2.SamplingParams(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=dict(self.logit_bias),
            seed=self.seed,
            max_tokens=self.max_tokens,
            min_tokens=self.min_tokens,
            stop_token_ids=list(self.stop_token_ids),
            stop=list(self.stop),
            ignore_eos=self.ignore_eos,
            logprobs=self.logprobs,
        )
        if self.json_schema is not None:
            message.response_format.json_schema = self.json_schema
        return message
