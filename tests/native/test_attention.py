"""Attention over [memory; segment] against its reference: odd sizes, grouped heads, memory, batching, threads, causality."""

import pytest
import torch

from dynadapt import _C
from dynadapt.ops import attention

from .compare import DTYPES, Out, acts, assert_threads_change_nothing, check, poisoned, run

# streams, segment, memory capacity (None: no memory), query heads, kv heads, head size, rotation
CASES = [
    (1, 1, None, 1, 1, 16, True),
    (2, 1, 5, 2, 1, 20, True),
    (1, 63, None, 3, 1, 64, True),
    (3, 100, 37, 4, 2, 20, True),
    (1, 130, 200, 9, 3, 64, True),
    (2, 97, 130, 2, 2, 128, True),
    (1, 150, None, 3, 3, 17, False),
    (1, 33, 9, 8, 1, 24, False),
    (1, 300, None, 5, 1, 64, True),
    (1, 200, 129, 7, 1, 32, True),
    (5, 21, None, 2, 2, 32, False),
    (3, 32, None, 6, 2, 20, True),
    (2, 96, None, 2, 2, 17, False),
    (7, 2, None, 3, 1, 8, True),  # short
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
        memory = [acts(streams + 2, capacity, hkv * d, dtype=dtype) for _ in range(2)] + [lengths]
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, dtype):
    check("attention_forward", forward_arguments(case, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case, dtype):
    # P and dS are rounded on both sides, each in its own order: single elements differ by half of a rounding either way.
    check("attention_backward", backward_arguments(case, dtype), dtype, slack=4 if dtype == torch.bfloat16 else 1)


LONE = [
    (1, 1, None, 1, 1, 16, True),
    (3, 1, None, 4, 2, 20, False),
    (2, 40, None, 3, 1, 64, True),
    (2, 150, None, 4, 1, 128, True),
    (1, 100, 30, 9, 3, 17, False),
    (1, 1, 5, 2, 1, 64, True),
]  # short and long forms, with and without a memory that is empty


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LONE, ids=str)
def test_one_key_has_no_gradient_in_query_and_key(case, dtype):
    """Its probability is 1 whatever q and k are: the gradient is 0 and not the rounding of a difference."""
    streams, segment, capacity, hq, hkv, d, _ = case
    *inputs, out, lse = forward_arguments(case, dtype)
    if capacity is not None:
        inputs[3].zero_()
    out, lse = out.tensor.to(dtype), lse.tensor
    attention.attention_forward(*inputs, out, lse)
    arguments = [acts(*out.shape, dtype=dtype), inputs[0], out, lse, *inputs[1:], Out(poisoned(*inputs[0].shape))]
    gradient = check("attention_backward", arguments, dtype, slack=4 if dtype == torch.bfloat16 else 1)[0].view(streams, segment, -1)
    query, key, value = gradient.split([hq * d, hkv * d, hkv * d], 2)
    assert not query[:, 0].any() and value[:, 0].any()
    assert not key.any() if segment == 1 else (query[:, 1:].any() and key.any())
    arguments[0] = arguments[0].clone()
    arguments[0][0] = float("nan")  # which an update must still see
    assert run("attention_backward", arguments, dtype)[0][0, : hq * d].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", [(1, 140, 140, 2, 1, 32, True), (2, 40, None, 2, 2, 32, True)], ids=str)
def test_large_scores(case, dtype):
    """Scores of several hundreds: the running maximum must carry them."""
    arguments = forward_arguments(case, dtype)
    arguments[0], arguments[1] = arguments[0] * 12, arguments[1] if arguments[1] is None else arguments[1] * 12
    out, lse = run("attention_forward", arguments, dtype)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()
    check("attention_forward", arguments, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["attention_forward", "attention_backward"])
def test_threads_change_no_bit(op, dtype):
    make = forward_arguments if op == "attention_forward" else backward_arguments
    for case in (CASES[3], CASES[4]):
        assert_threads_change_nothing(op, make(case, dtype), dtype)


def of_stream(arguments, i, streams):
    """The arguments of stream ``i`` alone."""

    def part(value):
        if isinstance(value, Out):
            return Out(part(value.tensor), value.wide)
        if not isinstance(value, torch.Tensor) or value.shape[0] % streams or value.shape[0] == streams + 2:
            return value
        size = value.shape[0] // streams
        return value[i * size : (i + 1) * size]

    place = {"cos", "sin"}
    names = (
        ["qkv", "k", "v", "len", "slots", "cos", "sin"]
        if len(arguments) == 13
        else ["do", "qkv", "o", "lse", "k", "v", "len", "slots", "cos", "sin"]
    )
    return [a if n < len(names) and names[n] in place else part(a) for n, a in enumerate(arguments)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["attention_forward", "attention_backward"])
@pytest.mark.parametrize("case", [(5, 70, 50, 4, 2, 20, True), (7, 40, None, 3, 1, 64, True)], ids=str)
def test_streams_batched_equal_streams_alone(case, op, dtype):
    streams = case[0]
    arguments = (forward_arguments if op == "attention_forward" else backward_arguments)(case, dtype)
    together = run(op, arguments, dtype)
    for i in range(streams):
        for whole, alone in zip(together, run(op, of_stream(arguments, i, streams), dtype)):
            size = whole.shape[0] // streams
            assert torch.equal(whole[i * size : (i + 1) * size], alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["attention_forward", "attention_backward"])
def test_a_bad_stream_stays_alone(op, dtype):
    case = (3, 50, 20, 4, 2, 20, True)
    arguments = (forward_arguments if op == "attention_forward" else backward_arguments)(case, dtype)
    clean = run(op, arguments, dtype)
    arguments[0] = arguments[0].clone()
    arguments[0][60] = float("nan")  # in stream 1
    for a, b in zip(clean, run(op, arguments, dtype)):
        size = a.shape[0] // 3
        others = torch.ones(a.shape[0], dtype=torch.bool)
        others[size : 2 * size] = False
        assert torch.equal(a[others], b[others])
        assert not torch.isfinite(b[size : 2 * size]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("t", [0, 31, 63, 64, 127, 128])
def test_later_tokens_change_no_bit(t, dtype):
    arguments = forward_arguments((1, 200, 70, 3, 1, 20, True), dtype)
    out, lse = run("attention_forward", arguments, dtype)
    arguments[0] = arguments[0].clone()
    arguments[0][t + 1 :] = 50 * acts(199 - t, arguments[0].shape[1], dtype=dtype)
    out2, lse2 = run("attention_forward", arguments, dtype)
    assert torch.equal(out[: t + 1], out2[: t + 1]) and torch.equal(lse[..., : t + 1], lse2[..., : t + 1])


def test_unused_memory_is_never_read():
    arguments = forward_arguments((2, 40, 33, 2, 1, 20, True), torch.float32)
    lengths, slots = arguments[3], arguments[4]
    lengths[slots.long()] = torch.tensor([7, 0], dtype=torch.int32)
    out, lse = run("attention_forward", arguments, torch.float32)
    for store in arguments[1:3]:
        for slot in range(4):
            store[slot, int(lengths[slot]) if slot in slots else 0 :] = float("nan")
    out2, lse2 = run("attention_forward", arguments, torch.float32)
    assert torch.equal(out, out2) and torch.equal(lse, lse2)


def test_errors_name_the_argument():
    names = ["qkv", "mem_k", "mem_v", "mem_len", "slots", "cos", "sin", "hq", "hkv", "d", "scale", "out", "lse"]
    good = dict(zip(names, forward_arguments((2, 6, 4, 4, 2, 8, True), torch.float32)))
    good["out"], good["lse"] = good["out"].tensor, good["lse"].tensor
    call = lambda **change: _C.attention_forward(**{**good, **change})  # noqa: E731
    call()
    with pytest.raises(ValueError, match=r"attention_forward: hq is 3, accepted is a multiple of hkv, 2"):
        call(hq=3, qkv=torch.zeros(12, 56))
    with pytest.raises(ValueError, match=r"mem_k, mem_v, mem_len are only partly given"):
        call(mem_v=None)
    with pytest.raises(ValueError, match=r"mem_len\[\d\] is 5, accepted is 0 to 4"):
        call(mem_len=torch.full((4,), 5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"slots\[1\] is 4, accepted is 0 to 3"):
        call(slots=torch.tensor([0, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"cos has 6 positions, accepted is at least the window of stream 0, 10"):
        call(cos=good["cos"][:6], sin=good["sin"][:6], mem_len=torch.full((4,), 4, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"slots has 5 entries for 12 rows"):
        call(slots=torch.zeros(5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"cos is given without sin"):
        call(sin=None)
