"""Ops: a family a file, with its contract, its references and its FLOP formulas; table.py has a row an op, dispatch.py picks what serves it."""

from dynadapt.common.lazy import lazily

from .table import OPS

__all__ = [
    "DenseMatrix",
    "Float8Weights",
    "Int8Matrix",
    "QuantisedWeight",
    "UnsupportedOp",
    "choose_backend",
    "choose_device",
    "defined_ops",
    "expand",
    "make_int8_matrix",
    "make_matrix",
    "make_parts",
    "make_quantised",
    "resolve",
]

# Public name -> the module that has it: the table is read without importing torch.
_HOMES = {
    **dict.fromkeys(("UnsupportedOp", "choose_backend", "choose_device", "defined_ops", "resolve"), "dispatch"),
    **dict.fromkeys(("DenseMatrix", "make_int8_matrix", "make_matrix", "make_parts"), "matrix"),
    "Float8Weights": "float8",
    "Int8Matrix": "int8",
    **dict.fromkeys(("QuantisedWeight", "expand", "make_quantised"), "quants"),
}
_MODULES = {"dispatch", *(row.family for row in OPS.values())}
__getattr__ = lazily(__name__, _HOMES, _MODULES)
