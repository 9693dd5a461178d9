"""The ops that a configuration's calls need: resolved when the engine is made, and what ``Engine.explain`` lists."""

from __future__ import annotations

from dynadapt.adapt.methods import LoRA, RowSparse, whole_model

from .memory import SegmentMemory
from .weights import biased_groups, looks_up_in_head

OPS = (
    "embedding_forward",
    "norm_forward",
    "norm_backward",
    "linear_forward",
    "linear_backward",
    "lora_gradient",
    "weight_gradient",
    "lora_gradient_update",
    "weight_gradient_update",
    "row_scores",
    "head_norm_forward",
    "head_norm_backward",
    "attention_forward",
    "attention_backward",
    "activation_forward",
    "activation_backward",
    "cross_entropy",
    "cross_entropy_weight_gradient",
    "embedding_backward",
    "bias_gradient",
    "update",
    "memory_advance",
    "memory_fill",
    "reset",
)
BACKWARD = {"norm_backward", "linear_backward", "head_norm_backward", "attention_backward", "activation_backward"}


def needed_ops(engine, static: bool, fused: bool) -> list[str]:
    """Names of the ops that ``engine``'s step, score and statistics call.

    Args:
        static: whether the device alone moves memory and resets (drivers.Captured).
        fused: whether the gradient kernels update.
    """
    config, adapt, learns = engine.config, engine.adapt, engine.adapt is not None
    lora, whole = isinstance(adapt, LoRA), whole_model(adapt)
    own = learns and not lora
    moved_by_device = static and isinstance(engine.memory, SegmentMemory)
    conditions = {
        "embedding_forward": not looks_up_in_head(config, engine.backend),
        "head_norm_forward": config.qk_norm,
        "head_norm_backward": config.qk_norm and learns,
        "lora_gradient": lora and not fused,
        "lora_gradient_update": lora and fused,
        "weight_gradient": own and (not fused or engine.optimizer.uses_statistics),
        "weight_gradient_update": own and fused,
        "cross_entropy_weight_gradient": whole,
        "embedding_backward": whole,
        "bias_gradient": whole and bool(biased_groups(config)),
        "row_scores": isinstance(adapt, RowSparse) and adapt.select == "gradient",
        "update": learns and not fused,
        "reset": static and learns and engine.reset_policy == "auto",
        "memory_advance": moved_by_device,
        "memory_fill": moved_by_device,
    }
    return [name for name in OPS if conditions.get(name, learns or name not in BACKWARD)]
