"""Gradient of a linear layer's bias (ops/bias_gradient.py)."""

from __future__ import annotations

from .registry import functional, kernel, no_second_derivative, rows, wide_zeros


@functional("bias_gradient(Tensor dy) -> Tensor")
def bias_gradient(dy):
    db = wide_zeros(dy, dy.shape[1])
    yield db
    kernel("bias_gradient", dy)(rows(dy), db)


no_second_derivative(bias_gradient)
