"""Triton kernels, one op a file; installed as ``dynadapt.kernels``.

Every public function has the name, the signature and the meaning of its reference in ``dynadapt.ops`` and launches on
the current CUDA stream. None of them allocates, waits for the device or reads a tensor on the host, so all of them can
be captured in a CUDA graph. Where scratch memory is needed it comes from ``common.scratch``.

Without a GPU the kernels run under Triton's interpreter: set TRITON_INTERPRET=1 before this package is imported.
"""

from __future__ import annotations

# op -> the file that holds it
OPS = {
    "linear_forward": "linear",
    "linear_backward": "linear",
    "lora_gradient": "lora_gradient",
    "lora_gradient_update": "lora_gradient",
    "weight_gradient": "weight_gradient",
    "weight_gradient_update": "weight_gradient",
    "row_scores": "weight_gradient",
    "bias_gradient": "bias_gradient",
    "cross_entropy": "cross_entropy",
    "cross_entropy_weight_gradient": "cross_entropy",
    "norm_forward": "norm",
    "norm_backward": "norm",
    "head_norm_forward": "head_norm",
    "head_norm_backward": "head_norm",
    "attention_forward": "attention",
    "attention_backward": "attention",
    "activation_forward": "activation",
    "activation_backward": "activation",
    "embedding_forward": "embedding",
    "embedding_backward": "embedding",
    "linear_mse": "linear_mse",
    "update": "update",
    "memory_advance": "memory",
    "memory_fill": "memory",
    "reset": "reset",
}
