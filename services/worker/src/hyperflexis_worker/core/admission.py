"""From the two halves of a grant, Run and Start, to what the engine is given."""

from __future__ import annotations

from hyperflexis.common.v1 import capability_pb2
from hyperflexis.scheduler.v1 import worker_session_pb2
from hyperflexis.worker.v1 import token_feed_pb2
from hyperflexis_common import tokens as packing
from hyperflexis_common.attempt import Attempt
from hyperflexis_common.promise import longest_gap_us
from hyperflexis_common.sampling import features_asked
from hyperflexis_worker.steps.sequence import Sampling, Sequence


def fault_of(start: token_feed_pb2.Start, capabilities: capability_pb2.EngineCapabilities) -> str:
    """Why this Start cannot run on this engine; empty where it can."""
    if len(start.committed) % packing.TOKEN_BYTES:
        return "the committed tokens are not packed u32"
    prompt = packing.unpack(start.prompt) if len(start.prompt) % packing.TOKEN_BYTES == 0 else []
    if not prompt:
        return "the prompt is empty or not packed u32"
    if len(prompt) + start.max_tokens > capabilities.context_length:
        return f"{len(prompt)} + {start.max_tokens} tokens exceed the context of {capabilities.context_length}"
    if missing := set(features_asked(start.sampling)) - set(capabilities.sampling_features):
        return f"this engine does not honour {', '.join(sorted(missing))}"
    highest = max(*prompt, *packing.unpack(start.committed), 0)
    if highest >= capabilities.vocab_size:
        return f"token id {highest} is outside the vocabulary of {capabilities.vocab_size}"
    if (biased := max(start.sampling.logit_bias, default=0)) >= capabilities.vocab_size:
        return f"logit_bias of token id {biased} is outside the vocabulary of {capabilities.vocab_size}"
    return ""


def sequence_of(
    run: worker_session_pb2.Run, start: token_feed_pb2.Start, eos_token_ids: frozenset[int], arrival_us: int
) -> Sequence:
    """`arrival_us`: when the full request was received, on this worker's clock."""
    sampling = start.sampling
    eos = frozenset() if sampling.ignore_eos else eos_token_ids
    return Sequence(
        request_id=start.request_id,
        attempt=Attempt.of(start.attempt),
        prompt=packing.unpack(start.prompt),
        output=packing.unpack(start.committed),
        sampling=Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p if sampling.HasField("top_p") else 1.0,
            top_k=sampling.top_k,
            min_p=sampling.min_p,
            repetition_penalty=sampling.repetition_penalty if sampling.HasField("repetition_penalty") else 1.0,
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=tuple(sorted(sampling.logit_bias.items())),
            logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
            seed=sampling.seed,
            min_tokens=sampling.min_tokens,
            stop_token_ids=frozenset(sampling.stop_token_ids) | eos,
        ),
        max_tokens=start.max_tokens,
        arrival_us=arrival_us,
        ttft_us=run.slo.ttft_us,
        tpot_us=run.slo.tpot_us,
        weight=run.slo.weight or 1.0,
        tier=run.slo.tier,
        max_gap_us=run.slo.max_gap_us or longest_gap_us(run.slo.tpot_us),
        tenant=run.tenant,
        committed=packing.count(start.committed),
    )
