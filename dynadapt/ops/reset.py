"""Streams whose scores changed for the worse go back to the prior, decided on the device.

flags[s] != 0:  master[slot] = working[slot] = prior (of that slot, where each has its own), but where ``kept`` is not 0 and master is finite
                grad, first, second, step [slot] = 0                                            slot = slots[s]
"""

from __future__ import annotations

import torch


def reset(flags, slots, prior, master, working, grad, first, second, step, kept=None) -> None:
    """flags, slots int32 [S]; prior [P] or [slots, P]; master [slots, P]; working, grad, first and second too, or None; step int32
    [slots]; kept int8 [P], or None for nothing."""
    for flag, slot in zip(flags.tolist(), slots.tolist()):
        if not flag:
            continue
        back = prior if prior.dim() == 1 else prior[slot]
        stays = None if kept is None else (kept != 0) & master[slot].isfinite()
        for buffer in (master, working):
            if buffer is not None:
                buffer[slot] = back if stays is None else torch.where(stays, buffer[slot], back.to(buffer.dtype))
        for buffer in (grad, first, second, step):
            if buffer is not None:
                buffer[slot] = 0
