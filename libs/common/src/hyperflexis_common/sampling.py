"""Which sampling rules not every engine honours."""

from __future__ import annotations

from hyperflexis.common.v1 import sampling_pb2


def features_asked(sampling: sampling_pb2.SamplingParams) -> list[str]:
    """Fields in use beyond temperature, top_p, top_k, seed, lengths and stops: EngineCapabilities.sampling_features
    must name each."""
    asked = {
        "min_p": sampling.min_p != 0,
        "repetition_penalty": sampling.HasField("repetition_penalty") and sampling.repetition_penalty != 1,
        "presence_penalty": sampling.presence_penalty != 0,
        "frequency_penalty": sampling.frequency_penalty != 0,
        "logit_bias": bool(sampling.logit_bias),
        "logprobs": sampling.HasField("logprobs"),
        "response_format": sampling.HasField("response_format"),
    }
    return [name for name, wanted in asked.items() if wanted]
