"""The tensors of a model that learn, as they are now."""

from __future__ import annotations

import torch


def learned_tensors(engine, learner) -> dict[str, torch.Tensor]:
    """{canonical name: value} of what ``learner``, one of ``engine``'s whose weights are the model's own, moves; in the engine's dtype.

    They are what products read: with bf16 the masters rounded. Values are copies or views; read them before the next step.
    """
    named = dict(learner.parameters()) if hasattr(learner, "parameters") else {}
    return {**named, **learner.unpacked(engine.config)}
