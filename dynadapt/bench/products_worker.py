"""One provider of ``dynadapt bench products``, in a process of its own (worker.py).

{"do": "make", "rows": M, "outputs": O, "inputs": K, "backward": false} makes y [M, O] = x W^T, or dx [M, K] = dy W with backward, checks
it against float64 and says {"error": relative 2-norm}, or {"absent": why}; "time" then times it.
"""

from __future__ import annotations

import torch

from .worker import Worker, serve


def native(x, weight, y, backward: bool):
    from dynadapt.ops.dispatch import native_module

    kernels = native_module()
    packed = kernels.PackedMatrix(weight)
    if backward:
        return lambda: kernels.linear_backward(x, [packed], None, None, None, 1.0, None, y)
    return lambda: kernels.linear_forward(x, [packed], None, None, None, None, 1.0, None, y)


def torch_mm(x, weight, y, backward: bool):
    """MKL's product in float32, oneDNN's in bf16."""
    other = weight if backward else weight.t()
    return lambda: torch.mm(x, other, out=y)


def onednn(x, weight, y, backward: bool):
    """oneDNN with the weight packed beforehand, as compiled inference has it."""
    laid = (weight.t() if backward else weight).contiguous()
    packed = torch.ops.mkldnn._reorder_linear_weight(laid, x.shape[0])
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def mkl(x, weight, y, backward: bool):
    """MKL with the weight packed beforehand; it has float32 only."""
    laid = (weight.t() if backward else weight).contiguous()
    packed = torch.ops.mkl._mkl_reorder_linear_weight(laid, x.shape[0])
    return lambda: torch.ops.mkl._mkl_linear(x, packed, laid, None, x.shape[0])


CALLS = {"dynadapt": native, "torch.mm": torch_mm, "oneDNN packed": onednn, "MKL packed": mkl}
LIMIT = {torch.bfloat16: 0.01, torch.float32: 1e-5}  # relative 2-norm from float64


class Products(Worker):
    COMMANDS = (*Worker.COMMANDS, "make")

    def __init__(self, options: dict):
        super().__init__(options, native=options["provider"] == "dynadapt")

    def make(self, rows: int, outputs: int, inputs: int, backward: bool) -> dict:
        generator = torch.Generator().manual_seed(0)
        draw = lambda *shape: torch.randn(shape, generator=generator).to(self.dtype)  # noqa: E731
        x, weight = draw(rows, outputs if backward else inputs), draw(outputs, inputs)
        exact = x.double() @ (weight.double() if backward else weight.double().t())
        y = torch.empty(exact.shape, dtype=self.dtype)
        try:
            call = CALLS[self.options["provider"]](x, weight, y, backward)
            found = call()
        except (RuntimeError, AttributeError) as error:  # this build of torch has not got it, or not for this dtype
            return {"absent": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}
        error = float(((y if found is None else found).double() - exact).norm() / exact.norm())
        if not error <= LIMIT[self.dtype]:
            return {"absent": f"its result is off by {error:.3g} (2-norm, relative to float64)"}
        self.step = call
        return {"error": error}


if __name__ == "__main__":
    serve(Products)
