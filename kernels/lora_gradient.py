"""Gradients of every stream's adapter: dA = dU^T x and dBt_p = scale u_p^T dy_p, all streams and parts in one launch.

A program owns [BR, BC] values of dA (BC columns of x) or of dBt (BC columns of one part of dy) and walks over the
stream's tokens. Traffic: x and dy are read once, 2 N (K + O) bytes in bfloat16, beside the small u and dU; at
2 N R (P K + O) operations that is about R operations a byte, so the kernel is bound by memory and its tiles are chosen
for loads: rows of 128 or 256 bytes, three stages in flight. The product is formed transposed, x^T dU, because the wide
side must be the one of at least 64 rows that wgmma takes; the narrow side is the rank, padded to 16.

Tokens are summed in chunks of 512, chunk after chunk. Where streams times tiles leave multiprocessors idle, each chunk
gets programs of its own and a second launch adds the chunks, in the same order, and only then scales the sum, as the one
launch does: one or two launches, the same bits, so that a stream's gradient does not depend on how many others are in the
call.

lora_gradient_update applies the gradient where it stands, in registers (epilogue.py): no gradient in memory, master and
working copy are read and written once. Where the tokens are split, the launch that adds the chunks does it.

Where parts have ranks and scales of their own (EQUAL is false), a tile of dBt looks up its part's; rows beyond its rank get the
gradient zero. Where slots have their own, too, the gradient is that of slot_adapters.py.

Not fused: dU, which the backward of the layer's input needs anyway (linear_backward writes it).
"""

from __future__ import annotations

from dynadapt.ops.slot_adapters import SlotAdapters

from . import slot_adapters
from .lora_gradient_plan import MAX_PARTS, SMS, by_threes, checked_plan, chunk_buffer, family
from .lora_gradient_together import fit, launch_together, linears_fit
from .lora_gradient_update import lora_gradient_update
from .lora_gradient_walk import launch_gradient, launch_sums

__all__ = ["linears_fit", "lora_gradient", "lora_gradient_update", "lora_gradients", "reason"]


def lora_gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, accumulate) -> None:
    """dA = dU^T x [slots, P R, K]; dBt_p = scale u_p^T dy_p [slots, R, O]; only ``slots`` are touched. See
    ``dynadapt.ops.lora_gradient`` for a ``scale`` of pairs.

    Raises:
        ValueError: a shape or stride that does not fit.
    """
    if isinstance(scale, SlotAdapters):
        return slot_adapters.gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, accumulate)
    if len(part_sizes) > MAX_PARTS:
        for rows, columns, sizes, own in by_threes(scale, part_sizes, dBt.shape[1]):
            given = dy[:, columns], x, u[:, rows], dU[:, rows]
            lora_gradient(*given, sizes, own, slots, dA[:, rows], dBt[:, :, columns], accumulate)
        return None
    p = checked_plan("lora_gradient", dy, x, u, dU, part_sizes, scale, slots, dA, dBt)
    given = family(p, dy, x, u, dU, scale, slots)
    partial = chunk_buffer(p, dy.device) if p.split else None
    launch_gradient(p, given, dA, dBt, partial, accumulate)
    if partial is not None:
        launch_sums(p, given, partial, dA, dBt, accumulate)
    return None


def lora_gradients(calls) -> None:
    """``lora_gradient`` of each of ``calls``, tuples of its arguments, of which none reads what another writes: in one launch where they
    ``fit``, with the same bits."""
    if fit(calls):
        launch_together(calls)
    else:
        for call in calls:
            lora_gradient(*call)


def reason(op: str) -> str:
    few = "" if op == "lora_gradient_update" else "; one for all linears of a layer where their programs are few"
    return f"Triton, all streams and parts in one launch; two where tokens are split to fill {SMS} multiprocessors{few}"
