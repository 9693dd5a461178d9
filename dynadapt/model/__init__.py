"""What a decoder is: its config, its weights under canonical names, its tokenizer, and where they come from."""

from . import families  # noqa: F401  (makes them known)
from .base import Model, from_state, random_model
from .config import ModelConfig, tiny_config
from .describe import describe, parameter_counts
from .errors import ModelError
from .fetch import fetch
from .layout import hf_name, layout, linear_shapes, peft_name, tensor_shapes
from .load import load
from .rope import rope_tables
from .tokenizer import Tokenizer

__all__ = [
    "Model",
    "ModelConfig",
    "ModelError",
    "Tokenizer",
    "describe",
    "fetch",
    "from_state",
    "hf_name",
    "layout",
    "linear_shapes",
    "load",
    "parameter_counts",
    "peft_name",
    "random_model",
    "rope_tables",
    "tensor_shapes",
    "tiny_config",
]
