"""Sizes of public models, for plans and benchmarks that need no weights."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from .config import ModelConfig
from .errors import ModelError
from .families import gemma2, gemma3, gpt2, gptneox, rotary
from .hf_config import config_from_hf
from .json_file import read_json
from .sliding import slid

LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA31 = {**LLAMA3, "factor": 8.0}


def llama(**sizes) -> ModelConfig:
    common = dict(family="llama", norm_eps=1e-5, rope_scaling=None, bos_token_id=0, eos_token_id=1)
    return ModelConfig(**rotary.CHOICES | common | sizes)


def _sizes(vocab: int, hidden: int, layers: int, heads: int, kv_heads: int, ffn: int, tied: bool, head_dim: int | None = None) -> dict:
    return dict(
        vocab_size=vocab,
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        ffn_size=ffn,
        tied_head=tied,
        head_dim=head_dim or hidden // heads,
    )


def _llama2(*sizes) -> ModelConfig:
    return llama(**_sizes(32000, *sizes, False), rope_theta=10000.0, max_positions=4096, bos_token_id=1, eos_token_id=2)


def _llama3(*sizes, scaling=None, tied=False) -> ModelConfig:
    return llama(
        **_sizes(128256, *sizes, tied),
        rope_theta=500000.0,
        rope_scaling=scaling,
        max_positions=131072 if scaling else 8192,
        bos_token_id=128000,
        eos_token_id=128001,
    )


def _mistral(vocab: int) -> ModelConfig:
    return llama(**_sizes(vocab, 4096, 32, 32, 8, 14336, False), rope_theta=1e6, max_positions=32768, bos_token_id=1, eos_token_id=2)


def _smollm2(*sizes, theta=100000.0) -> ModelConfig:
    return llama(**_sizes(49152, *sizes, True), rope_theta=theta, max_positions=8192)


def _qwen2(vocab: int, *sizes, tied: bool, positions: int = 131072, eps: float = 1e-6) -> ModelConfig:
    return llama(
        family="qwen2",
        **_sizes(vocab, *sizes, tied),
        rope_theta=1e6,
        max_positions=positions,
        norm_eps=eps,
        attention_bias=True,
        bos_token_id=151643,
        eos_token_id=151643,
    )


def _qwen3(*sizes, tied: bool) -> ModelConfig:
    return llama(
        family="qwen3",
        **_sizes(151936, *sizes, tied, head_dim=128),
        rope_theta=1e6,
        max_positions=40960,
        norm_eps=1e-6,
        qk_norm=True,
        bos_token_id=151643,
        eos_token_id=151645,
    )


def _gemma2(*sizes) -> ModelConfig:
    both = _sizes(256000, *sizes, True, head_dim=256)
    return llama(
        family="gemma2",
        **both,
        **gemma2.choices(both["hidden_size"], 256),
        rope_theta=10000.0,
        windows=slid(gemma2.WINDOW, gemma2.slides(both["layers"])),
        max_positions=8192,
        norm_eps=1e-6,
        bos_token_id=2,
        eos_token_id=1,
    )


def _gemma3(*sizes) -> ModelConfig:
    both = _sizes(262144, *sizes, True, head_dim=256)
    return llama(
        family="gemma3",
        **both,
        **gemma3.choices(both["hidden_size"], 256),
        rope_theta=gemma3.THETAS[0],
        window_rope_theta=gemma3.THETAS[1],
        windows=gemma3.windows(512, both["layers"]),
        max_positions=32768,
        norm_eps=1e-6,
        bos_token_id=2,
        eos_token_id=1,
    )


def _granite(hidden: int, ffn: int, attention: float, logits: float) -> ModelConfig:
    return llama(
        family="granite",
        **_sizes(49155, hidden, 40, 32, 8, ffn, True),
        rope_theta=10000.0,
        max_positions=4096,
        embedding_scale=12.0,
        residual_scale=0.22,
        attention_scale=attention,
        logits_scaling=logits,
        bos_token_id=0,
        eos_token_id=0,
    )


def _phi3(*sizes, positions: int, window: int) -> ModelConfig:
    both = _sizes(*sizes, False)
    windows = (window,) * both["layers"]
    return llama(family="phi3", **both, rope_theta=10000.0, max_positions=positions, windows=windows, bos_token_id=1, eos_token_id=32000)


def _pythia(vocab: int, hidden: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        family="gptneox",
        **gptneox.CHOICES,
        **_sizes(vocab, hidden, layers, heads, heads, 4 * hidden, False),
        norm_eps=1e-5,
        activation="gelu",
        attention_bias=True,
        rope_theta=10000.0,
        rope_scaling=None,
        rotary_dim=hidden // heads // 4,
        parallel_residual=True,
        max_positions=2048,
        bos_token_id=0,
        eos_token_id=0,
    )


def _gpt2(hidden: int, layers: int, heads: int) -> ModelConfig:
    return ModelConfig(
        family="gpt2",
        **gpt2.CHOICES,
        **_sizes(50257, hidden, layers, heads, heads, 4 * hidden, True),
        norm_eps=1e-5,
        activation="gelu_tanh",
        max_positions=1024,
        bos_token_id=50256,
        eos_token_id=50256,
    )


# Sizes from the models' public config.json files: hidden size, layers, heads, key-value heads, feed-forward size.
GEOMETRIES = {
    "smollm2-135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, theta=130000.0),
    "llama-2-7b": _llama2(4096, 32, 32, 32, 11008),
    "llama-2-13b": _llama2(5120, 40, 40, 40, 13824),
    "llama-2-70b": _llama2(8192, 80, 64, 8, 28672),
    "llama-3-8b": _llama3(4096, 32, 32, 8, 14336),
    "llama-3-70b": _llama3(8192, 80, 64, 8, 28672),
    "llama-3.1-8b": _llama3(4096, 32, 32, 8, 14336, scaling=LLAMA31),
    "llama-3.1-70b": _llama3(8192, 80, 64, 8, 28672, scaling=LLAMA31),
    "llama-3.1-405b": _llama3(16384, 126, 128, 8, 53248, scaling=LLAMA31),
    "llama-3.2-1b": _llama3(2048, 16, 32, 8, 8192, scaling=LLAMA3, tied=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 8, 8192, scaling=LLAMA3, tied=True),
    "llama-3.3-70b": _llama3(8192, 80, 64, 8, 28672, scaling=LLAMA31),
    "mistral-7b-v0.2": _mistral(32000),
    "mistral-7b-v0.3": _mistral(32768),
    "qwen2-0.5b": _qwen2(151936, 896, 24, 14, 2, 4864, tied=True),
    "qwen2-1.5b": _qwen2(151936, 1536, 28, 12, 2, 8960, tied=True),
    "qwen2-7b": _qwen2(152064, 3584, 28, 28, 4, 18944, tied=False),
    "qwen2-72b": _qwen2(152064, 8192, 80, 64, 8, 29568, tied=False, eps=1e-5),
    "qwen2.5-0.5b": _qwen2(151936, 896, 24, 14, 2, 4864, tied=True, positions=32768),
    "qwen2.5-1.5b": _qwen2(151936, 1536, 28, 12, 2, 8960, tied=True),
    "qwen2.5-3b": _qwen2(151936, 2048, 36, 16, 2, 11008, tied=True, positions=32768),
    "qwen2.5-7b": _qwen2(152064, 3584, 28, 28, 4, 18944, tied=False),
    "qwen2.5-14b": _qwen2(152064, 5120, 48, 40, 8, 13824, tied=False, eps=1e-5),
    "qwen2.5-32b": _qwen2(152064, 5120, 64, 40, 8, 27648, tied=False, eps=1e-5),
    "qwen2.5-72b": _qwen2(152064, 8192, 80, 64, 8, 29568, tied=False, eps=1e-5),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 12288, tied=False),
    "qwen3-14b": _qwen3(5120, 40, 40, 8, 17408, tied=False),
    "qwen3-32b": _qwen3(5120, 64, 64, 8, 25600, tied=False),
    "gemma-2-2b": _gemma2(2304, 26, 8, 4, 9216),
    "gemma-2-9b": _gemma2(3584, 42, 16, 8, 14336),
    "gemma-3-270m": _gemma3(640, 18, 4, 1, 2048),
    "gemma-3-1b": _gemma3(1152, 26, 4, 1, 6912),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "granite-3.0-2b": _granite(2048, 8192, 0.015625, 8.0),
    "granite-3.0-8b": _granite(4096, 12800, 0.0078125, 16.0),
    "phi-3-mini-4k": _phi3(32064, 3072, 32, 32, 32, 8192, positions=4096, window=2047),
    "pythia-70m": _pythia(50304, 512, 6, 8),
    "pythia-160m": _pythia(50304, 768, 12, 12),
    "pythia-410m": _pythia(50304, 1024, 24, 16),
    "pythia-1b": _pythia(50304, 2048, 16, 8),
    "pythia-1.4b": _pythia(50304, 2048, 24, 16),
    "pythia-2.8b": _pythia(50304, 2560, 32, 32),
    "pythia-6.9b": _pythia(50432, 4096, 32, 32),
    "pythia-12b": _pythia(50688, 5120, 36, 40),
}
ALSO = {"gpt2-small": "gpt2", "mistral-7b": "mistral-7b-v0.3"}
_SAYS_NOTHING = {"meta", "instruct", "chat", "hf", "base", "it", "gguf", "deduped"}


def _key(name: str) -> str:
    """A name without its owner, case, separators, and words that do not change the sizes."""
    words = re.findall(r"[a-z]+|[0-9]+(?:\.[0-9]+)*[a-z]*", name.lower().replace("\\", "/").rstrip("/").rpartition("/")[2])
    return "".join(word for word in words if word not in _SAYS_NOTHING)


_KEYS = {_key(name): name for name in (*GEOMETRIES, *ALSO)}


def geometry(name: str) -> ModelConfig:
    """A config by its name in GEOMETRIES, also as model hubs write it ("meta-llama/Llama-3.1-8B-Instruct"), or of a Hugging Face
    directory, whose weights are not read.

    Raises ModelError naming what there is, and the nearest.
    """
    if name in GEOMETRIES:
        return GEOMETRIES[name]
    if (Path(name) / "config.json").is_file():
        return config_from_hf(read_json(Path(name) / "config.json"))
    if known := _KEYS.get(_key(name)):
        return GEOMETRIES[ALSO.get(known, known)]
    near = difflib.get_close_matches(_key(name), _KEYS, 1, 0.7)
    guess = f"did you mean {_KEYS[near[0]]}? " if near else ""
    raise ModelError(f"model {name!r} is no known geometry and no Hugging Face directory; {guess}there are {', '.join(GEOMETRIES)}")
