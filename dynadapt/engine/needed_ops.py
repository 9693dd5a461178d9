"""The ops that a configuration's calls need: resolved when the engine is made, and what ``Engine.explain`` lists."""

from __future__ import annotations

from dynadapt.adapt.methods import EMBED, GROUPS, HEAD, RowSparse, has_lengths, learns_beside, whole_model, words_beside
from dynadapt.adapt.targets import norms_and_biases, targeted
from dynadapt.ops.table import OPS

from .memory import SegmentMemory
from .weights import biased_groups, looks_up_by_rows


def conditions(engine, static: bool, fused: bool) -> dict[str, bool]:
    """Which of the table's CONDITIONS hold for ``engine``.

    Args:
        static: whether the device alone moves memory and resets (drivers.Captured).
        fused: whether the gradient kernels update.
    """
    config, adapt, settings = engine.config, engine.adapt, engine.settings
    adapters = settings.learns and not settings.owns_weights
    adapted = targeted(adapt, config) if adapters else []
    return {
        "learning": settings.learns,
        "adapters": adapters,
        "adapted head": (config.layers, HEAD) in adapted,
        "adapted embedding": (-1, EMBED) in adapted,
        "weights": settings.owns_weights and not learns_beside(adapt),
        "whole": whole_model(adapt),
        "learned biases": _biases_learn(adapt, config) or has_lengths(adapt),
        "scored rows": isinstance(adapt, RowSparse) and adapt.select != "fixed",
        "fused": fused,
        "joined": engine.ops.joins_activation,
        "head norms": config.qk_norm,
        "delta layers": config.delta is not None,
        "own table": not looks_up_by_rows(config, engine.backend, engine.base),
        "device memory": static and isinstance(engine.memory, SegmentMemory),
        "device resets": static and engine.settings.watches,
    }


def _biases_learn(adapt, config) -> bool:
    """Whether biases of linears do."""
    if words_beside(adapt):
        return any(name.endswith(".bias") and place in GROUPS for name, (_, place) in norms_and_biases(adapt, config).items())
    return whole_model(adapt) and bool(biased_groups(config))


def needed_ops(engine, static: bool, fused: bool) -> list[str]:
    """Names of the ops that ``engine``'s step, score and statistics call; arguments as for ``conditions``."""
    holds = conditions(engine, static, fused)
    return [row.name for row in OPS.values() if row.used != "training in context" and all(holds[c] for c in row.when)]
