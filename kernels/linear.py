"""Linear layers with per-stream adapters, in two forms; a table of measurements chooses (choices.py).

fused   one launch: base product and adapter in one Triton kernel (linear_fused.py). Costs R / BN more multiplications. Also what serves
        small products where nothing was measured: there launches decide (choices.py).
split   shrink and expand (low_rank.py), then cuBLAS adds the base product onto the result: one product for all parts
        whose weights lie next to each other in memory. Three launches; reads x, writes y and reads it once more.

A base in float8 has its own form (float8.py). Parts with ranks and scales of their own, and more than three, take the split form, with a launch a part; where
slots have their own, too, products of slot_adapters.py stand in its place.

Without an adapter "split" is cuBLAS alone. One stream takes the same path as many: with its slot known only on the device
there is no cheaper one. The form is chosen by the number of rows, and in the split form cuBLAS' algorithm and shrink's splits are, so a
row's last bits may depend on how many rows there are; never on their values.
How cuBLAS sums: products.py.
"""

from __future__ import annotations

import torch

from dynadapt.ops.linear import each_part
from dynadapt.ops.slot_adapters import SlotAdapters

from . import choices, float8, linear_fused, low_rank, slot_adapters
from .products import add_mm, mm
from .tiles import generation


def linear_forward(x, parts, bias, A, Bt, slots, scale, u, y) -> None:
    """See ``dynadapt.ops.linear.linear_forward``. x, u and y may have padded rows; A and Bt may be strided over slots."""
    if hasattr(parts, "q_transposed"):
        return float8.forward(x, parts, bias, A, Bt, slots, scale, u, y)
    form = form_of("linear_forward", x, x.shape[1], y.shape[1], Bt, scale, len(parts))
    (forward_fused if form == "fused" else forward_split)(x, parts, bias, A, Bt, slots, scale, u, y)


def linear_backward(dy, parts, A, Bt, slots, scale, dU, dx) -> None:
    """See ``dynadapt.ops.linear.linear_backward``. dy, dU and dx may have padded rows; A and Bt may be strided over slots."""
    if hasattr(parts, "q_transposed"):
        return float8.backward(dy, parts, A, Bt, slots, scale, dU, dx)
    form = form_of("linear_backward", dy, parts[0].shape[1], dy.shape[1], Bt, scale, len(parts))
    (backward_fused if form == "fused" else backward_split)(dy, parts, A, Bt, slots, scale, dU, dx)


def forward_fused(x, parts, bias, A, Bt, slots, scale, u, y) -> None:
    """``linear_forward`` in one launch; up to three parts, rank up to ``linear_fused.MAX_RANK``."""
    weights = _three_at_most("linear_forward", check("linear_forward", x, y, parts, A, Bt, slots, scale, u, forward=True))
    if x.shape[0]:
        linear_fused.launch_forward(x, weights, bias, A, Bt, slots, scale, u, y)


def backward_fused(dy, parts, A, Bt, slots, scale, dU, dx) -> None:
    """``linear_backward`` in one launch; up to three parts, rank up to ``linear_fused.MAX_RANK``."""
    weights = _three_at_most("linear_backward", check("linear_backward", dy, dx, parts, A, Bt, slots, scale, dU, forward=False))
    if not dy.shape[0]:
        return
    if dx is not None:
        linear_fused.launch_backward(dy, weights, A, Bt, slots, scale, dU, dx)
    elif A is not None:
        low_rank.backward(dy, A, Bt, slots, scale, [w.shape[0] for w in weights], dU, None)


def forward_split(x, parts, bias, A, Bt, slots, scale, u, y) -> None:
    """``linear_forward`` with the base product by cuBLAS."""
    weights = check("linear_forward", x, y, parts, A, Bt, slots, scale, u, forward=True)
    if not x.shape[0]:
        return
    if A is not None:
        low_rank.forward(x, A, Bt, slots, scale, bias, [w.shape[0] for w in weights], u, y)
    for w, lo, hi in _products(weights):
        if A is not None:
            add_mm(y[:, lo:hi], x, w.t())
        else:
            mm(x, w.t(), y[:, lo:hi], None if bias is None else bias[lo:hi])


def backward_split(dy, parts, A, Bt, slots, scale, dU, dx) -> None:
    """``linear_backward`` with the base product by cuBLAS."""
    weights = check("linear_backward", dy, dx, parts, A, Bt, slots, scale, dU, forward=False)
    if not dy.shape[0]:
        return
    if A is not None:
        low_rank.backward(dy, A, Bt, slots, scale, [w.shape[0] for w in weights], dU, dx)
    if dx is None:
        return
    for w, lo, hi in _products(weights):
        if A is None and lo == 0:
            mm(dy[:, :hi], w, dx)
        else:
            add_mm(dx, dy[:, lo:hi], w)


def stacked(parts) -> torch.Tensor | None:
    """The weights of ``parts`` as one [sum O_p, K] view when they follow each other in one storage, otherwise None."""
    return _stack([p.weight for p in parts])


def _stack(weights) -> torch.Tensor | None:
    first = weights[0]
    end = first.data_ptr()
    for w in weights:
        if w.data_ptr() != end or w.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += w.numel() * w.element_size()
    return first.as_strided((sum(w.shape[0] for w in weights), first.shape[1]), first.stride())


def reason(op: str) -> str:
    return f"Triton, {choices.reason(op)}"


def form_of(op, rows, k, o, Bt, scale, parts: int) -> str:
    """ "fused" or "split"; parts with ranks of their own, and more than three, are for "split" alone."""
    if parts > low_rank.MAX_PARTS or isinstance(scale, (list, tuple, SlotAdapters)):
        return "split"
    rank = 0 if Bt is None else Bt.shape[1]
    if rank > linear_fused.MAX_RANK:
        return "split"
    size = len(rows), k, o, rank, rows.dtype
    return choices.choose(op, *size, choices.unmeasured(*size, generation(rows.device)))


def _products(weights):
    """(weight, first column, end column) of the base products: one for all parts where they are stacked."""
    whole = _stack(weights)
    start = 0
    for w in weights if whole is None else [whole]:
        yield w, start, start + w.shape[0]
        start += w.shape[0]


def check(op, rows, columns, parts, A, Bt, slots, scale, low, forward: bool):
    """The weights of ``parts``, after checking the shapes that decide which memory is touched."""
    weights = [p.weight for p in parts]
    if not weights:
        raise ValueError(f"{op}: parts has no weights, accepted is 1 or more")
    N, K, O = rows.shape[0], weights[0].shape[1], sum(w.shape[0] for w in weights)
    names, widths = (("x", "y"), (K, O)) if forward else (("dy", "dx"), (O, K))
    _shape(op, names[0], rows, (N, widths[0]))
    if columns is not None:
        _shape(op, names[1], columns, (N, widths[1]))
    for i, w in enumerate(weights):
        if w.shape[1] != K or not w.is_contiguous() or w.dtype != rows.dtype:
            raise ValueError(
                f"{op}: parts[{i}] is {w.dtype} {tuple(w.shape)} with strides {w.stride()}, "
                f"accepted is {rows.dtype} [any, {K}] in row order"
            )
    if A is not None and isinstance(scale, SlotAdapters):
        sizes = [w.shape[0] for w in weights]
        slot_adapters.check(op, scale, N, K, sizes, slots, dict(A=A, Bt=Bt), {"u" if forward else "dU": low})
    elif A is not None:
        rank = Bt.shape[1]
        width = sum(own for _, _, own, _ in each_part(scale, [w.shape[0] for w in weights], rank))
        _shape(op, "A", A, (A.shape[0], width, K), rows=True)
        _shape(op, "Bt", Bt, (A.shape[0], rank, O), rows=True)
        _shape(op, "u" if forward else "dU", low, (N, width))
        if N % len(slots):
            raise ValueError(f"{op}: slots has {len(slots)} entries for {N} rows, accepted is a divisor")
    return weights


def _three_at_most(op, weights):
    if len(weights) > low_rank.MAX_PARTS:
        raise ValueError(f"{op}: parts has {len(weights)} weights, accepted is 1 to {low_rank.MAX_PARTS} in one launch")
    return weights


def _shape(op, name, t, shape, rows=False) -> None:
    """Shape ``shape`` with adjacent elements along the last dimension; ``rows``: adjacent rows too."""
    if tuple(t.shape) != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}, accepted is {shape}")
    if (t.stride(-1) != 1 and shape[-1] > 1) or (rows and t.stride(-2) != shape[-1] and shape[-2] > 1):
        raise ValueError(f"{op}: {name} has strides {t.stride()}, accepted are adjacent elements{' and rows' if rows else ''}")
