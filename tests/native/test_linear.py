"""linear_forward and linear_backward against their references, at odd sizes, and independent of batching and threads."""

import pytest
import torch

from dynadapt import _C

from .compare import DTYPES, Out, Weight, acts, check, poisoned, run, threads_change_no_bit

# rows N, streams S, inputs K, parts, rank (0: no adapter)
CASES = [
    (1, 1, 5, (3,), 0),
    (1, 1, 64, (32, 32), 4),
    (63, 1, 65, (33, 7, 7), 3),
    (100, 2, 96, (130,), 16),
    (126, 3, 577, (64, 31), 33),
    (512, 1, 192, (96, 64, 64), 16),
]


def forward_arguments(case, dtype, bias=True, slots=None):
    n, streams, k, parts, rank = case
    out = sum(parts)
    count = streams + 2
    slots = torch.randperm(count)[:streams].int() if slots is None else slots
    adapter = [None, None, slots, 0.5, None]
    if rank:
        flat = acts(count, len(parts) * rank * k + rank * out + 5, dtype=dtype)
        A = flat[:, : len(parts) * rank * k].unflatten(1, (len(parts) * rank, k))
        Bt = flat[:, len(parts) * rank * k : -5].unflatten(1, (rank, out))
        adapter = [A, Bt, slots, 0.5, Out(poisoned(n, len(parts) * rank))]
    x = acts(n, k + 3, dtype=dtype)[:, :k]
    weights = [Weight(acts(p, k, dtype=dtype) / k**0.5) for p in parts]
    return [x, weights, acts(out, dtype=dtype) if bias else None, *adapter, Out(poisoned(n, out))]


def backward_arguments(case, dtype):
    n, streams, k, parts, rank = case
    x, weights, _, A, Bt, slots, scale, u, y = forward_arguments(case, dtype)
    return [acts(n, sum(parts), dtype=dtype), weights, A, Bt, slots, scale, u, Out(poisoned(n, k))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward(case, dtype):
    check("linear_forward", forward_arguments(case, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward(case, dtype):
    check("linear_backward", backward_arguments(case, dtype), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_without_dx_gives_the_same_dU(dtype):
    arguments = backward_arguments(CASES[3], dtype)
    dU, _ = run("linear_backward", arguments, dtype)
    (alone,) = run("linear_backward", arguments[:-1] + [None], dtype)
    assert torch.equal(dU, alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["linear_forward", "linear_backward"])
def test_streams_batched_equal_streams_alone(op, dtype):
    case = n, streams, k, parts, rank = (111, 3, 77, (65, 40), 5)
    make = forward_arguments if op == "linear_forward" else backward_arguments
    arguments = make(case, dtype)
    together = run(op, arguments, dtype)
    place = [i for i, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.dtype == torch.int32][0]
    t = n // streams
    for s in range(streams):
        rows = slice(s * t, (s + 1) * t)
        alone = list(arguments)
        alone[0] = arguments[0][rows]
        alone[place] = arguments[place][s : s + 1]
        alone = [Out(a.tensor[rows]) if isinstance(a, Out) else a for a in alone]
        for whole, single in zip(together, run(op, alone, dtype)):
            assert torch.equal(whole[rows], single)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["linear_forward", "linear_backward"])
def test_threads_change_no_bit(op, dtype):
    arguments = (forward_arguments if op == "linear_forward" else backward_arguments)((100, 2, 96, (130, 9), 16), dtype)
    threads_change_no_bit(op, arguments, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["linear_forward", "linear_backward"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_row_stays_alone(op, dtype, bad):
    arguments = (forward_arguments if op == "linear_forward" else backward_arguments)((60, 2, 97, (33, 40), 8), dtype)
    clean = run(op, arguments, dtype)
    arguments[0] = arguments[0].clone()
    arguments[0][17] = bad
    dirty = run(op, arguments, dtype)
    others = torch.arange(60) != 17
    for a, b in zip(clean, dirty):
        assert torch.equal(a[others], b[others])
        assert not torch.isfinite(b[17]).any()


def test_errors_name_the_argument():
    weight = _C.PackedMatrix(torch.zeros(4, 6))
    x, y = torch.zeros(10, 6), torch.zeros(10, 4)
    forward = lambda **change: _C.linear_forward(
        **{**dict(x=x, parts=[weight], bias=None, A=None, Bt=None, slots=None, scale=1.0, u=None, y=y), **change}
    )  # noqa: E731
    forward()
    with pytest.raises(ValueError, match=r"linear_forward: parts\[0\] has shape \[4, 6\], accepted is \[any, 5\]"):
        forward(x=torch.zeros(10, 5))
    with pytest.raises(ValueError, match=r"y has dtype bfloat16, accepted is float32"):
        forward(y=y.bfloat16())
    with pytest.raises(ValueError, match=r"x has strides"):
        forward(x=torch.zeros(6, 10).t())
    with pytest.raises(ValueError, match=r"A is given without Bt"):
        forward(A=torch.zeros(1, 2, 6))
    adapter = dict(A=torch.zeros(2, 2, 6), Bt=torch.zeros(2, 2, 4), u=torch.zeros(10, 2))
    forward(slots=torch.zeros(2, dtype=torch.int32), **adapter)
    with pytest.raises(ValueError, match=r"slots\[1\] is 2, accepted is 0 to 1"):
        forward(slots=torch.tensor([0, 2], dtype=torch.int32), **adapter)
    with pytest.raises(ValueError, match=r"slots has 3 entries for 10 rows"):
        forward(slots=torch.zeros(3, dtype=torch.int32), **adapter)
    with pytest.raises(ValueError, match=r"slots is missing"):
        forward(**adapter)
    with pytest.raises(ValueError, match=r"parts has a Tensor, accepted is PackedMatrix"):
        forward(parts=[x])
