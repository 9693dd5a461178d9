"""The rotary settings of a config.json, with the precedence that transformers 5 gives its several places.

A non-empty `rope_scaling`, the key of older files, wins over `rope_parameters`. In the one that is chosen `rope_theta` and
`partial_rotary_factor` win over keys of these names at the top; `rope_type` wins over its older name `type`; and
`original_max_position_embeddings` at the top wins over the chosen one's, which wins over `max_position_embeddings`. Where layers with
a window have settings of their own, `rope_scaling` is laid over those of the others, and the top of the file has no original length.
Older transformers wrote and read the top-level keys alone. csrc/engine/rope_settings.cpp reads the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from .config_keys import same_value
from .errors import ModelError
from .reading import BAND_RANGE, FACTOR_RANGE, SCALE_RANGE, THETA_RANGE, check_number, check_size

PLACES = ("rope_scaling", "rope_parameters")
ORIGINAL = "original_max_position_embeddings"
READ = frozenset(
    """attention_factor beta_fast beta_slow factor high_freq_factor long_factor low_freq_factor mscale mscale_all_dim
       original_max_position_embeddings partial_rotary_factor rope_theta rope_type short_factor truncate type""".split()
)
IGNORED = frozenset(["finetuned"])
_LONGER = f"max_position_embeddings / {ORIGINAL}"


def read_rope(raw: Mapping, max_positions: int, theta: float = 10000.0) -> tuple[float, dict | None]:
    """(theta, scaling) of a config.json, scaling in ModelConfig's form; ModelError naming what is not supported. `theta`: what
    transformers takes where there is none."""
    place, rope = _chosen(raw)
    return _read_set(_Set(place, rope, raw, max_positions), "rope_theta", theta)


def read_rope_by_kind(raw: Mapping, max_positions: int, thetas: tuple[float, float], local: str | None) -> tuple[float, dict | None, float]:
    """(theta, scaling, theta of the layers with a window) of a config.json whose layers with a window have rotations of their own:
    `rope_parameters` by kind of layer, or older files' `rope_theta`, `rope_scaling` (of layers without a window) and, with a window,
    the key `local`, where the family has one. `thetas`: what transformers takes where there is none, likewise."""
    for place in PLACES:
        if raw.get(place) is not None and not isinstance(raw[place], Mapping):
            raise ModelError(f"{place} = {raw[place]!r} must be an object or null")
    kinds, older = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    names = ("full_attention", "sliding_attention")
    for name, value in kinds.items():
        if name not in names or not isinstance(value, Mapping | None):
            raise ModelError(f"rope_parameters.{name} = {repr(value)[:80]} is not supported; accepted: {', '.join(names)}, an object each")
    if raw.get("rope_scaling") is not None and raw.get("rope_parameters") is not None and kinds.get("full_attention") is None:
        raise ModelError("rope_scaling beside rope_parameters without full_attention is not supported; accepted: one of the two")
    usual = {"rope_type": "default"} if raw.get("rope_parameters") is None else {}
    rope = {**(kinds.get("full_attention") or usual), **older}
    place = "rope_scaling" if older else "rope_parameters.full_attention"
    theta, scaling = _read_set(_Set(place, rope, raw, max_positions, by_kind=True), "rope_theta", thetas[0])
    place, rope = "rope_parameters.sliding_attention", kinds.get("sliding_attention") or {}
    windowed, scaled = _read_set(_Set(place, rope, raw, max_positions, by_kind=True), local, thetas[1])
    if scaled is not None:
        raise ModelError(f"{place} of type {scaled['rope_type']} is not supported; accepted: default")
    return theta, scaling, windowed


def yarn(factor: float, original: int, attention_factor: float | None = None, mscale: float = 1.0, all_dim: float = 0.0, **bands) -> dict:
    """Yarn in ModelConfig's form. Without an `attention_factor` it is the paper's 0.1 ln factor + 1, of which `mscale` and `all_dim`
    make a ratio (DeepSeek)."""
    grown = lambda by: 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0  # noqa: E731
    if attention_factor is None:
        attention_factor = grown(mscale) / grown(all_dim)
    scaling = {"rope_type": "yarn", "factor": factor, "attention_factor": attention_factor, "beta_fast": 32.0, "beta_slow": 1.0}
    return scaling | {ORIGINAL: original, "truncate": True} | bands


@dataclass(frozen=True)
class _Set:
    """One set of rotary settings: `values`, found at `place` of the config.json `raw`; `by_kind`: of layers of one kind."""

    place: str
    values: Mapping
    raw: Mapping
    max_positions: int
    by_kind: bool = False

    def number(self, key: str, bounds: tuple[float, float]) -> float:
        return check_number(f"{self.place}.{key}", self.values.get(key), *bounds)

    def optional(self, key: str, bounds: tuple[float, float]) -> float | None:
        return None if self.values.get(key) is None else self.number(key, bounds)

    def factors(self, key: str) -> tuple[float, ...]:
        found = self.values.get(key)
        if not isinstance(found, (list, tuple)):
            raise ModelError(f"{self.place}.{key} = {repr(found)[:80]} must be a list of numbers")
        return tuple(check_number(f"{self.place}.{key}", number, *BAND_RANGE) for number in found)

    @property
    def original(self) -> int:
        """The original context. At the top of the file it is of all layers, not of those of one kind."""
        if ORIGINAL in self.raw and not self.by_kind:
            return check_size(ORIGINAL, self.raw[ORIGINAL])
        return check_size(f"{self.place}.{ORIGINAL}", self.values.get(ORIGINAL, self.max_positions))

    @property
    def factor(self) -> float:
        return self.number("factor", FACTOR_RANGE)

    @property
    def grown(self) -> float:
        """`factor`; where it is null, how much longer the context is than the original one."""
        if self.values.get("factor") is not None:
            return self.factor
        return check_number(_LONGER, self.max_positions / self.original, *FACTOR_RANGE)


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
            f"{name} = {part!r} ({place}) rotates {rotated} of the {head_dim} dimensions of a head (head_dim, or hidden_size / num_attention_heads); "
            "accepted: an even number of at least 2"
        )
    without = [{name: value for name, value in values.items() if name != key} for values in (rope, raw)]
    theta, scaling = _read_set(_Set(place, *without, max_positions), top[0], 10000.0)
    return theta, scaling, None if rotated == head_dim else rotated


def partial_factor(rotated: int, head_dim: int) -> float:
    """The factor of which transformers makes `rotated` dimensions of `head_dim` again."""
    factor = rotated / head_dim
    return factor if int(head_dim * factor) == rotated else math.nextafter(factor, 1.0)


def _read_set(given: _Set, top: str | None, absent: float) -> tuple[float, dict | None]:
    """(theta, scaling) of one set; without a theta of its own it is the key `top` of the file, or `absent`."""
    if given.raw.get("partial_rotary_factor") is not None:
        _refuse_partial("partial_rotary_factor", given.raw)
    _refuse_partial(f"{given.place}.partial_rotary_factor", given.values)
    theta = (top or f"{given.place}.rope_theta", absent if top is None else given.raw.get(top, absent))
    if "rope_theta" in given.values:
        theta = (f"{given.place}.rope_theta", given.values["rope_theta"])
    check_number(*theta, *THETA_RANGE)
    scaling = _scaling(given)
    for key, value in given.values.items():
        if key not in READ and key not in IGNORED and value is not None:
            raise ModelError(f"{given.place}.{key} = {repr(value)[:80]} is not read; accepted: {', '.join(sorted(READ | IGNORED))}")
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


def _scaling(given: _Set) -> dict | None:
    kind = given.values["rope_type"] if "rope_type" in given.values else given.values.get("type", "default")
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise ModelError(f"{given.place} type {kind!r} is not supported; accepted: default, {', '.join(_SCALINGS)}")
    return _SCALINGS[kind](given)


def _linear(given):
    return {"rope_type": "linear", "factor": given.factor}


def _dynamic(given):
    return {"rope_type": "dynamic", "factor": given.factor}


def _yarn(given):
    if "factor" not in given.values:
        raise ModelError(f"{given.place}.factor is missing; accepted: a number, or null for {_LONGER}")
    bands = {}
    for key in ("beta_fast", "beta_slow"):
        if (turns := given.optional(key, BAND_RANGE)) is not None:
            bands[key] = turns
    truncate = given.values.get("truncate", True)
    if not isinstance(truncate, bool) or given.by_kind and not truncate:  # by kind, transformers does not read it
        raise ModelError(f"{given.place}.truncate = {truncate!r} must be true{'' if given.by_kind else ' or false'}")
    mscale, all_dim = (given.optional(key, _MSCALE_RANGE) for key in ("mscale", "mscale_all_dim"))
    ratio = {"mscale": mscale, "all_dim": all_dim} if mscale and all_dim else {}
    attention = given.optional("attention_factor", SCALE_RANGE)
    return yarn(given.grown, given.original, attention, **ratio, **bands, truncate=truncate)


def _longrope(given):
    original, grown = given.original, given.grown
    attention = given.optional("attention_factor", SCALE_RANGE)
    if attention is None and grown > 1 and original == 1:
        raise ModelError(f"{given.place}.{ORIGINAL} = 1 is not supported with type longrope; accepted: at least 2")
    if attention is None:
        attention = math.sqrt(1 + math.log(grown) / math.log(original)) if grown > 1 else 1.0
    factors = {key: given.factors(key) for key in ("short_factor", "long_factor")}
    return {"rope_type": "longrope", **factors, "attention_factor": attention, ORIGINAL: original}


def _llama3(given):
    low, high = (given.number(f"{band}_freq_factor", BAND_RANGE) for band in ("low", "high"))
    if high <= low:
        raise ModelError(f"{given.place}.high_freq_factor = {high} must be above low_freq_factor = {low}")
    bands = {"factor": given.factor, "low_freq_factor": low, "high_freq_factor": high}
    return {"rope_type": "llama3", **bands, ORIGINAL: given.original}


def scaling_to_hf(scaling: Mapping | None) -> dict | None:
    """`ModelConfig.rope_scaling` as a config.json has it. ModelError for one that only GGUF files have."""
    if scaling is not None and scaling["rope_type"] == "factors":
        raise ModelError("rope_scaling of type factors has no Hugging Face form; accepted: none, linear, dynamic, yarn, longrope, llama3")
    return scaling and {key: list(value) if isinstance(value, tuple) else value for key, value in scaling.items()}


_MSCALE_RANGE = (0.0, SCALE_RANGE[1])
_SCALINGS = {"linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope, "llama3": _llama3}
