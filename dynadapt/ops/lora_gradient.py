"""Gradient of the low-rank adapters of ``linear``, and the same with the optimizer's step in one.

    dA_s = dU_s^T x_s
    dBt_{s,p} = scale u_{s,p}^T dy_{s,p}

u = x A^T and dU = scale dy Bt^T come from ``linear_forward`` and ``linear_backward``; streams, parts, slots and a ``scale`` of pairs are
as there. Rows of dBt beyond a part's rank become zero. With ``SlotAdapters`` dA and dBt are flat buffers laid out as A and Bt are.

Source: Hu et al. 2021, LoRA (arXiv 2106.09685), eq. 3, differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .linear import by_stream, each_part, low_rank_size, slot_by_slot
from .slot_adapters import SlotAdapters
from .update import apply_gradient


def lora_gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, accumulate) -> None:
    """dA = dU^T x [slots, P R, K]; dBt_p = scale u_p^T dy_p [slots, R, O]; only ``slots`` are touched."""
    if isinstance(scale, SlotAdapters):
        for rows, slot in slot_by_slot(len(dy), slots):
            if not (width := sum(scale.ranks(slot))):
                continue
            a, bt = scale.views(slot, dA, dBt, x.shape[1], dy.shape[1])
            low = (u[rows, :width], dU[rows, :width])
            lora_gradient(dy[rows], x[rows], *low, part_sizes, list(scale.pairs[slot]), slots.new_zeros(1), a, bt, accumulate)
        return
    streams, rank = len(slots), dBt.shape[1]
    dys, xs, us, dUs = (by_stream(t, streams) for t in (dy, x, u, dU))
    wide = dA.dtype
    for i, slot in enumerate(slots.tolist()):
        a = (dUs[i].t() @ xs[i]).to(wide)
        b = torch.zeros_like(dBt[slot])
        for rows, columns, own, factor in each_part(scale, part_sizes, rank):
            b[:own, columns] = factor * (us[i][:, rows].t() @ dys[i][:, columns]).to(wide)
        if accumulate:
            dA[slot] += a
            dBt[slot] += b
        else:
            dA[slot] = a
            dBt[slot] = b


def lora_gradient_update(dy, x, u, dU, part_sizes, scale, slots, moving, a, bt, rule, lr, skipped) -> None:
    """One step of every stream's adapter; inputs as in ``lora_gradient``.

    a: UpdateState of [slots, P R, K]; bt: of [slots, R, O]; moving int32 [S], 0 for a stream that does not move;
    lr float32 [slots]; skipped int32 [S], a stream with another value than 0 on entry is left untouched.
    """
    rule.check_fused("lora_gradient_update")
    for name, state in (("a", a), ("bt", bt)):
        state.check_fused("lora_gradient_update", name, rule)
    dA, dBt = torch.zeros_like(a.master), torch.zeros_like(bt.master)
    lora_gradient(dy, x, u, dU, part_sizes, scale, slots, dA, dBt, False)
    for s, slot in enumerate(slots.tolist()):
        if not moving[s] or skipped[s]:
            continue
        rate = float(lr[slot])
        finite = [apply_gradient(g[slot], state.of(slot), rule, rate) for g, state in ((dA, a), (dBt, bt))]
        skipped[s] = int(not all(finite))


def flops(rows: int, k: int, part_sizes, rank: int | Sequence[int]) -> int:
    """2 N K sum R_p for dA, 2 N sum R_p O_p for dBt. ``rank``: every part's, or each one's."""
    return 2 * rows * sum(low_rank_size(k, part_sizes, rank))
