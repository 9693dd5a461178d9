"""Modules for torch models: a frozen linear layer with a trainable low-rank adapter, a loss without the logits, and `add_lora`,
which puts both into a live transformers model."""

from .adapters import Adapters, add_lora
from .cross_entropy import REDUCTIONS, LinearCrossEntropy
from .lora_linear import LoRALinear

__all__ = ["Adapters", "LinearCrossEntropy", "LoRALinear", "REDUCTIONS", "add_lora"]
