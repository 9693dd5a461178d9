"""Ops: a family a file, with its contract, its references and its FLOP formulas; table.py has a row an op, dispatch.py picks what serves it."""

from importlib import import_module
from typing import Any

from .table import OPS

__all__ = [
    "DenseMatrix",
    "Float8Weights",
    "Int8Matrix",
    "UnsupportedOp",
    "choose_backend",
    "choose_device",
    "defined_ops",
    "make_int8_matrix",
    "make_matrix",
    "make_parts",
    "resolve",
]

# Public name -> the module that has it: the table is read without importing torch.
_HOMES = {
    **dict.fromkeys(("UnsupportedOp", "choose_backend", "choose_device", "defined_ops", "resolve"), "dispatch"),
    **dict.fromkeys(("DenseMatrix", "make_int8_matrix", "make_matrix", "make_parts"), "matrix"),
    "Float8Weights": "float8",
    "Int8Matrix": "int8",
}
_MODULES = {"dispatch", *(row.family for row in OPS.values())}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
