"""Attention kernels over [memory; segment] against the reference."""

import pytest
import torch

from dynadapt.kernels import attention as kernels
from dynadapt.ops import attention

from .compare import DEVICE, DTYPES, Out, acts, check, poisoned, run, skip_without_gpu

# streams, segment, memory capacity (None: no memory), query heads, kv heads, head size, rotation
CASES = [
    (1, 1, None, 1, 1, 16, True),
    (2, 1, 5, 2, 1, 20, True),
    (2, 70, 37, 4, 2, 20, True),
    (1, 70, 63, 3, 1, 64, True),
    (1, 65, 60, 2, 2, 80, True),
    (1, 50, 33, 2, 1, 96, True),
    (1, 100, None, 2, 2, 17, False),
    (2, 33, 9, 3, 1, 24, False),
    (1, 40, 30, 1, 1, 128, True),
]
REAL = [  # SmolLM2-135M, Llama-3.2-1B, Llama-3.1-8B, the last with a segment that is no multiple of anything
    (1, 512, 516, 9, 3, 64, True),
    (8, 512, 516, 32, 8, 64, True),
    (4, 1000, 516, 32, 8, 128, True),
    (2, 2048, None, 8, 4, 96, True),
]


def tables(length, d):
    angle = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(d // 2) / (d // 2))
    return angle.cos(), angle.sin()


def forward_arguments(case, dtype):
    streams, segment, capacity, hq, hkv, d, rotation = case
    slots, memory = torch.randperm(streams + 2)[:streams].int(), [None, None, None]
    if capacity is not None:
        lengths = torch.randint(0, capacity + 1, (streams + 2,)).int()
        lengths[slots[0]] = capacity
        stores = acts(streams + 2, 2, capacity, hkv * d, dtype=dtype)  # keys and values are views of one store
        memory = [stores[:, 0], stores[:, 1], lengths]
    cos, sin = tables(segment + (capacity or 0), d) if rotation else (None, None)
    rows = streams * segment
    return [
        acts(rows, (hq + 2 * hkv) * d, dtype=dtype),
        *memory,
        slots,
        cos,
        sin,
        hq,
        hkv,
        d,
        d**-0.5,
        Out(poisoned(rows, hq * d)),
        Out(poisoned(streams, hq, segment), wide=True),
    ]


def backward_arguments(case, dtype):
    *inputs, out, lse = forward_arguments(case, dtype)
    out, lse = out.tensor.to(dtype), lse.tensor
    attention.attention_forward(*inputs, out, lse)
    qkv, *window = inputs
    return [acts(*out.shape, dtype=dtype), qkv, out, lse, *window, Out(poisoned(*qkv.shape))]


MAKE = {"attention_forward": forward_arguments, "attention_backward": backward_arguments}


def check_both(case, dtype):
    check("attention_forward", forward_arguments(case, dtype), dtype)
    # P and dS are rounded on both sides, each in its own order: single elements differ by half of a rounding either way.
    check("attention_backward", backward_arguments(case, dtype), dtype, slack=4 if dtype == torch.bfloat16 else 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_ways(case, dtype):
    check_both(case, dtype)


@pytest.mark.skipif(DEVICE != "cpu", reason="float32 values do not fit a GPU in these blocks")
@pytest.mark.parametrize("large,arch", [(False, 90), (True, 90), (False, 80)])
def test_blocks_of_bfloat16(large, arch, monkeypatch):
    """The larger blocks that bfloat16 gets, on float32 values."""
    blocks = kernels._blocks
    monkeypatch.setattr(kernels, "_blocks", lambda kernel, dtype, d, *_: blocks(kernel, torch.bfloat16, d, large, arch))
    check_both((2, 150, 70, 2, 1, 20, True), torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "case", [(2, 1, None, 4, 2, 20, True), (2, 1, 5, 1, 1, 64, True), (1, 70, None, 3, 1, 17, False), (1, 33, 9, 2, 1, 128, True)], ids=str
)
def test_one_key_has_no_gradient_in_query_and_key(case, dtype):
    streams, segment, capacity, hq, hkv, d, _ = case
    *inputs, out, lse = forward_arguments(case, dtype)
    if capacity is not None:
        inputs[3].zero_()
    out, lse = out.tensor.to(dtype), lse.tensor
    attention.attention_forward(*inputs, out, lse)
    arguments = [acts(*out.shape, dtype=dtype), inputs[0], out, lse, *inputs[1:], Out(poisoned(*inputs[0].shape))]
    gradient = run("attention_backward", arguments, dtype)[0].view(streams, segment, -1)
    query, key, value = gradient.split([hq * d, hkv * d, hkv * d], 2)
    assert not query[:, 0].any() and value[:, 0].any()
    assert not key.any() if segment == 1 else (query[:, 1:].any() and key.any())


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores(dtype):
    """Scores of several hundreds: the running maximum must carry them, and keys that do not exist must not overflow P."""
    arguments = forward_arguments((1, 70, 70, 2, 1, 32, True), dtype)
    arguments[0] *= 12
    arguments[1] *= 12
    check("attention_forward", arguments, dtype, slack=4 if dtype == torch.bfloat16 else 1)
    *inputs, out, lse = arguments
    out, lse = out.tensor.to(dtype), lse.tensor
    attention.attention_forward(*inputs, out, lse)
    dout, dqkv = acts(*out.shape, dtype=dtype), Out(poisoned(*inputs[0].shape))
    (dqkv,) = run("attention_backward", [dout, inputs[0], out, lse, *inputs[1:], dqkv], dtype)
    assert torch.isfinite(dqkv).all()


def of_stream(op, arguments, i, streams):
    """The arguments of stream ``i`` alone."""
    names = ["qkv", "k", "v", "len", "slots", "cos", "sin", "hq", "hkv", "d", "scale", "out", "lse"]
    if op == "attention_backward":
        names = ["dout", "qkv", "out", "lse", "k", "v", "len", "slots", "cos", "sin", "hq", "hkv", "d", "scale", "dqkv"]

    def part(name, value):
        if name not in ("dout", "qkv", "out", "lse", "slots", "dqkv"):
            return value
        if isinstance(value, Out):
            return Out(part(name, value.tensor), value.wide)
        size = value.shape[0] // streams
        return value[i * size : (i + 1) * size]

    return [part(name, value) for name, value in zip(names, arguments)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", MAKE)
def test_streams_batched_equal_streams_alone(op, dtype):
    streams = 2
    arguments = MAKE[op]((streams, 40, 30, 2, 1, 20, True), dtype)
    together = run(op, arguments, dtype)
    for i in range(streams):
        for whole, alone in zip(together, run(op, of_stream(op, arguments, i, streams), dtype)):
            size = whole.shape[0] // streams
            assert torch.equal(whole[i * size : (i + 1) * size], alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", MAKE)
def test_a_bad_stream_stays_alone(op, dtype):
    arguments = MAKE[op]((3, 40, 20, 1, 1, 20, True), dtype)
    clean = run(op, arguments, dtype)
    arguments[0] = arguments[0].clone()
    arguments[0][50] = float("nan")  # in stream 1
    for a, b in zip(clean, run(op, arguments, dtype)):
        size = a.shape[0] // 3
        others = torch.ones(a.shape[0], dtype=torch.bool)
        others[size : 2 * size] = False
        assert torch.equal(a[others], b[others])
        assert not torch.isfinite(b[size : 2 * size]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [0, 63])
def test_later_tokens_change_no_bit(t, dtype):
    arguments = forward_arguments((1, 100, 20, 2, 1, 20, True), dtype)
    out, lse = run("attention_forward", arguments, dtype)
    arguments[0] = arguments[0].clone()
    arguments[0][t + 1 :] = 50 * acts(99 - t, arguments[0].shape[1], dtype=dtype)
    out2, lse2 = run("attention_forward", arguments, dtype)
    assert torch.equal(out[: t + 1], out2[: t + 1]) and torch.equal(lse[..., : t + 1], lse2[..., : t + 1])


@pytest.mark.parametrize("op", MAKE)
def test_unused_memory_is_never_read(op):
    arguments = MAKE[op]((2, 40, 33, 2, 1, 20, True), torch.float32)
    k = 1 if op == "attention_forward" else 4
    lengths, slots = arguments[k + 2], arguments[k + 3]
    clean = run(op, arguments, torch.float32)
    for store in arguments[k : k + 2]:
        for slot in range(4):
            store[slot, int(lengths[slot]) if slot in slots else 0 :] = float("nan")
    for a, b in zip(clean, run(op, arguments, torch.float32)):
        assert torch.equal(a, b)


def test_errors_name_the_argument():
    arguments = forward_arguments((2, 6, 4, 4, 2, 8, True), torch.float32)
    for i, value, text in [
        (7, 3, r"hq is 3, accepted is a multiple of hkv, 2"),
        (6, None, r"cos is given without sin"),
        (2, None, r"mem_k, mem_v, mem_len are only partly given"),
        (4, torch.zeros(5, dtype=torch.int32), r"slots has 5 entries for 12 rows"),
    ]:
        with pytest.raises(ValueError, match=text):
            run("attention_forward", [value if n == i else a for n, a in enumerate(arguments)], torch.float32)


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("case", REAL, ids=str)
def test_real_sizes(case):
    check_both(case, torch.bfloat16)
