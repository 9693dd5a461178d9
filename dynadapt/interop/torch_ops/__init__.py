"""The ops as functions of torch: differentiable, and registered with ``torch.library`` as ``torch.ops.dynadapt.*``.

``linear``, ``cross_entropy``, ``linear_mse``, ``norm``, ``add_norm``, ``head_norm``, ``activation``, ``embedding``, ``attention``,
``short_convolution``, ``delta_gates``, ``delta_rule`` and ``gated_norm`` allocate their results and take part in autograd; the in-place
ones are torch.ops.dynadapt.update, .reset, .memory_advance, .memory_fill, .lora_gradient_update and .weight_gradient_update. All of them
work inside torch.compile and torch.export, and FlopCounterMode counts them by the formulas of ``dynadapt.ops``. CPU tensors are
served by the native kernels, GPU tensors by the Triton ones, float64 by the reference. See docs/torch.md.
"""

from importlib import import_module

from dynadapt.ops.table import OPS

from .activation import activation
from .attention import attention
from .cross_entropy import cross_entropy
from .delta_gates import delta_gates
from .delta_rule import delta_rule
from .embedding import embedding
from .gated_norm import gated_norm
from .head_norm import head_norm
from .linear import linear
from .linear_mse import linear_mse
from .norm import add_norm, norm
from .packing import freeze
from .registry import SCHEMAS
from .short_convolution import short_convolution

__all__ = [
    "SCHEMAS",
    "activation",
    "add_norm",
    "attention",
    "cross_entropy",
    "delta_gates",
    "delta_rule",
    "embedding",
    "freeze",
    "gated_norm",
    "head_norm",
    "linear",
    "linear_mse",
    "norm",
    "short_convolution",
]

for _family in dict.fromkeys(row.family for row in OPS.values()):
    import_module(f".{_family}", __name__)  # registers the ops that no function above stands for
