"""The ops on numpy arrays: ``dynadapt.numpy.linear(x, weights, ...)`` and all others of ``dynadapt.torch_ops``, by their names.

Arrays are read and written where they are, through the buffer protocol; an input with negative strides is copied first. Results
are new arrays, equal bit for bit to what torch tensors of the same values give. In-place ops (``update``, ``reset``, ...) change
the arrays they are given. bfloat16 arrays are those of the package ml_dtypes; float64 is served by the reference. There are no
gradients here: call the ops named ``*_backward`` and ``*_gradient``.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from . import torch_ops

_FUNCTIONS = tuple(name for name in torch_ops.__all__ if name not in ("SCHEMAS", "freeze"))
__all__ = sorted({*_FUNCTIONS, *torch_ops.SCHEMAS})


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'dynadapt.numpy' has no op {name!r}; known: {', '.join(__all__)}")
    return _wrapped(name)


def __dir__():
    return __all__


@functools.lru_cache(None)
def _wrapped(name: str):
    op = getattr(torch.ops.dynadapt, name).default
    function = getattr(torch_ops, name) if name in _FUNCTIONS else op
    written = [a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    order = [a.name for a in op._schema.arguments]

    def call(*args, **kwargs):
        named = dict(zip(order, args)) if written else {}
        for argument in written:
            _check_writable(name, argument, named.get(argument, kwargs.get(argument)))
        with torch.no_grad():
            result = function(*[_tensor(a) for a in args], **{k: _tensor(v) for k, v in kwargs.items()})
        return _array(result)

    call.__name__, call.__doc__ = name, function.__doc__ if name in _FUNCTIONS else f"dynadapt::{torch_ops.SCHEMAS[name]}"
    return call


def _check_writable(op, argument, value) -> None:
    for array in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(array, np.ndarray) and not array.flags.writeable:
            raise ValueError(f"{op}: {argument} is a read-only array, accepted is one that can be written to")
        if isinstance(array, np.ndarray) and any(stride < 0 for stride in array.strides):
            raise ValueError(f"{op}: {argument} has strides {array.strides}, accepted are strides of at least 0")


class _Writable:
    """A read-only array's memory without the flag, for inputs, which no op writes to: torch has no read-only tensors."""

    def __init__(self, array):
        interface = array.__array_interface__
        self.array, self.__array_interface__ = array, {**interface, "data": (interface["data"][0], False)}


def _tensor(value):
    """``value`` with every array in it as a tensor on the same memory."""
    if isinstance(value, (list, tuple)):
        return [_tensor(v) for v in value]
    if not isinstance(value, np.ndarray):
        return value
    if any(stride < 0 for stride in value.strides):
        value = np.ascontiguousarray(value)
    narrow = value.dtype.name == "bfloat16"
    if narrow:
        value = value.view(np.int16)
    if not value.flags.writeable:
        value = np.asarray(_Writable(value))
    tensor = torch.from_numpy(value)
    return tensor.view(torch.bfloat16) if narrow else tensor


def _array(value):
    if isinstance(value, (list, tuple)):
        return tuple(_array(v) for v in value)
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype != torch.bfloat16:
        return value.numpy()
    import ml_dtypes  # bfloat16 results come from bfloat16 arrays, which only this package makes

    return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
