"""What a slow level (engine/slow_level.py) adds to a step: its weights and buffers, and an update every so many steps.

The texts of the streams are taken to go on from step to step; documents that end between two updates make shorter windows, which cost less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dynadapt.adapt.methods import LoRA
from dynadapt.adapt.slow import Slow
from dynadapt.adapt.targets import adapted_parts, targeted
from dynadapt.engine.slow_level import SLOW_WINDOW
from dynadapt.engine.weights import group_sizes
from dynadapt.model import ModelConfig

from .work import OpWork, Work, step_work


@dataclass(frozen=True)
class SlowLevelWork:
    """One update of the slow level, behind every ``steps``-th step. ``work``'s memory is what the level holds beside the streams, ``frozen`` the
    bytes of the frozen weights that both read: weights that learn whole are the level's alone."""

    steps: int
    work: Work
    frozen: int

    def with_step(self, step: Work) -> Work:
        """A step of the streams, with what both hold together."""
        return replace(step, memory={**step.memory, "frozen weights": self.frozen, **self.work.memory})


def slow_work(
    config: ModelConfig, slow: Slow, streams: int, segment: int, dtype: torch.dtype, recompute: bool, memory_only: bool = False
) -> SlowLevelWork:
    """Of ``streams`` that score ``segment`` tokens a step each. Raises ValueError as ``step_work``."""
    steps = -(-slow.every // (streams * segment))
    run = steps * segment  # tokens of a stream between two updates
    window = min(slow.window or min(SLOW_WINDOW, config.max_positions), run)
    of = lambda tokens: step_work(  # noqa: E731
        config, slow.adapt, slow.optimizer, segment=tokens, dtype=dtype, recompute=recompute, memory_only=memory_only
    )
    counts = {window: streams * (run // window)}
    if run % window:
        counts[run % window] = streams
    works = {size: of(size) for size in counts}
    largest = works[window]
    flops, ops = dict.fromkeys(largest.flops, 0), {}
    for size, work in works.items():
        for phase in ("forward", "backward", "recompute"):
            to = "recompute" if phase == "forward" else phase  # what was scored is run again
            flops[to] += counts[size] * work.flops.get(phase, 0)
        for name, op in work.ops.items():
            times = int(size == window) if name == "update" else counts[size]
            _add(ops.setdefault(name, OpWork()), op, times)
    flops["update"] = largest.flops["update"] + _merge_flops(config, slow)
    held = {f"slow level's {name}": size for name, size in largest.memory.items() if name != "frozen weights"}
    if merged := _merged_bytes(config, slow, dtype):
        held["slow level's weights for the streams"] = merged
    work = replace(largest, streams=streams, segment=run, flops=flops, ops=ops, memory=held)
    return SlowLevelWork(steps, work, largest.memory.get("frozen weights", 0))


def _add(total: OpWork, op: OpWork, times: int) -> None:
    for name, value in vars(op).items():
        setattr(total, name, getattr(total, name) + times * value)


def _adapted(config: ModelConfig, slow: Slow):
    """(K, part sizes, ranks) of the groups whose product is added to the weights that streams read."""
    if isinstance(slow.adapt, LoRA):
        sizes, parts = group_sizes(config), adapted_parts(slow.adapt, config)
        yield from ((*sizes[key], [rank for rank, _ in parts[key]]) for key in targeted(slow.adapt, config))


def _merged_bytes(config: ModelConfig, slow: Slow, dtype: torch.dtype) -> int:
    return sum(k * sum(sizes) for k, sizes, _ in _adapted(config, slow)) * dtype.itemsize


def _merge_flops(config: ModelConfig, slow: Slow) -> int:
    return sum(2 * rank * size * k for k, sizes, ranks in _adapted(config, slow) for rank, size in zip(ranks, sizes))
