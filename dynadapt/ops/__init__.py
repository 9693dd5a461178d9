"""Ops: one file each, with its contract, its reference, its FLOP formula and its dispatch."""

from . import (
    activation, attention, cross_entropy, embedding, fused_update, head_norm, linear, linear_mse, memory_advance, norm, update,
    weight_gradient,
)
from .dispatch import UnsupportedOp, choose_backend, defined_ops, resolve
from .matrix import DenseMatrix, make_matrix

__all__ = [
    "DenseMatrix", "UnsupportedOp", "activation", "attention", "choose_backend", "cross_entropy", "defined_ops",
    "embedding", "fused_update", "head_norm", "linear", "linear_mse", "make_matrix", "memory_advance", "norm", "resolve",
    "update", "weight_gradient",
]
