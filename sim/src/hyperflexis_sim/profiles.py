"""GPUs to simulate: step times by hyperflexis_common.step_time, and how many tokens of KV fit beside the weights."""

from __future__ import annotations

from hyperflexis_common.step_time import load_profile
from hyperflexis_sim.worker_kind import WorkerKind

GPU_GB = {"h200": 141.0, "h100": 80.0, "a100": 80.0, "l40s": 48.0}
MODELS = {
    # weights in GB (bf16), KV bytes per token: 2 (K, V) x layers x KV heads x head size x 2 bytes
    "llama-3.1-8b": (16.06, 2 * 32 * 8 * 128 * 2),
    "qwen2.5-7b": (15.23, 2 * 28 * 4 * 128 * 2),
    "qwen2.5-32b": (65.5, 2 * 64 * 8 * 128 * 2),
    "llama-3.1-70b": (141.1, 2 * 80 * 8 * 128 * 2),
}
USABLE = 0.9
"""Of a GPU's memory; the rest is for activations, graphs and the allocator."""
KV_TOKENS = 400_000
BYTES_PER_TOKEN = 131_072
"""Of profiles that this file knows no GPU or model of."""


def worker_kind(profile: str) -> WorkerKind:
    """A worker by gpu/model/tp, or by a file that `hyperflexis profile` wrote. Raises ValueError."""
    return WorkerKind(load_profile(profile), kv_tokens(profile), name=profile)


def worker_kinds(profile: str, workers: int) -> list[WorkerKind]:
    """So many, alike, or in turn of the several profiles that have `+` between them. Raises ValueError."""
    names = profile.split("+")
    kinds = [worker_kind(name) for name in names]
    if workers < len(names):
        raise ValueError(f"{len(names)} profiles for {workers} workers: each worker has one")
    models = {name.split("/")[1] for name in names if name.count("/") == 2}
    if len(models) > 1:
        raise ValueError(f"workers that share requests serve one model, not {' and '.join(sorted(models))}")
    return [kinds[index % len(kinds)] for index in range(workers)]


def kv_tokens(profile: str) -> int:
    gpu, _, rest = profile.partition("/")
    model, _, tp = rest.partition("/")
    if gpu not in GPU_GB or model not in MODELS or not tp.removeprefix("tp").isdigit():
        return KV_TOKENS
    weights_gb, bytes_per_token = MODELS[model]
    free_gb = GPU_GB[gpu] * USABLE * int(tp.removeprefix("tp")) - weights_gb
    return int(free_gb * 1e9 / bytes_per_token)


def kv_bytes_per_token(profile: str) -> float:
    """Of the first of several profiles: workers that hand requests over serve one model."""
    model = profile.split("+")[0].partition("/")[2].partition("/")[0]
    return float(MODELS[model][1] if model in MODELS else BYTES_PER_TOKEN)
