"""An optimizer's betas in a command line's words; a configuration keeps them, the optimizer gets what they mean."""

from __future__ import annotations

from dynadapt.common.errors import ConfigError


def parse_betas(value) -> str:
    """ "0,0.99", or a list of two numbers, in the first form."""
    from dynadapt.adapt.optimizers.base import check_betas

    accepted = "B1,B2 with 0 <= B1 < 1 and 0 < B2 < 1, for example 0.9,0.999"
    try:
        given = betas_of(value) if isinstance(value, str) else value
        return ",".join(f"{beta:.12g}" for beta in check_betas(given))
    except (TypeError, ValueError):
        raise ConfigError(f"betas {value!r}: give {accepted}") from None


def betas_of(words: str) -> tuple[float, ...]:
    """The betas that ``parse_betas`` gave in words."""
    return tuple(map(float, words.split(",")))
