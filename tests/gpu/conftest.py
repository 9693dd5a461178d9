"""Kernel tests see the same inputs in every run; with DYNADAPT_CHECKED_KERNELS=SEED every launch of theirs is looked at (emulator.py)."""

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _checked_kernels(request):
    seed = os.environ.get("DYNADAPT_CHECKED_KERNELS")
    if seed is None or request.path.name == "test_emulator.py":
        yield
        return
    from .emulator import checked

    with checked(seed):
        yield


@pytest.fixture(autouse=True)
def _memory_for_others():
    """Several processes share a card: what a test no longer holds is not kept from the others."""
    yield
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@pytest.fixture
def products_of_any_tile(monkeypatch):
    """The interpreter's products by float64, rounded once. numpy's float32 ones add up in an order that depends on a tile's width and on the
    processor, a tensor core's do not: tests that compare the bits of two tile sizes ask for this."""
    if torch.cuda.is_available():
        return
    import numpy as np
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    plain = InterpreterBuilder.create_dot

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        if d.data.dtype != np.float32 or any(x.data.dtype not in (np.float32, np.float16) for x in (a, b)):
            return plain(self, a, b, d, input_precision, max_num_imprecise_acc)
        product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
        return TensorHandle(product.astype(np.float32) + d.data, d.dtype.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
