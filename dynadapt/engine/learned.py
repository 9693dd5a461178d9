"""The tensors of a model that learn, as they are now."""

from __future__ import annotations

import torch

from dynadapt.model import layout


def learned_tensors(engine, learner) -> dict[str, torch.Tensor]:
    """{canonical name: value} of what ``learner``, one of ``engine``'s whose weights are the model's own, moves; in the engine's dtype.

    They are what products read: with bf16 the masters rounded. Values are copies or views; read them before the next step.
    """
    named = dict(learner.parameters()) if hasattr(learner, "parameters") else {}
    for (layer, group), matrices in learner.matrices.items():
        for part, matrix in zip(layout(engine.config, layer)[group], matrices):
            weight = torch.empty(matrix.shape, dtype=engine.torch_dtype, device=engine.device)
            matrix.unpack(weight)
            named[f"layers.{layer}.{part}.weight"] = weight
    return named
