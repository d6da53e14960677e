"""The reference attention against torch's dense one, over a pool whose unused places are poisoned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperflexis_common.attempt import NO_ATTEMPT
from hyperflexis_worker.embedded.attention import ReferenceAttention
from hyperflexis_worker.embedded.batch import pack
from hyperflexis_worker.embedded.kv_pool import KvPool
from hyperflexis_worker.embedded.model_config import ModelConfig
from hyperflexis_worker.steps.sequence import Sampling, Sequence
from hyperflexis_worker.steps.step_plan import Chunk

CPU = torch.device("cpu")
BLOCKS, LAYERS, HEADS, KV_HEADS, DIM = 200, 3, 6, 2, 4
CONFIG = ModelConfig.from_hf(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "hidden_size": HEADS * DIM,
        "intermediate_size": 8,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
    }
)


def sequence(name: int, length: int, blocks: list[int]) -> Sequence:
    return Sequence(str(name), NO_ATTEMPT, [1] * length, [], Sampling(), 1, blocks=blocks)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 20)), min_size=1, max_size=8),
    decodes=st.integers(0, 8),
    block_tokens=st.sampled_from([1, 4, 16]),
    layer=st.integers(0, LAYERS - 1),
    seed=st.integers(0, 2**32),
)
def test_equals_dense_attention(
    shapes: list[tuple[int, int]], decodes: int, block_tokens: int, layer: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    pool = KvPool(CONFIG, BLOCKS * 16 // block_tokens, block_tokens, torch.float64, CPU)
    pool.tensor.fill_(float("nan"))
    free = iter((torch.randperm(pool.tensor.shape[0] - 1, generator=generator) + 1).tolist())
    chunks, dense = [], {}
    for name, (context, length) in enumerate(shapes):
        length = 1 if name < decodes else length
        total = context + length
        blocks = [next(free) for _ in range(-(-total // block_tokens))]
        chunks.append(Chunk(sequence(name, total, blocks), context, length))
        dense[name] = torch.randn(total, 2, KV_HEADS, DIM, generator=generator, dtype=torch.float64)
        owner = torch.tensor(blocks).repeat_interleave(block_tokens)[:total]
        pool.store(layer, pool.rows(owner, torch.arange(total) % block_tokens), dense[name])
    batch = pack(chunks, block_tokens, CPU)
    queries = torch.randn(len(batch.tokens), HEADS, DIM, generator=generator, dtype=torch.float64)
    attention = ReferenceAttention(pool)
    attention.begin(batch)
    mixed = attention.attend(layer, queries)
    for chunk, last in zip(chunks, batch.sampling_rows.tolist(), strict=True):
        rows = slice(last + 1 - chunk.length, last + 1)
        keys, values = dense[int(chunk.sequence.request_id)].unbind(1)
        seen = torch.ones(chunk.length, len(keys), dtype=torch.bool).tril(chunk.start)
        expected = F.scaled_dot_product_attention(
            queries[rows].transpose(0, 1), keys.transpose(0, 1), values.transpose(0, 1), seen, enable_gqa=True
        )
        torch.testing.assert_close(mixed[rows], expected.transpose(0, 1))


def test_a_block_of_all_layers_is_one_contiguous_region() -> None:
    pool = KvPool(CONFIG, 5, 16, torch.float32, CPU)
    assert pool.tensor.shape == (5, LAYERS, KV_HEADS, 2, 16, DIM)
    assert pool.tensor[3].is_contiguous()
    assert pool.block_bytes == LAYERS * KV_HEADS * 2 * 16 * DIM * 4
    assert not pool.tensor.any()


def test_what_is_stored_lies_where_the_layout_says() -> None:
    pool = KvPool(CONFIG, 5, 16, torch.float32, CPU)
    written = torch.randn(2, 2, KV_HEADS, DIM)
    pool.store(1, pool.rows(torch.tensor([4, 2]), torch.tensor([15, 0])), written)
    assert torch.equal(pool.tensor[4, 1, :, :, 15], written[0].transpose(0, 1))
    assert torch.equal(pool.tensor[2, 1, :, :, 0], written[1].transpose(0, 1))
    assert int(pool.tensor.count_nonzero()) == written.numel()


def test_decodes_of_like_length_share_a_group_and_long_ones_do_not_pad_them() -> None:
    contexts = [500, 3, 20, 480, 33]
    chunks = [Chunk(sequence(i, c + 1, list(range(1, 40))), c, 1) for i, c in enumerate(contexts)]
    chunks.insert(2, Chunk(sequence(9, 30, [1, 2]), 0, 20))
    batch = pack(chunks, 16, CPU)
    assert [(g.sequences, g.queries, g.table.shape[1]) for g in batch.groups] == [(3, 1, 3), (2, 1, 32), (1, 20, 2)]
    assert batch.positions[batch.sampling_rows].tolist() == contexts
    assert batch.positions[:5].tolist() == sorted(contexts)
