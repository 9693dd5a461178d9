"""Attention kernels over [memory; segment] against the reference."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, make_case, same_bits, streams_stand_alone

from dynadapt.bench.cases import Draw
from dynadapt.bench.cases.attention import attention_backward, attention_backward_of, attention_forward
from dynadapt.kernels import attention as kernels
from dynadapt.kernels import common, float8

from .compare import DEVICE, check, each, real_sizes, run

OPS = [attention_forward, attention_backward]
# streams, segment, memory capacity (None: no memory), query heads, kv heads, head size, rotation
SIZES = [
    (1, 1, None, 1, 1, 16, True),
    (2, 1, 5, 2, 1, 20, True),
    (2, 70, 37, 4, 2, 20, True),
    (1, 70, 63, 3, 1, 64, True),
    (1, 65, 60, 2, 2, 80, True),
    (1, 50, 33, 2, 1, 96, True),
    (1, 100, None, 2, 2, 17, False),
    (2, 33, 9, 3, 1, 24, False),
    (1, 40, 30, 1, 1, 128, True),
    # label, window
    (1, 100, None, 3, 1, 20, True, "", 17),
    (2, 70, 90, 2, 1, 24, True, "", 2),
    (1, 40, 130, 2, 2, 17, False, "", 60),
    (1, 70, 9, 2, 1, 20, True, "", 2**31 - 1),
    # soft-cap
    (1, 70, 63, 3, 1, 20, True, "", None, 0.7),
    (2, 33, 90, 2, 1, 24, True, "", 20, 2.0),
]
REAL = [  # SmolLM2-135M, Llama-3.2-1B, Llama-3.1-8B, the last with a segment that is no multiple of anything
    (1, 512, 516, 9, 3, 64, True),
    (8, 512, 516, 32, 8, 64, True),
    (4, 1000, 516, 32, 8, 128, True),
    (2, 2048, None, 8, 4, 96, True),
    (4, 512, 516, 4, 1, 256, True, "", 512),  # Gemma 3 270M
]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@pytest.mark.skipif(DEVICE != "cpu", reason="float32 values do not fit a GPU in these blocks")
@pytest.mark.parametrize("large,arch", [(False, 90), (True, 90), (False, 80)])
@each(OPS, [(2, 150, 70, 2, 1, 20, True), (1, 40, 20, 1, 1, 130, True)], [torch.float32])
def test_blocks_of_bfloat16(case, large, arch, monkeypatch):
    """The larger blocks that bfloat16 gets, on float32 values."""
    blocks = kernels.block_sizes
    monkeypatch.setattr(kernels, "block_sizes", lambda kernel, dtype, d, *_: blocks(kernel, torch.bfloat16, d, large, arch))
    check(case)


@each(attention_backward, [(2, 70, 37, 6, 2, 20, True), (1, 100, None, 3, 1, 20, True, "", 17), (1, 70, 63, 4, 1, 64, True, "", None, 0.7)])
def test_query_heads_split_or_not_give_the_same_bits(case, monkeypatch, products_of_any_tile):
    split = check(case)
    monkeypatch.setattr(kernels, "SMS", 1)
    assert same_bits(split, run(case))


@pytest.mark.parametrize("streams, split", [(1, True), (5, True), (6, False), (64, False)])
def test_query_heads_have_programs_of_their_own_where_multiprocessors_are_idle(streams, split, monkeypatch):
    """SmolLM2-135M: 3 groups of 3 query heads, and 8 blocks of 64 keys a stream."""
    grids = []
    monkeypatch.setattr(kernels, "launch", lambda kernel, grid, given, **more: grids.append((kernel, grid)))
    qkv = torch.empty(streams * 512, 15 * 64, dtype=torch.bfloat16)
    lse, slots = torch.empty(streams, 9, 512), torch.zeros(streams, dtype=torch.int32)
    kernels.attention_backward(
        qkv[:, :576].contiguous(), qkv, qkv[:, :576].contiguous(), lse, None, None, None, slots, None, None, 9, 3, 64, 1.0, qkv
    )
    kernel, grid = grids[-1]
    assert kernel is kernels.dynadapt_attention_dkv and grid == (3 * streams, 8, 3 if split else 1)


LONE = [(2, 1, None, 4, 2, 20, True), (2, 1, 5, 1, 1, 64, True), (1, 70, None, 3, 1, 17, False), (1, 33, 9, 2, 1, 128, True)]


@each(attention_forward, LONE)
def test_one_key_has_no_gradient_in_query_and_key(case):
    empty = case if case["mem_len"] is None else case.change(mem_len=torch.zeros_like(case["mem_len"]))
    hq, hkv, d, streams, segment = *(case[name] for name in ("hq", "hkv", "d")), case.stream_count, case["lse"].shape[2]
    gradient = run(attention_backward_of(Draw(case.dtype, seed=1), empty))["dqkv"].view(streams, segment, -1)
    query, key, value = gradient.split([hq * d, hkv * d, hkv * d], 2)
    assert not query[:, 0].any() and value[:, 0].any()
    assert not key.any() if segment == 1 else (query[:, 1:].any() and key.any())


@each(attention_forward, [(1, 70, 70, 2, 1, 32, True)])
def test_large_scores(case):
    """Scores of several hundreds: the running maximum must carry them, and keys that do not exist must not overflow P."""
    for name in ("qkv", "mem_k"):
        case[name].mul_(12)  # in place: keys and values are views of one store
    case.slack = 4 if case.dtype == torch.bfloat16 else 1
    check(case)
    assert torch.isfinite(run(attention_backward_of(Draw(case.dtype, seed=1), case))["dqkv"]).all()


@each(OPS, [(2, 40, 30, 2, 1, 20, True)])
def test_streams_batched_equal_streams_alone(case):
    streams_stand_alone(case, run)


@each(OPS, [(3, 40, 20, 1, 1, 20, True)])
def test_a_bad_stream_stays_alone(case):
    a_bad_stream_stays_alone(case, run)


@pytest.mark.parametrize("t", [0, 63])
@each(attention_forward, [(1, 100, 20, 2, 1, 20, True)])
def test_later_tokens_change_no_bit(case, t):
    later = case["qkv"].clone()
    later[t + 1 :] = 50 * Draw(case.dtype, seed=1).acts(99 - t, later.shape[1])
    before, after = run(case), run(case.change(qkv=later))
    assert torch.equal(before["out"][: t + 1], after["out"][: t + 1])
    assert torch.equal(before["lse"][..., : t + 1], after["lse"][..., : t + 1])


@each(OPS, [(2, 40, 33, 2, 1, 20, True)], [torch.float32])
def test_unused_memory_is_never_read(case):
    dirty = case
    for slot, length in enumerate(case["mem_len"].tolist()):
        unused = (slot, slice(length if slot in case["slots"] else 0, None))
        dirty = dirty.spoil("mem_k", unused).spoil("mem_v", unused)
    assert same_bits(run(case), run(dirty))


def test_errors_name_the_argument():
    case = make_case(attention_forward, (2, 6, 4, 4, 2, 8, True))
    for change, text in [
        ({"hq": 3}, r"hq is 3, accepted is a multiple of hkv, 2"),
        ({"sin": None}, r"cos is given without sin"),
        ({"mem_v": None}, r"mem_k, mem_v, mem_len are only partly given"),
        ({"slots": torch.zeros(5, dtype=torch.int32)}, r"slots has 5 entries for 12 rows"),
        *[
            ({"scale": scale}, f"scale is {scale}, accepted is 1.18e-38 to 8.51e\\+37")
            for scale in (0.0, -1.0, 1e-46, float("inf"), float("nan"))
        ],
    ]:
        with pytest.raises(ValueError, match=text):
            run(case.change(**change))


@real_sizes(OPS, REAL)
def test_real_sizes(case):
    check(case)


def test_scratch_of_all_lengths_is_a_few_times_that_of_the_longest(monkeypatch):
    """Recorded steps keep what they were recorded with, one for each length."""
    monkeypatch.setattr(kernels, "launch", lambda *_, **__: None)
    monkeypatch.setattr(float8, "quantize_rows", lambda *_: None)
    monkeypatch.setattr(torch.ops.aten._scaled_mm, "out", lambda *_, **__: None)

    def held(lengths, streams=8, hq=9, hkv=3, d=64):
        owner = common.Scratch()
        with common.scratch_of(owner):
            for segment in lengths:
                rows, slots = streams * segment, torch.zeros(streams, dtype=torch.int32)
                qkv, out = (torch.empty(rows, n * d, dtype=torch.bfloat16, device="meta") for n in (hq + 2 * hkv, hq))
                lse = torch.empty(streams, hq, segment, device="meta")
                kernels.attention_backward(out, qkv, out, lse, None, None, None, slots, None, None, hq, hkv, d, 1.0, qkv)
                float8.product(out, torch.empty(64, hq * d, device="meta"), slots, torch.empty(rows, 64, device="meta"))
        return sum(buffer.numel() * buffer.element_size() for buffer in owner.buffers.values())

    assert held(range(1, 129)) <= 4 * held([128])
