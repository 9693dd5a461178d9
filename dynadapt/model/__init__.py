"""What a decoder is: its config, its weights under canonical names, its tokenizer, and where they come from."""
from dynadapt.model import families  # noqa: F401  (makes them known)
from dynadapt.model.base import Model, from_state, random_model
from dynadapt.model.config import ModelConfig, tiny_config
from dynadapt.model.describe import describe, parameter_counts
from dynadapt.model.errors import ModelError
from dynadapt.model.fetch import fetch
from dynadapt.model.layout import hf_name, layout, linear_shapes, peft_name, tensor_shapes
from dynadapt.model.load import load
from dynadapt.model.rope import rope_tables
from dynadapt.model.tokenizer import Tokenizer

__all__ = ["Model", "ModelConfig", "ModelError", "Tokenizer", "describe", "fetch", "from_state", "hf_name", "layout", "linear_shapes", "load",
           "parameter_counts", "peft_name", "random_model", "rope_tables", "tensor_shapes", "tiny_config"]
