"""The rotary settings of a config.json, with the precedence that transformers 5 gives its several places.

A non-empty `rope_scaling`, the key of older files, wins over `rope_parameters`. In the one that is chosen `rope_theta` and
`partial_rotary_factor` win over keys of these names at the top; `rope_type` wins over its older name `type`; and
`original_max_position_embeddings` at the top wins over the chosen one's, which wins over `max_position_embeddings`.
Older transformers wrote and read the top-level keys alone. csrc/engine/config.cpp reads the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .config_keys import same_value
from .errors import ModelError
from .reading import BAND_RANGE, FACTOR_RANGE, THETA_RANGE, check_number, check_size

PLACES = ("rope_scaling", "rope_parameters")
READ = frozenset(
    "factor high_freq_factor low_freq_factor original_max_position_embeddings partial_rotary_factor rope_theta rope_type type".split()
)
IGNORED = frozenset("attention_factor beta_fast beta_slow finetuned mscale mscale_all_dim truncate".split())  # yarn's alone


def read_rope(raw: Mapping, max_positions: int) -> tuple[float, dict | None]:
    """(theta, scaling) of a config.json, scaling in ModelConfig's form; ModelError naming what is not supported."""
    place, rope = _chosen(raw)
    return _read_set(place, rope, raw, max_positions, "rope_theta", 10000.0)


def read_rope_by_kind(raw: Mapping, max_positions: int, thetas: tuple[float, float]) -> tuple[float, dict | None, float]:
    """(theta, scaling, theta of the layers with a window) of a config.json whose layers with a window have rotations of their own:
    `rope_parameters` by kind of layer, or older files' `rope_theta`, `rope_scaling` (of layers without a window) and
    `rope_local_base_freq`. `thetas`: what transformers takes where there is none, likewise."""
    for place in PLACES:
        if raw.get(place) is not None and not isinstance(raw[place], Mapping):
            raise ModelError(f"{place} = {raw[place]!r} must be an object or null")
    kinds, older = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    names = ("full_attention", "sliding_attention")
    for name, value in kinds.items():
        if name not in names or not isinstance(value, Mapping | None):
            raise ModelError(f"rope_parameters.{name} = {repr(value)[:80]} is not supported; accepted: {', '.join(names)}, an object each")
    rope = {**(kinds.get("full_attention") or {}), **older}
    place = "rope_scaling" if older else "rope_parameters.full_attention"
    theta, scaling = _read_set(place, rope, raw, max_positions, "rope_theta", thetas[0])
    place, rope = "rope_parameters.sliding_attention", kinds.get("sliding_attention") or {}
    local, scaled = _read_set(place, rope, raw, max_positions, "rope_local_base_freq", thetas[1])
    if scaled is not None:
        raise ModelError(f"{place} of type {scaled['rope_type']} is not supported; accepted: default")
    return theta, scaling, local


def read_partial_rope(
    raw: Mapping, max_positions: int, head_dim: int, top: tuple[str, str] = ("rope_theta", "partial_rotary_factor"), absent: float = 1.0
) -> tuple[float, dict | None, int | None]:
    """(theta, scaling, ModelConfig's `rotary_dim`) of a config.json whose heads may be rotated in part. `top`: the keys of the file that
    count where the chosen set has no `rope_theta` and no `partial_rotary_factor`; `absent`: the part where neither says one."""
    place, rope = _chosen(raw)
    key, part = "partial_rotary_factor", raw.get(top[1], absent)
    name, part = (f"{place}.{key}", rope[key]) if key in rope else (top[1], part)
    rotated = int(head_dim * check_number(name, part, 0.0, 1.0))
    if rotated < 2 or rotated % 2:
        raise ModelError(
            f"{name} = {part!r} rotates {rotated} of the {head_dim} dimensions of a head (head_dim, or hidden_size / num_attention_heads); "
            "accepted: an even number of at least 2"
        )
    without = [{name: value for name, value in values.items() if name != key} for values in (rope, raw)]
    theta, scaling = _read_set(place, *without, max_positions, top[0], 10000.0)
    return theta, scaling, None if rotated == head_dim else rotated


def partial_factor(rotated: int, head_dim: int) -> float:
    """The factor of which transformers makes `rotated` dimensions of `head_dim` again."""
    factor = rotated / head_dim
    return factor if int(head_dim * factor) == rotated else math.nextafter(factor, 1.0)


def _read_set(place, rope, raw, max_positions, top, absent) -> tuple[float, dict | None]:
    """(theta, scaling) of one set; without a theta of its own it is the key `top` of the file, or `absent`."""
    if raw.get("partial_rotary_factor") is not None:
        _refuse_partial("partial_rotary_factor", raw)
    _refuse_partial(f"{place}.partial_rotary_factor", rope)
    theta = (f"{place}.rope_theta", rope["rope_theta"]) if "rope_theta" in rope else (top, raw.get(top, absent))
    check_number(*theta, *THETA_RANGE)
    scaling = _scaling(place, rope, raw, max_positions)
    for key, value in rope.items():
        if key not in READ and key not in IGNORED and value is not None:
            raise ModelError(f"{place}.{key} = {repr(value)[:80]} is not read; accepted: {', '.join(sorted(READ | IGNORED))}")
    return float(theta[1]), scaling


def _chosen(raw):
    for place in PLACES:
        if raw.get(place) is not None and not isinstance(raw[place], Mapping):
            raise ModelError(f"{place} = {raw[place]!r} must be an object or null")
    place = next((place for place in PLACES if raw.get(place)), PLACES[1])
    rope = raw.get(place) or {}
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ModelError(f"{place} by layer type are not supported; accepted: one set for all layers")
    return place, rope


def _refuse_partial(name, values):
    value = values.get("partial_rotary_factor", 1.0)
    if not same_value(value, 1.0):
        raise ModelError(f"{name} = {value!r} is not supported; accepted: 1.0 or absent")


def _scaling(place, rope, raw, max_positions):
    kind = rope["rope_type"] if "rope_type" in rope else rope.get("type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": check_number(f"{place}.factor", rope.get("factor"), *FACTOR_RANGE)}
    if kind != "llama3":
        raise ModelError(f"{place} type {kind!r} is not supported; accepted: default, linear, llama3")
    top = "original_max_position_embeddings"
    original = (top, raw[top]) if top in raw else (f"{place}.{top}", rope.get(top, max_positions))
    scaling = {
        "rope_type": "llama3",
        "factor": check_number(f"{place}.factor", rope.get("factor"), *FACTOR_RANGE),
        "low_freq_factor": check_number(f"{place}.low_freq_factor", rope.get("low_freq_factor"), *BAND_RANGE),
        "high_freq_factor": check_number(f"{place}.high_freq_factor", rope.get("high_freq_factor"), *BAND_RANGE),
        top: check_size(*original),
    }
    if scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ModelError(
            f"{place}.high_freq_factor = {scaling['high_freq_factor']} must be above low_freq_factor = {scaling['low_freq_factor']}"
        )
    return scaling
