"""Matrix products by cuBLAS, summed in float32 throughout.

torch lets cuBLAS round partial sums of a bfloat16 product to bfloat16 where it splits the inner dimension, unless the caller switches that off.
Here it may not, whatever the caller's switch says: a result then is one rounding of a float32 sum, as that of the Triton kernels beside it
is, and its error does not hang on how many pieces a heuristic chose. In float32 cuBLAS follows torch's TF32 switch, which is off unless the
caller turns it on.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager

import torch

_SWITCH = "allow_bf16_reduced_precision_reduction"
_lock, _inside, _before = threading.Lock(), 0, None


@contextmanager
def float32_sums():
    """Products of bfloat16 inside sum in float32, in any number of threads; torch's switch is as before when the last has left."""
    global _inside, _before
    matmul = torch.backends.cuda.matmul
    with _lock:
        if not _inside:
            split = getattr(matmul, f"{_SWITCH}_split_k", None)  # a second switch, of later versions of torch
            before = getattr(matmul, _SWITCH)
            _before = before if split is None else (before, split)
            setattr(matmul, _SWITCH, False if split is None else (False, split))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                setattr(matmul, _SWITCH, _before)


def mm(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    """out = a b + bias."""
    with float32_sums():
        if bias is None:
            torch.mm(a, b, out=out)
        else:
            torch.addmm(bias, a, b, out=out)


def add_mm(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """out += a b."""
    with float32_sums():
        out.addmm_(a, b)
