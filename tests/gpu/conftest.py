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
