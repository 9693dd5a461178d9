"""Which matrix a frozen weight is: views, edits, moves and reused memory, each time against torch's own product."""

import gc
import itertools
import random
import time

import pytest
import torch

from dynadapt.interop import torch_ops
from dynadapt.interop.torch_ops import packing

N = 8  # square, so that a transposed weight fits too


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def agrees(weight, x=None):
    """``linear`` and its input gradient equal torch's, for weights of any layout."""
    x = torch.randn(5, weight.shape[1], dtype=weight.dtype) if x is None else x
    ours, theirs = (x.detach().clone().requires_grad_() for _ in range(2))
    y, expected = torch_ops.linear(ours, weight), torch.nn.functional.linear(theirs, weight)
    g = torch.randn_like(expected)
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if weight.dtype == torch.float32 else {"atol": 0.3, "rtol": 0.03}
    torch.testing.assert_close(y, expected, **tolerance)
    for a, b in zip(torch.autograd.grad(y, ours, g), torch.autograd.grad(expected, theirs, g)):
        torch.testing.assert_close(a, b, **tolerance)


def is_kept(weight) -> bool:
    return packing._packed(weight) is packing._packed(weight)


def test_a_transposed_frozen_weight_is_another_matrix():
    weight = torch_ops.freeze(torch.randn(N, N))
    agrees(weight)
    agrees(weight.t())
    agrees(weight)
    assert is_kept(weight) and not is_kept(weight.t())


VIEWS = {
    "itself": lambda w: w,
    "transposed": lambda w: w.t(),
    "rows": lambda w: w[2:6],
    "first rows": lambda w: w[:4],
    "columns": lambda w: w[:, 1:5],
    "every other row": lambda w: w[::2],
    "reshaped": lambda w: w.view(N // 2, 2 * N),
    "expanded": lambda w: w[:1].expand(N, N),
    "strided": lambda w: w.as_strided((4, 4), (N + 1, 1)),
    "overlapping": lambda w: w.as_strided((4, 4), (1, 1)),
    "diagonal": lambda w: w.as_strided((N, 1), (N + 1, 1)),
    "detached": lambda w: w.detach(),
    "data": lambda w: w.data,
    "negative": lambda w: torch._neg_view(w),
    "parameter": lambda w: torch.nn.Parameter(w.detach(), requires_grad=False),
    "half of its bits": lambda w: w.view(torch.bfloat16)[:, 1::2] if w.dtype == torch.float32 else w,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first", VIEWS)
def test_every_view_after_every_other(first, dtype):
    weight = torch_ops.freeze(torch.randn(N, N).to(dtype))
    for second in VIEWS:
        agrees(VIEWS[first](weight))
        agrees(VIEWS[second](weight))


def _add(w):
    w += 1


def _in_inference_mode(w):
    with torch.inference_mode():
        w.mul_(1.5)


def _op(w):
    one = torch.zeros(1, dtype=torch.int32)
    slots, master = torch.arange(len(w), dtype=torch.int32), w.float().clone()
    torch.ops.dynadapt.update(
        "sgd",
        master,
        torch.randn(w.shape),
        None,
        None,
        None,
        None,
        w,
        slots,
        torch.ones(len(w)),
        one.repeat(len(w)),
        torch.empty(len(w)),
        one.repeat(len(w)),
    )


def _optimizer(w):
    w.requires_grad_()
    w.grad = torch.randn_like(w)
    torch.optim.SGD([w], lr=0.5).step()
    w.requires_grad_(False).grad = None


EDITS = {
    "add": _add,
    "row": lambda w: w[1].zero_(),
    "transposed": lambda w: w.t().mul_(-1),
    "through a view": lambda w: w.view(-1)[3:9].fill_(2),
    "through detach": lambda w: w.detach().neg_(),
    "copy": lambda w: w.copy_(torch.randn(N, N)),
    "foreach": lambda w: torch._foreach_mul_([w], 3.0),
    "inference": _in_inference_mode,
    "optimizer": _optimizer,
    "op": _op,
    "set": lambda w: w.set_(torch.randn(N, N)),
    "new data": lambda w: setattr(w, "data", torch.randn(N, N)),
    "transposed data": lambda w: setattr(w, "data", w.data.t()),
    "data of another dtype and back": lambda w: (setattr(w, "data", w.data.bfloat16()), setattr(w, "data", w.data.float())),
    "swapped": lambda w: torch.utils.swap_tensors(w, torch_ops.freeze(torch.randn(N, N))),
    "storage moved": lambda w: (w.untyped_storage().resize_(0), w.untyped_storage().resize_(4 * N * N), w.copy_(torch.randn(N, N))),
    "nothing": lambda w: None,
    "frozen again": torch_ops.freeze,
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen(edit):
    weight = torch_ops.freeze(torch.randn(N, N))
    for _ in range(3):
        agrees(weight)
        agrees(weight.t())
        EDITS[edit](weight)
    agrees(weight)
    agrees(weight.t())


def edited_by_chance(seed, seconds):
    """Frozen weights, their views, edits and reallocations in a random order."""
    choose, end, weights = random.Random(seed), time.monotonic() + seconds, []
    for step in itertools.count():
        if time.monotonic() > end and step > 100:
            return step
        if len(weights) < 3 or choose.random() < 0.2:
            weights.append(torch_ops.freeze(torch.randn(N, N)))
        if len(weights) > 3:
            del weights[choose.randrange(len(weights))]  # its memory goes to the next one
        weight = choose.choice(weights)
        if choose.random() < 0.5:
            EDITS[choose.choice(list(EDITS))](weight)
        if not weight.is_contiguous():  # after "transposed data"
            weight.data = weight.data.contiguous()
        torch_ops.freeze(weight)
        agrees(VIEWS[choose.choice(list(VIEWS))](weight))
        if choose.random() < 0.3:
            agrees(choose.choice(weights))


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_views_edits_and_reallocations(seed):
    edited_by_chance(seed, 0.5)


@pytest.mark.slow
def test_any_order_for_long():
    assert edited_by_chance(100, 60) > 1000


def test_reused_memory_is_another_weight():
    """A freed weight's address goes to the next of its size; what was kept goes with the storage."""
    before, addresses, x = len(packing._FROZEN), set(), torch.randn(5, 64)
    for _ in range(20):
        weight = torch_ops.freeze(torch.randn(64, 64))
        agrees(weight, x)
        addresses.add(weight.data_ptr())
        del weight
        agrees(torch.randn(64, 64), x)
    gc.collect()
    assert len(addresses) < 20 and len(packing._FROZEN) == before


def test_data_put_where_older_data_was():
    """The storage is new, the address, the shape and the version counter are not."""
    memory = torch.randn(64, 64).numpy()
    weight = torch_ops.freeze(torch.from_numpy(memory))
    address, version = weight.data_ptr(), weight._version
    for _ in range(30):
        agrees(weight)
        weight.data = torch.empty(1)
        memory[:] = torch.randn(64, 64).numpy()
        weight.data = torch.from_numpy(memory)
        assert weight.data_ptr() == address and weight._version == version
    agrees(weight)


def test_a_counter_that_is_not_the_weights():
    """``data`` and an old storage share memory with a weight and not its counter: only the frozen one's tells what is kept."""
    weight = torch_ops.freeze(torch.randn(N, N))
    agrees(weight)
    old = weight.data
    weight.mul_(2)
    agrees(old)
    weight.data = torch.randn(N, N)
    old.mul_(2)
    agrees(old)
    weight.mul_(2)
    agrees(old)
    agrees(weight)


def test_numpy_arrays_on_a_frozen_weights_memory_are_read_at_every_call():
    import numpy as np

    import dynadapt.interop.numpy as numpy_ops

    weight, x = torch_ops.freeze(torch.randn(N, N)), torch.randn(3, N)
    agrees(weight)
    array = weight.numpy()
    array *= 3  # past the counter
    np.testing.assert_allclose(numpy_ops.linear(x.numpy(), array), x.numpy() @ array.T, atol=1e-4)


def test_what_can_not_be_kept_is_left_alone():
    from torch._subclasses.fake_tensor import FakeTensorMode

    before = len(packing._FROZEN)
    with FakeTensorMode():
        torch_ops.freeze(torch.randn(N, N))
    torch_ops.freeze(torch.empty(N, N, device="meta"))
    torch_ops.freeze(torch.empty(0, N))
    assert len(packing._FROZEN) == before
