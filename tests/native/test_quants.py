"""Matrices kept in blocks of integers: every op gives the bits that it gives with the same weight dequantised first."""

import pytest
import torch

from dynadapt import _C
from dynadapt.bench.made_up_quants import random_blocks
from dynadapt.ops.quants import BLOCK_FORMATS, make_quantised

FORMATS = pytest.mark.parametrize("name", BLOCK_FORMATS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
ROWS = [1, 33, 100]  # of a weight: less than a panel, one more, a ragged last one
K = 768


def pair(name, rows, dtype, columns=K, seed=0):
    """(the matrix of blocks, the plain one of the dequantised values)."""
    weight = random_blocks(name, rows, columns, std=columns**-0.5, seed=seed)
    return make_quantised(weight, dtype), _C.PackedMatrix(weight.dequantise().to(dtype))


@pytest.fixture(params=[1, 3], ids=["1 thread", "3 threads"])
def threads(request):
    _C.set_num_threads(request.param)
    yield request.param
    _C.set_num_threads(0)


def same(make):
    """That the outputs of ``make(0)`` and ``make(1)`` have the same bits, and are numbers."""
    for ours, plain in zip(make(0), make(1)):
        assert torch.isfinite(ours).all() and torch.equal(ours, plain)


@FORMATS
@DTYPES
@pytest.mark.parametrize("rows", ROWS)
def test_rows_are_the_dequantised_ones(name, dtype, rows, threads):
    weight = random_blocks(name, rows, K)
    matrix, value = make_quantised(weight, dtype), weight.dequantise().to(dtype)
    assert matrix.shape == (rows, K) and matrix.storage == name and matrix.dtype == str(dtype).removeprefix("torch.")
    out = torch.full((rows, K), float("nan"), dtype=dtype)
    matrix.unpack(out)
    assert torch.equal(out, value) and torch.equal(torch.signbit(out), torch.signbit(value))
    index = torch.randint(rows, (19,))
    some = torch.full((19, K), float("nan"), dtype=dtype)
    matrix.gather_rows(index, some)
    assert torch.equal(some, value[index])


@FORMATS
def test_the_files_bytes_are_all_that_is_kept(name):
    weight = random_blocks(name, 96, K)
    assert make_quantised(weight, torch.bfloat16).nbytes == weight.nbytes


@FORMATS
@DTYPES
def test_every_half_float_scales_alike(name, dtype):
    """Smallest, largest, signed, infinite and NaN scales."""
    scales = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x3C00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01]
    form, weight = BLOCK_FORMATS[name], random_blocks(name, len(scales), 256)
    for at in form.halves:
        blocks = weight.blocks.view(len(scales), -1, form.size)
        blocks[:, :, at : at + 2] = torch.tensor([[s & 255, s >> 8] for s in scales], dtype=torch.uint8)[:, None]
    matrix, value = make_quantised(weight, dtype), weight.dequantise().to(dtype)
    out = torch.empty_like(value)
    matrix.unpack(out)
    assert torch.equal(out.isnan(), value.isnan()) and torch.equal(out.nan_to_num(7), value.nan_to_num(7))


@FORMATS
@DTYPES
@pytest.mark.parametrize("n", [1, 50])
def test_linear(name, dtype, n, threads):
    """Parts of other storages beside it, biases and adapters of two streams."""
    other = "q6_k" if name != "q6_k" else "q8_0"
    both = [pair(name, 100, dtype), pair(other, 33, dtype, seed=1), (_C.PackedMatrix(torch.randn(9, K).to(dtype)),) * 2]
    streams, rank, O = (2 if n > 1 else 1), 5, 142
    draw = lambda *shape: torch.randn(shape).mul_(0.1).to(dtype)  # noqa: E731
    x, bias, dy = draw(n, K), draw(O), draw(n, O)
    A, Bt = draw(streams, 3 * rank, K), draw(streams, rank, O)
    slots = torch.arange(streams, dtype=torch.int32)

    def forward(which):
        u, y = torch.empty(n, 3 * rank, dtype=dtype), torch.full((n, O), float("nan"), dtype=dtype)
        _C.linear_forward(x=x, parts=[p[which] for p in both], bias=bias, A=A, Bt=Bt, slots=slots, scale=0.7, u=u, y=y)
        return u, y

    def backward(which):
        dU, dx = torch.empty(n, 3 * rank, dtype=dtype), torch.full((n, K), float("nan"), dtype=dtype)
        _C.linear_backward(dy=dy, parts=[p[which] for p in both], A=A, Bt=Bt, slots=slots, scale=0.7, dU=dU, dx=dx)
        return dU, dx

    same(forward)
    same(backward)


@FORMATS
@DTYPES
def test_cross_entropy(name, dtype, threads):
    heads, n, vocabulary = pair(name, 603, dtype, 256), 60, 603
    h, targets, weights = torch.randn(n, 256).to(dtype), torch.randint(vocabulary, (n,)), torch.rand(n)
    targets[::7] = -1
    nothing = lambda *shape, dtype=torch.float32: torch.full(shape, float("nan"), dtype=dtype)  # noqa: E731

    def score(which):
        nll, lse, dh = nothing(n), nothing(n), nothing(n, 256, dtype=dtype)
        _C.cross_entropy(h, heads[which], targets, weights, nll, lse, dh)
        return nll, lse, dh

    def gradient(which):
        dW = nothing(vocabulary, 256)
        _C.cross_entropy_weight_gradient(h, heads[which], targets, weights, score(which)[1], dW, False)
        return (dW,)

    same(score)
    same(gradient)


def test_errors_name_the_argument():
    blocks = random_blocks("q4_k", 3, 512).blocks.view(-1).numpy()
    make = lambda storage="q4_k", blocks=blocks, rows=3, columns=512, dtype="float32": _C.PackedMatrix(
        storage, blocks, rows, columns, dtype
    )  # noqa: E731
    with pytest.raises(ValueError, match=r'storage is "q5_k", accepted are q8_0, q4_0, q4_1, q5_0, q4_k, q6_k'):
        make("q5_k")
    with pytest.raises(ValueError, match=r"columns is 500, accepted are multiples of 256, the columns of a block of q4_k"):
        make(columns=500)
    with pytest.raises(ValueError, match=r"bytes is 864, accepted is 1152, that of 4 rows of 512 columns in q4_k"):
        make(rows=4)
    with pytest.raises(ValueError, match=r"rows is 0"):
        make(rows=0)
    with pytest.raises(ValueError, match=r"dtype is float16, accepted is float32 or bfloat16"):
        make(dtype="float16")
    with pytest.raises(ValueError, match=r"blocks has 2 dimensions, accepted is one, contiguous"):
        make(blocks=blocks.reshape(3, -1))
    with pytest.raises(ValueError, match=r"update_rows: matrix is stored as q4_k, accepted are float32 and bfloat16"):
        make().update_rows(None, torch.zeros(3, 512))
