"""Weights in the form the kernels multiply with, made from plain tensors.

The native kernels read a weight packed in panels. A tensor may change between two calls, so an op packs its weights anew at each
call; that is always right and costs one pass over the weight. ``freeze`` keeps the packed form of a weight that does not learn.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from ..ops.matrix import DenseMatrix, make_matrix
from . import registry

_FROZEN: dict[int, "_Frozen"] = {}  # address of the weight -> what is kept for it


@dataclass
class _Frozen:
    weight: weakref.ref
    version: int = -1
    matrix: object = None


def freeze(weight: torch.Tensor) -> torch.Tensor:
    """Keep the packed form of ``weight`` [O, K] from its next use on a CPU, for as long as the tensor lives; returns ``weight``.

    The tensor's version counter is looked at in every call, so that copy_(), load_state_dict() and optimizers are seen. **Writes
    past the counter are not**: through ``weight.data``, numpy or another library. Costs as many bytes as the weight.

    Raises:
        ValueError: for a tensor that learns, is no contiguous matrix, or has no version counter (inference mode).
    """
    if weight.requires_grad or weight.is_inference():
        raise ValueError(f"weight {tuple(weight.shape)}: expected a tensor with requires_grad=False, made outside inference mode")
    if weight.dim() != 2 or not weight.is_contiguous():
        raise ValueError(f"weight has shape {tuple(weight.shape)} and strides {weight.stride()}: expected a contiguous [O, K]")
    if weight.device.type != "cpu" or weight.numel() == 0:
        return weight  # other devices multiply with the plain tensor
    address = weight.data_ptr()
    known = _FROZEN.get(address)
    if known is None or known.weight() is not weight:
        _FROZEN[address] = _Frozen(weakref.ref(weight, lambda ref: _forget(address, ref)))
    return weight


def _forget(address: int, ref) -> None:
    known = _FROZEN.get(address)
    if known is not None and known.weight is ref:
        del _FROZEN[address]


def matrices(op: str, weights: list[torch.Tensor], like: torch.Tensor) -> list:
    """The matrices [O_p, K] that ``op`` multiplies activations such as ``like`` with.

    Raises:
        ValueError: a weight whose dtype is not that of the activations.
    """
    for p, weight in enumerate(weights):
        if weight.dtype != like.dtype or weight.device != like.device:
            raise ValueError(f"{op}: weight {p} is {weight.dtype} on {weight.device}, accepted is {like.dtype} on {like.device} "
                             "as the activations are")
    if registry.backend_of(op, like.device.type, like.dtype) != "cpu":
        return [DenseMatrix(weight.contiguous(), copy=False) for weight in weights]
    return [_packed(weight) for weight in weights]


def _packed(weight: torch.Tensor):
    known = _FROZEN.get(weight.data_ptr())
    kept = None if known is None else known.weight()
    if kept is None or kept.data_ptr() != weight.data_ptr() or kept.shape != weight.shape or kept.dtype != weight.dtype:
        return make_matrix(weight, "cpu", weight.dtype)
    if known.version != kept._version:
        known.matrix, known.version = make_matrix(kept, "cpu", kept.dtype), kept._version
    return known.matrix
