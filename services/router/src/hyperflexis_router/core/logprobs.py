"""Log-probabilities on their way from a worker's columns to a client's delta."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hyperflexis.router.v1 import inference_service_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common.tokens import unpack, unpack_floats

Logprobs = Sequence[inference_service_pb2.TokenLogprobs]
"""One for each token, or empty where nobody asked."""

UNKNOWN = inference_service_pb2.TokenLogprobs(logprob=math.nan)
"""Of a token that reached this router without."""


def logprobs_of(entry: token_feed_pb2.EntryLogprobs, counts: Sequence[int]) -> Logprobs:
    """Of one entry of a step with so many tokens an entry. Raises ValueError where its columns do not fit."""
    tokens = counts[entry.entry] if entry.entry < len(counts) else -1
    chosen, ids, top = unpack_floats(entry.chosen), unpack(entry.top_ids), unpack_floats(entry.top)
    width = entry.width
    if len(chosen) != tokens or not len(ids) == len(top) == tokens * width:
        raise ValueError(f"entry {entry.entry}: log-probabilities of another number of tokens")
    made = []
    for index, logprob in enumerate(chosen):
        row = slice(index * width, (index + 1) * width)
        best = {token: value for token, value in zip(ids[row], top[row], strict=True) if not math.isnan(value)}
        made.append(inference_service_pb2.TokenLogprobs(logprob=logprob, top=best))
    return made
