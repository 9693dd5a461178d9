"""Adapters of each slot's own ranks and scales: a stream's results are those of a call of its own, to the bit on the CPU."""

import pytest
import torch
from slot_draws import RANKS, alone, draw, together

from dynadapt import _C
from dynadapt.ops import DenseMatrix, make_int8_matrix, resolve
from dynadapt.ops.slot_adapters import SlotAdapters

NAMES = ("linear_forward", "linear_backward", "lora_gradient")
NATIVE = {name: getattr(_C, name) for name in NAMES}
REFERENCE = {name: resolve(name, "reference", torch.float64).function for name in NAMES}
PACKS = {"same": _C.PackedMatrix, "int8": lambda w: make_int8_matrix(w, "cpu", w.dtype)}


def pieces(layer, i, u, y, dU, dx, gradient):
    """What a call with all streams has made of stream i."""
    rows, slot = layer.of(i), int(layer.slots[i])
    width = sum(layer.own.ranks(slot))
    a, bt = layer.own.views(slot, gradient, gradient, layer.x.shape[1], sum(layer.sizes))
    return {"u": u[rows, :width], "y": y[rows], "dU": dU[rows, :width], "dx": dx[rows], "dA": a, "dBt": bt}


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("base", PACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stream_has_the_bits_of_a_call_of_its_own(dtype, base, accumulate):
    for seed in range(3):
        layer = draw(seed, each=(1, 13, 40)[seed], dtype=dtype)
        made = together(layer, NATIVE, PACKS[base], accumulate)
        for i, slot in enumerate(layer.slots.tolist()):
            own = alone(layer, NATIVE, i, PACKS[base], accumulate)
            a, bt = layer.own.views(slot, own[4], own[4], layer.x.shape[1], sum(layer.sizes))
            expected = dict(zip(("u", "y", "dU", "dx"), own), dA=a, dBt=bt)
            for name, value in pieces(layer, i, *made).items():
                assert torch.equal(value, expected[name]), (name, slot)


def test_threads_change_no_bit():
    layer, made = draw(each=40, sizes=(130, 9, 20), dtype=torch.float32), []
    for threads in (1, 3):
        _C.set_num_threads(threads)
        try:
            made.append([t.nan_to_num(7.0) for t in together(layer, NATIVE, _C.PackedMatrix)])
        finally:
            _C.set_num_threads(0)
    assert all(torch.equal(one, three) for one, three in zip(*made))


def test_nothing_beside_the_streams_of_a_call_is_written():
    layer = draw(dtype=torch.float32)
    u, _, dU, _, gradient = together(layer, NATIVE, _C.PackedMatrix)
    touched = torch.zeros_like(gradient, dtype=torch.bool)
    for i, slot in enumerate(layer.slots.tolist()):
        for view in layer.own.views(slot, touched, touched, layer.x.shape[1], sum(layer.sizes)):
            view.fill_(True)
        width = sum(layer.own.ranks(slot))
        assert u[layer.of(i), width:].isnan().all() and dU[layer.of(i), width:].isnan().all()
    assert torch.equal(gradient[~touched], layer.gradient[~touched]) and not gradient.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_native_kernels_against_the_reference(dtype):
    layer = draw(dtype=dtype)
    wide = layer.to(torch.float64)
    truth = together(wide, REFERENCE)
    for name, mine, plain, exact in zip(
        ("u", "y", "dU", "dx", "gradient"), together(layer, NATIVE, _C.PackedMatrix), together(layer, REFERENCE), truth
    ):
        error, theirs = ((t.double() - exact).nan_to_num().abs().max() for t in (mine, plain))
        assert error <= theirs + 1e-5 * exact.nan_to_num().abs().max(), name


def test_the_reference_is_what_a_stream_computes_by_the_equations():
    layer = draw()
    u, y, dU, dx, gradient = together(layer, REFERENCE)
    for i, slot in enumerate(layer.slots.tolist()):
        rows, ranks = layer.of(i), layer.own.ranks(slot)
        a, bt = layer.own.views(slot, layer.flat, layer.flat, layer.x.shape[1], sum(layer.sizes))
        da, dbt = layer.own.views(slot, gradient, gradient, layer.x.shape[1], sum(layer.sizes))
        x, dy = layer.x[rows].clone().requires_grad_(), layer.dy[rows]
        A, B = a[0].clone().requires_grad_(), bt[0].clone().requires_grad_()
        out, row, column = [], 0, 0
        for (rank, scale), weight in zip(layer.own.pairs[slot], layer.weights):
            part = x @ weight.t()
            if rank:
                part = part + scale * (x @ A[row : row + rank].t()) @ B[:rank, column : column + len(weight)]
            out, row, column = [*out, part], row + rank, column + len(weight)
        whole = torch.cat(out, 1) + layer.bias
        assert torch.allclose(y[rows], whole)
        whole.backward(dy)
        assert torch.allclose(dx[rows], x.grad)
        if any(ranks):
            assert torch.allclose(da[0], A.grad) and torch.allclose(dbt[0], B.grad)


def test_a_gradient_of_float64_passes_gradcheck():
    layer = draw(each=3, k=5, sizes=(4, 3), slots=(2, 0), ranks=[(1, 2), (3, 3), (0, 2)])

    class Layer(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, flat):
            layer.x, layer.flat = x, flat
            u, y = layer.low(), torch.empty(len(x), 7, dtype=x.dtype)
            parts = [DenseMatrix(w) for w in layer.weights]
            REFERENCE["linear_forward"](x, parts, layer.bias, flat, flat, layer.slots, layer.own, u, y)
            ctx.save_for_backward(x, flat, u)
            return y

        @staticmethod
        def backward(ctx, dy):
            (x, flat, u), dx = ctx.saved_tensors, torch.empty_like(layer.x)
            dU, gradient = torch.zeros_like(u), torch.zeros_like(flat)
            parts = [DenseMatrix(w) for w in layer.weights]
            REFERENCE["linear_backward"](dy, parts, flat, flat, layer.slots, layer.own, dU, dx)
            REFERENCE["lora_gradient"](dy, x, u, dU, layer.sizes, layer.own, layer.slots, gradient, gradient, False)
            return dx, gradient

    inputs = (layer.x.clone().requires_grad_(), layer.flat.clone().requires_grad_())
    assert torch.autograd.gradcheck(Layer.apply, inputs)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="pairs are of 2 slots with .1, 2. parts, places of 1"):
        SlotAdapters([[(1, 1.0)], [(1, 1.0), (2, 1.0)]], [(0, 0)])
    layer = draw(dtype=torch.float32)

    def call(places=layer.own.places, pairs=layer.own.pairs, flat=layer.flat, u=None, slots=layer.slots):
        layer.own, layer.flat, layer.slots = SlotAdapters(pairs, places), flat, slots
        layer.low = lambda: torch.zeros(len(layer.x), 200) if u is None else u
        together(layer, NATIVE, _C.PackedMatrix)

    good = (layer.own.places, layer.own.pairs, layer.flat)
    with pytest.raises(ValueError, match=r"linear_forward: slot_table has A of slot 0, \[20, 37\], at element -1, accepted is"):
        call(places=[(-1, 800), *good[0][1:]])
    with pytest.raises(ValueError, match="linear_forward: slot_table has Bt of slot 4"):
        call(*good[:2], flat=good[2][:-1].clone())
    with pytest.raises(ValueError, match="linear_forward: u has 50 columns, accepted is at least 51"):
        call(*good, u=torch.zeros(len(layer.x), 50))
    with pytest.raises(ValueError, match="linear_forward: slots"):
        call(*good, slots=torch.tensor([0, 1, 2, 5], dtype=torch.int32))
    with pytest.raises(ValueError, match="lora_gradient: slot_table has adapters of the call that overlap"):
        call([(5, 700), *good[0][1:]], *good[1:])
    with pytest.raises(ValueError, match=r"linear_forward: slot_table is -1, accepted is 0"):
        call(good[0], [[(-1, 1.0), (0, 1.0), (0, 1.0)], *good[1][1:]], good[2])
    with pytest.raises(ValueError, match="linear_forward: slot_scales is nan"):
        call(good[0], [[(4, float("nan")), (0, 1.0), (16, 1.0)], *good[1][1:]], good[2])
    with pytest.raises(ValueError, match="scale.table is no such tensor, accepted is contiguous int64"):
        call(good[0], [own[:2] for own in good[1]], good[2])
    assert RANKS[1] == (0, 0, 0)
