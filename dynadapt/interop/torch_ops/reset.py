"""Streams whose scores changed for the worse go back, in place (ops/reset.py)."""

from __future__ import annotations

from .registry import kernel, mutating


@mutating(
    "reset(Tensor flags, Tensor slots, Tensor prior, Tensor(a!) master, Tensor(b!)? working, Tensor(c!)? grad, "
    "Tensor(d!)? first, Tensor(e!)? second, Tensor(f!) step, Tensor? kept=None) -> ()"
)
def reset(flags, slots, prior, master, working, grad, first, second, step, kept=None):
    kernel("reset", master)(flags, slots, prior, master, working, grad, first, second, step, kept)
