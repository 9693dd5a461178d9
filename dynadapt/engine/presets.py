"""Recipes for an engine, as the arguments that it takes beside its model."""

from __future__ import annotations

from typing import Any

from dynadapt.adapt import AdamW, LoRA, Slow
from dynadapt.adapt.methods import HEAD
from dynadapt.model.layout import linear_shapes

from .memory import Overlap, SegmentMemory

WINDOW = 2048  # tokens that a score may see


def score_first(model, **explicit) -> dict[str, Any]:
    """``Engine``'s arguments by the recipe of the Parameter Golf contest's adapting entries (openai/parameter-golf, records/2026-04-27).

    A LoRA of each document on every linear and the head, rank 80, alpha 144, of which A stays warm when B goes back to zero at a document;
    AdamW at 1e-4 with beta1 = 0, beta2 = 0.99 and weight decay 0.5; a step per 48 tokens, 64 documents at once; ``Slow()``. The rest of a
    window of 2,048 tokens, or of the model's positions where they are fewer, is segment memory, in place of the contest's running it again; with learned positions
    it is ``Overlap``. The engine's own clip of the gradient norm, 1, stays: the recipe's is not known here.

    Args:
        model: what ``dynadapt.load`` returns.
        explicit: arguments of ``Engine`` that go before the recipe's.

    Returns:
        For ``Engine(model, **arguments)``, which refuses by name what the model or machine can't serve.
    """
    config = model.config
    parts = dict.fromkeys(part for layer in range(config.layers) for part in linear_shapes(config, layer))
    segment = explicit.get("segment", 48)
    rest = min(WINDOW, config.max_positions) - segment
    memory = None if rest < 1 else Overlap(rest) if config.rope_theta is None else SegmentMemory(rest, sinks=0)
    return {
        "adapt": LoRA(rank=80, alpha=144, targets=(*parts, HEAD), keep_a=True),
        "optimizer": AdamW(lr=1e-4, betas=(0.0, 0.99), weight_decay=0.5),
        "memory": memory,
        "streams": 64,
        "segment": segment,
        "reset": "document",
        "slow": Slow(),
        **explicit,
    }
