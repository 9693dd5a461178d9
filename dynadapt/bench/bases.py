"""How the rows of a benchmark keep frozen weights."""

from __future__ import annotations

import inspect

# How far from float64 (root mean square over tokens in nats; relative 2-norm of all gradients) a row may be whose arithmetic is coarser
# than its dtype: integers in place of weights and activations. llama.cpp on a Q4_1 file is 0.10 nats off; other tokens, other weights
# or a shifted target are nats off.
COARSE = {"nll": 0.25, "gradient": 0.25}
EXACT = ("same", "quants")  # their products are the dtype's own; a file's integers are expanded to the values that "same" has


def bounds_of(base: str, *measures: str) -> dict[str, float] | None:
    """Of a row with this base, by measure; None: those of its dtype."""
    return None if base in EXACT else {measure: COARSE[measure] for measure in measures}


def known_bases(value: str, model: str) -> tuple[str, ...]:
    """The names of a list with commas, of what the engine can keep the frozen weights of `model` as on a CPU.

    Raises:
        ValueError: as the engine says it.
    """
    from dynadapt.engine import Engine
    from dynadapt.engine.settings import EngineSettings
    from dynadapt.engine.weights import check_quantised
    from dynadapt.model import load

    plain = {name: field.default for name, field in inspect.signature(Engine).parameters.items() if name != "model"}
    names = tuple(dict.fromkeys(name for name in value.split(",") if name)) or ("same",)
    for base in names:
        EngineSettings(**{**plain, "backend": "cpu", "device": "cpu", "base": base})
    if "quants" in names:
        check_quantised(load(model))
    return names
