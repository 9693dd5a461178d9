"""Streams whose scores changed for the worse go back to the prior, decided on the device.

flags[s] != 0:  master[slot] = working[slot] = prior;  grad, first, second, step [slot] = 0        slot = slots[s]
"""

from __future__ import annotations


def reset(flags, slots, prior, master, working, grad, first, second, step) -> None:
    """flags, slots int32 [S]; prior [P]; master [slots, P]; working, grad, first and second too, or None; step int32 [slots]."""
    for flag, slot in zip(flags.tolist(), slots.tolist()):
        if not flag:
            continue
        for buffer in (master, working):
            if buffer is not None:
                buffer[slot] = prior
        for buffer in (grad, first, second, step):
            if buffer is not None:
                buffer[slot] = 0
