"""Adapters of each slot's own ranks and scales in Triton, against the reference, and the same whoever shares the call."""

import pytest
import torch
from slot_draws import draw, together

from dynadapt.kernels import linear as linear_kernels
from dynadapt.kernels import lora_gradient as gradient_kernels
from dynadapt.kernels import slot_adapters
from dynadapt.ops import resolve

from .compare import DEVICE, DTYPES

NAMES = ("linear_forward", "linear_backward", "lora_gradient")
TRITON = {name: getattr(gradient_kernels if name == "lora_gradient" else linear_kernels, name) for name in NAMES}
REFERENCE = {name: resolve(name, "reference", torch.float64).function for name in NAMES}


@pytest.mark.parametrize(("dtype", "accumulate"), list(zip(DTYPES, (True, False))))
def test_against_the_reference(dtype, accumulate, monkeypatch):
    monkeypatch.setattr(slot_adapters, "CHUNK", 32)
    layer = draw(each=40, slots=(3, 1, 0), dtype=dtype).to(dtype, DEVICE)
    mine = together(layer, TRITON, accumulate=accumulate)
    plain = together(layer.to(dtype), REFERENCE, accumulate=accumulate)
    exact = together(layer.to(torch.float64), REFERENCE, accumulate=accumulate)
    for name, ours, theirs, truth in zip(("u", "y", "dU", "dx", "gradient"), mine, plain, exact):
        assert torch.equal(ours.isnan().cpu(), truth.isnan()), name  # what is not a slot's own is left alone
        error, allowed = ((t.cpu().double() - truth).nan_to_num().abs().max() for t in (ours, theirs))
        largest = truth.nan_to_num().abs().max()
        assert error <= allowed + (1e-5 if dtype == torch.float32 else 2**-8) * largest, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_has_the_same_bits_whoever_shares_the_call(dtype):
    layer = draw(each=17, slots=(3, 1, 0), dtype=dtype).to(dtype, DEVICE)
    whole = together(layer, TRITON)
    for i in (0, 2):
        rows = layer.of(i)
        one = layer.to(dtype, DEVICE)
        one.x, one.dy, one.slots = layer.x[rows].contiguous(), layer.dy[rows].contiguous(), layer.slots[i : i + 1]
        own = together(one, TRITON)
        width = sum(layer.own.ranks(int(layer.slots[i])))
        assert torch.equal(own[0][:, :width], whole[0][rows, :width]) and torch.equal(own[2][:, :width], whole[2][rows, :width])
        for mine, shared in zip(
            layer.own.views(int(layer.slots[i]), own[4], own[4], layer.x.shape[1], sum(layer.sizes)),
            layer.own.views(int(layer.slots[i]), whole[4], whole[4], layer.x.shape[1], sum(layer.sizes)),
        ):
            assert torch.equal(mine, shared)


def test_errors_name_the_argument():
    layer = draw(dtype=torch.float32).to(torch.float32, DEVICE)
    layer.flat = layer.flat[:-1].contiguous()
    with pytest.raises(ValueError, match="linear_forward: Bt has shape .*, accepted is contiguous and flat, of at least"):
        together(layer, TRITON)
