"""What a run is given where nothing was said: memory, as far as the model has positions for it, and the arithmetic that this machine
does fastest. docs/defaults.md has the measurements.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from dynadapt.common.options import settings_of
from dynadapt.runs.kinds import learns

from .config import EvalConfig, check_rank

MEMORY = 512


def settled(config: EvalConfig, out: str | Path | None, resume: bool, model: Callable) -> EvalConfig:
    """`config` with nothing open: a resumed run goes on with what it has in `out`, wherever it was begun.

    model() gives the Model; it is asked only where memory is open.
    """
    if not config.open:
        return config
    if resume and out is not None and (Path(out) / "config.json").is_file():
        from dynadapt.runs.rundir import read_json

        begun = read_json(Path(out) / "config.json")
        if isinstance(begun, dict) and config.matches(begun):
            config = config.as_begun(begun)
    return settle(config, model().config if "memory" in config.open and not config.context else None)


def settle(config: EvalConfig, model_config, memory: int | None = None) -> EvalConfig:
    """`config` with nothing open, for a model of this ModelConfig. `memory`: what to take where it is open, instead of what fits.

    Raises:
        ConfigError: a rank above the model's largest width.
    """
    if model_config is not None:
        check_rank(config, model_config)
    if "dtype" in config.open:
        config = config.with_(dtype=fastest(config.device, config.backend)[0])
    if "memory" in config.open:
        chosen = 0 if config.context else memory if memory is not None else fitting_memory(config, model_config)
        config = config.with_(memory=chosen)
    return config


def settled_dtype(config, out: str | Path, resume: bool) -> str:
    """The dtype of a configuration (it has device and backend) that is no run of `dynadapt eval`: a resumed one goes on in its own."""
    if config.dtype != "auto":
        return config.dtype
    if resume and (Path(out) / "config.json").is_file():
        from dynadapt.runs.rundir import read_json

        begun = read_json(Path(out) / "config.json")
        if isinstance(begun, dict) and begun.get("dtype") in settings_of(EvalConfig)["dtype"].choices[1:]:
            return begun["dtype"]
    return fastest(config.device, config.backend)[0]


def fitting_memory(config: EvalConfig, model_config) -> int:
    """512 tokens, or what the model's positions leave beside a segment and the sinks; none where positions are learned."""
    if model_config.rope_theta is None:
        return 0
    return max(0, min(MEMORY, model_config.max_positions - config.segment - config.sinks))


def fastest(device: str = "auto", backend: str = "auto") -> tuple[str, str]:
    """(dtype, why) of what is fastest where a step would run, of those that are exact enough: "bf16" or "fp32"."""
    import torch

    from dynadapt.ops import choose_device

    if choose_device(device, backend, torch.bfloat16).type == "cuda":
        return "bf16", "what a GPU's products are made for"
    if backend == "reference":
        return "fp32", "more exact; the plain reference is for checks"
    if backend == "triton":
        return "fp32", "more exact; Triton's interpreter is for checks"
    if importlib.util.find_spec("dynadapt._C") is None:
        return "fp32", "the native kernels are not built"
    from dynadapt import _C

    return {
        "avx512_bf16": ("bf16", "about twice as fast here as fp32: AVX512-BF16"),
        "neon": ("fp32", "more exact; no 64-bit Arm processor was timed"),
        "portable": ("fp32", "more exact; the portable kernels were not timed"),
    }.get(_C.isa(), ("fp32", "faster and more exact here: no AVX512-BF16"))


def opening(asked: EvalConfig, config: EvalConfig, model_config=None) -> str:
    """A line that says what a run will do and how to choose otherwise: `asked` as the user wrote it, `config` with nothing open."""
    dtype = config.dtype
    if "dtype" in asked.open:
        chosen, why = fastest(config.device, config.backend)
        dtype += f" ({why})" if chosen == config.dtype else " (as it was begun)"
    parts = [Path(config.model).name, dtype, learns(vars(config)), remembers(asked, config, model_config), f"segments of {config.segment}"]
    return ", ".join(parts) + "; choose with --dtype, --adapt, --memory, --segment"


def remembers(asked: EvalConfig, config: EvalConfig, model_config=None) -> str:
    if config.context:
        return f"context {config.context}"
    if config.memory:
        limited = "memory" in asked.open and config.memory < MEMORY and model_config is not None
        return (
            f"memory {config.memory}"
            + (f" + {config.sinks} sinks" if config.sinks else "")
            + (f" (what {model_config.max_positions} positions leave)" if limited else "")
        )
    if "memory" not in asked.open or model_config is None:
        return "no memory"
    if model_config.rope_theta is None:
        return "no memory (learned positions; --context N runs earlier tokens again)"
    return f"no memory (a segment takes all {model_config.max_positions} positions)"
