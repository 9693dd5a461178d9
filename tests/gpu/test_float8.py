"""Quantised rows and the linear layer over a float8 base."""

from copy import copy

import pytest
import torch

from dynadapt.kernels import float8, linear
from dynadapt.ops import float8 as reference
from dynadapt.ops.float8 import FLOAT8, Float8Weights, quantize_rows
from dynadapt.ops.linear import linear_backward, linear_forward

from .compare import DEVICE, skip_without_gpu


def quantized(x):
    q, scale = torch.empty(x.shape, dtype=FLOAT8, device=DEVICE), torch.full((x.shape[0],), float("nan"), device=DEVICE)
    float8.quantize_rows(x.to(DEVICE), q, scale)
    return q.cpu(), scale.cpu()


@pytest.mark.parametrize("rows,columns", [(1, 1), (3, 16), (5, 577)])
def test_quantised_rows(rows, columns):
    x = torch.randn(rows, columns) * torch.logspace(-5, 5, rows)[:, None]
    (q, scale), (expected, expected_scale) = quantized(x), quantize_rows(x)
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)
    different = q.float() != expected.float()
    assert different.float().mean() <= 0.002  # a division may round another way, to a neighbour
    assert ((q.float() - expected.float()).abs() <= torch.maximum(expected.float().abs() / 8, torch.tensor(2.0**-9))).all()


def test_bad_rows_stay_alone():
    x = torch.randn(3, 40)
    x[0], x[1, 7] = 0, float("inf")
    q, scale = quantized(x)
    assert (q[0].float() == 0).all() and not scale[1].isfinite() and scale[2].isfinite() and q[2].float().isfinite().all()


@pytest.mark.gpu
@skip_without_gpu
@pytest.mark.parametrize("columns", [576, 14336])
def test_quantised_rows_at_real_sizes(columns):
    x = torch.randn(1000, columns).bfloat16()
    q, scale = quantized(x)
    expected, expected_scale = quantize_rows(x)
    assert (q.float() != expected.float()).float().mean() < 1e-3  # a division may round another way
    torch.testing.assert_close(scale, expected_scale, rtol=1e-6, atol=0)


@pytest.mark.parametrize("adapted", [True, False])
def test_linear_layers_over_float8(monkeypatch, adapted):
    """The reference multiplies what was quantised here: of bfloat16 numbers a hundredth lies in the middle between two of float8, and goes up or
    down with the last bit of a scale, which moves a product of 64 terms by 1%."""
    torch.manual_seed(0)
    n, k, sizes, rank, dtype = 12, 32, (48, 16), 4, torch.float32 if DEVICE == "cpu" else torch.bfloat16
    o, slots = sum(sizes), torch.tensor([2, 0], dtype=torch.int32)
    make = lambda *shape: torch.randn(shape).to(dtype)  # noqa: E731
    x, dy, bias = make(n, k), make(n, o), make(o)
    A, Bt = (make(3, 2 * rank, k), make(3, rank, o)) if adapted else (None, None)
    weights = [make(size, k) for size in sizes]
    results, here = [], Float8Weights(weights, DEVICE)
    monkeypatch.setattr(reference, "quantize_rows", quantized)
    for ops, device in ((None, "cpu"), (linear, DEVICE)):
        move = lambda t: None if t is None else t.to(device)  # noqa: E731
        f8 = copy(here)
        f8.q, f8.scale, f8.q_transposed, f8.scale_transposed = map(move, (here.q, here.scale, here.q_transposed, here.scale_transposed))
        nan = lambda *shape: torch.full(shape, float("nan"), dtype=dtype, device=device)  # noqa: E731
        u, dU = (nan(n, 2 * rank), nan(n, 2 * rank)) if adapted else (None, None)
        y, dx = nan(n, o), nan(n, k)
        forward, backward = (linear_forward, linear_backward) if ops is None else (ops.linear_forward, ops.linear_backward)
        forward(move(x), f8, move(bias), move(A), move(Bt), move(slots), 0.5, u, y)
        backward(move(dy), f8, move(A), move(Bt), move(slots), 0.5, dU, dx)
        results.append([t.float().cpu() for t in (y, dx, u, dU) if t is not None])
    for i, (expected, ours) in enumerate(zip(*results)):
        assert torch.isfinite(ours).all()
        error = (ours - expected).square().mean().sqrt() / expected.square().mean().sqrt()
        assert error < 0.005, (i, error)
