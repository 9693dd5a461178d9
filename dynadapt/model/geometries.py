"""Sizes of public models, for plans and benchmarks that need no weights."""

from __future__ import annotations

from pathlib import Path

from .config import ModelConfig
from .json_file import read_json
from .errors import ModelError
from .hf_config import config_from_hf

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def llama(**sizes) -> ModelConfig:
    common = dict(
        family="llama",
        norm="rms",
        norm_eps=1e-5,
        activation="swiglu",
        rope_scaling=None,
        attention_bias=False,
        mlp_bias=False,
        qk_norm=False,
        bos_token_id=0,
        eos_token_id=1,
    )
    return ModelConfig(**{**common, **sizes})


# Sizes from the models' public config.json files.
GEOMETRIES = {
    "smollm2-135m": llama(vocab_size=49152, hidden_size=576, layers=30, heads=9, kv_heads=3, head_dim=64, ffn_size=1536,
                           rope_theta=100000.0, max_positions=8192, tied_head=True),
    "llama-3.2-1b": llama(vocab_size=128256, hidden_size=2048, layers=16, heads=32, kv_heads=8, head_dim=64, ffn_size=8192,
                           rope_theta=500000.0, rope_scaling=LLAMA3, max_positions=131072, tied_head=True),
    "llama-3.1-8b": llama(vocab_size=128256, hidden_size=4096, layers=32, heads=32, kv_heads=8, head_dim=128, ffn_size=14336,
                           rope_theta=500000.0, rope_scaling={**LLAMA3, "factor": 8.0}, max_positions=131072, tied_head=False),
}


def geometry(name: str) -> ModelConfig:
    """A config by its name in GEOMETRIES, or of a Hugging Face directory, whose weights are not read.

    Raises ModelError naming what there is.
    """
    if name in GEOMETRIES:
        return GEOMETRIES[name]
    if (Path(name) / "config.json").is_file():
        return config_from_hf(read_json(Path(name) / "config.json"))
    raise ModelError(f"model {name!r} is no known geometry and no Hugging Face directory; there are {', '.join(GEOMETRIES)}")
