"""Weights in the form the kernels multiply with, made from plain tensors.

The native kernels read a weight packed in panels. A tensor may change between two calls, so an op packs its weights anew at each
call; that is always right and costs one pass over the weight. ``freeze`` keeps the packed form of a weight that does not learn.

What is kept belongs to a storage and to the layout of one matrix in it: offset, shape, strides and dtype. Transposed, sliced or
reinterpreted, the same storage is another matrix. It is fresh while the storage is where it was and the version counter stands
where it stood, both that of the frozen tensor and that of the one in hand: tensors that share a storage need not share a counter.
An address says nothing by itself: a freed one is given out again.
"""

from __future__ import annotations

import weakref

import torch

from dynadapt.ops.matrix import DenseMatrix, make_matrix

from . import registry

_FROZEN: dict[tuple, _Frozen] = {}  # _identity of the weight -> what is kept for it


def _identity(weight: torch.Tensor) -> tuple:
    """Which matrix a tensor is. The storage's number is its own as long as an entry with it is there: that goes with the storage."""
    return weight.untyped_storage()._cdata, weight.storage_offset(), weight.shape, weight.stride(), weight.dtype


class _Frozen:
    """The packed form of one matrix in a storage, with the state of the weight that it was made from."""

    def __init__(self, weight: torch.Tensor, forget):
        # Neither holds the weight nor a weak reference to it: both would stand in the way of torch.utils.swap_tensors.
        self.storage = weakref.ref(weight.untyped_storage(), forget)
        with torch.inference_mode(False):
            self.counter = weight.detach()
            self.counter.data = weight.new_empty(0)  # shares the weight's version counter and nothing else
        self.stamp: tuple[int, int] | None = None
        self.matrix = None

    def packed(self, weight: torch.Tensor):
        """The matrix of ``weight``, which has this identity; packed anew where what is kept is stale, or may be."""
        stamp = weight.data_ptr(), self.counter._version
        if weight.is_inference() or weight._version != stamp[1]:  # by another counter: what it has been through can't be seen from here
            return make_matrix(weight, "cpu", weight.dtype)
        if self.stamp != stamp:
            self.matrix, self.stamp = make_matrix(weight, "cpu", weight.dtype), stamp
        return self.matrix


def freeze(weight: torch.Tensor) -> torch.Tensor:
    """Keep the packed form of ``weight`` [O, K] from its next use on a CPU, for as long as its storage lives; returns ``weight``.

    The tensor's version counter is looked at in every call, so that copy_(), load_state_dict() and optimizers are seen. **Writes
    past the counter are not**: into the elements of ``weight.data``, by numpy or another library. Costs as many bytes as the weight.

    Raises:
        ValueError: for a tensor that learns, is no contiguous matrix or transpose of one, or has no version counter (inference mode).
    """
    if weight.requires_grad or weight.is_inference():
        raise ValueError(f"weight {tuple(weight.shape)}: expected a tensor with requires_grad=False, made outside inference mode")
    if weight.dim() != 2 or not (weight.is_contiguous() or weight.t().is_contiguous()):
        raise ValueError(
            f"weight has shape {tuple(weight.shape)} and strides {weight.stride()}: expected a contiguous [O, K], or the "
            "transpose of a contiguous [K, O]"
        )
    storage = weight.untyped_storage()
    if weight.numel() == 0 or storage.device.type != "cpu" or storage.data_ptr() == 0:
        return weight  # other devices multiply with the plain tensor; a fake tensor or one of other tensors has no memory itself
    identity = _identity(weight)
    known = _FROZEN.get(identity)
    if known is None or known.counter._version != weight._version:
        _FROZEN[identity] = _Frozen(weight, lambda storage: _FROZEN.pop(identity, None))
    return weight


def matrices(op: str, weights: list[torch.Tensor], like: torch.Tensor) -> list:
    """The matrices [O_p, K] that ``op`` multiplies activations such as ``like`` with.

    Raises:
        ValueError: a weight whose dtype is not that of the activations.
    """
    for p, weight in enumerate(weights):
        if weight.dtype != like.dtype or weight.device != like.device:
            raise ValueError(
                f"{op}: weight {p} is {weight.dtype} on {weight.device}, accepted is {like.dtype} on {like.device} as the activations are"
            )
    if registry.backend_of(op, like.device.type, like.dtype) != "cpu":
        return [DenseMatrix(weight.contiguous(), copy=False) for weight in weights]
    return [_packed(weight) for weight in weights]


def _packed(weight: torch.Tensor):
    known = _FROZEN.get(_identity(weight)) if _FROZEN else None
    return make_matrix(weight, "cpu", weight.dtype) if known is None else known.packed(weight)
