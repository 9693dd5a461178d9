"""What an adapter learns, in a command line's words: which linears, and the rank and alpha of some of them.

A configuration keeps these words; ``LoRA`` gets what they mean.
"""

from __future__ import annotations

import re

from dynadapt.common.errors import ConfigError

WORDS = ("all", "attn", "mlp", "model", "norms", "biases", "norms,biases")
PATTERNS: dict[str, type[int] | type[float]] = {"rank_pattern": int, "alpha_pattern": float, "rate_pattern": float}
_NAME = re.compile(r"[A-Za-z_][\w.]*")


def parse_targets(value) -> str:
    """One of WORDS, names of linears with commas between them (or a list of them), or a regular expression."""
    accepted = f"one of {', '.join(WORDS[:-1])}, norms and biases with a comma between them, names of linears such as q,v, or a regular expression over PEFT's module names"
    given = ",".join(value) if isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value) else value
    if not isinstance(given, str) or not given:
        raise ConfigError(f"targets {value!r}: give {accepted}")
    if set(given.split(",")) == {"norms", "biases"}:
        return WORDS[-1]
    if given not in WORDS:
        _lora("targets", value, targets=targets_of(given))
    return given


def targets_of(words: str) -> str | tuple[str, ...]:
    """As ``LoRA`` takes them."""
    names = words.split(",")
    return tuple(names) if words not in WORDS[:-1] and all(map(_NAME.fullmatch, names)) else words


def parse_also(value) -> str:
    """norms, biases, or both with a comma between them (or a list), in LoRA's order."""
    from dynadapt.adapt.methods import BESIDE

    given = value.split(",") if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not given or not all(word in BESIDE for word in given):
        raise ConfigError(f"also {value!r}: give norms, biases, or both with a comma between them")
    return ",".join(word for word in BESIDE if word in given)


def parse_ranks(value) -> str:
    """ "q=4,down=32", or {"q": 4, "down": 32}, in the first form."""
    return _parse_pattern("rank_pattern", value)


def parse_alphas(value) -> str:
    """ "q=4,down=32.5", or {"q": 4, "down": 32.5}, in the first form."""
    return _parse_pattern("alpha_pattern", value)


def parse_factors(value) -> str:
    """ "q=0.5,head=0", or {"q": 0.5, "head": 0}, in the first form."""
    return _parse_pattern("rate_pattern", value)


def pattern_of(words: str | None, kind: type[int] | type[float]) -> dict[str, float]:
    """{linear or pattern: number}, as ``LoRA`` takes it."""
    pairs = (pair.rpartition("=") for pair in words.split(",")) if words else ()
    return {key: kind(number) for key, _, number in pairs}


def _parse_pattern(name: str, value) -> str:
    number = {"rank_pattern": "R", "alpha_pattern": "ALPHA"}.get(name, "FACTOR")
    accepted = f"LINEAR={number}, several with commas between them, for example q=4,down=32"
    pairs = list(value.items()) if isinstance(value, dict) else value
    if isinstance(pairs, (list, tuple)):
        if not all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str) and "," not in pair[0] for pair in pairs
        ):
            raise ConfigError(f"{name} {value!r}: give {accepted}; patterns with a comma in them are for an Engine's LoRA")
        value = ",".join(f"{key}={number}" for key, number in pairs)
    try:
        found = pattern_of(value, PATTERNS[name])
    except (ValueError, AttributeError):
        found = {}
    if not found or not all(found):
        raise ConfigError(f"{name} {value!r}: give {accepted}")
    _lora(name, value, **{name: found})
    return value


def _lora(name: str, value, **fields) -> None:
    """A ConfigError for what ``LoRA`` refuses."""
    from dynadapt.adapt.methods import LoRA

    try:
        LoRA(**fields)
    except ValueError as error:
        raise ConfigError(f"{name} {value!r}: {error}") from None
