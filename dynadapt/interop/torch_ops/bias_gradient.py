"""Gradient of a linear layer's bias (ops/bias_gradient.py)."""

from __future__ import annotations

from .registry import functional, kernel, rows, wide_zeros


@functional("bias_gradient(Tensor dy) -> Tensor", gradient=True)
def bias_gradient(dy):
    db = wide_zeros(dy, dy.shape[1])
    yield db
    kernel("bias_gradient", dy)(rows(dy), db)
