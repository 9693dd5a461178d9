"""Ops: one file each, with its contract, its reference, its FLOP formula and its dispatch."""

from . import (
    activation,
    attention,
    bias_gradient,
    cross_entropy,
    embedding,
    head_norm,
    linear,
    linear_mse,
    lora_gradient,
    memory,
    norm,
    reset,
    update,
    weight_gradient,
)
from .dispatch import UnsupportedOp, choose_backend, choose_device, defined_ops, resolve
from .float8 import Float8Weights
from .matrix import DenseMatrix, make_matrix, make_parts

__all__ = [
    "DenseMatrix",
    "Float8Weights",
    "UnsupportedOp",
    "activation",
    "attention",
    "bias_gradient",
    "choose_backend",
    "choose_device",
    "cross_entropy",
    "defined_ops",
    "embedding",
    "head_norm",
    "linear",
    "linear_mse",
    "lora_gradient",
    "make_matrix",
    "make_parts",
    "memory",
    "norm",
    "reset",
    "resolve",
    "update",
    "weight_gradient",
]
