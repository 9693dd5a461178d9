"""Learning rates that move themselves: for each learned tensor a factor, by whether its gradient still points where its last step went.

The gradient of the loss in the learning rate of the last step is -<g_t, d_(t-1)>, with d_(t-1) the step that was subtracted (Baydin et al. 2018,
arXiv 1703.04782, eq. 5). Here it is normalised to a cosine, and moves the logarithm of a factor on the rate:

    h = <g_t, d_(t-1)> / (|g_t| |d_(t-1)|),    log f += step h,    1 / limit <= f <= limit

so that f grows while steps keep going one way and shrinks where they turn back, whatever the optimizer. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dynadapt.common.checks import keep, number, wrong

from .reset_policy import words_of

EXPECTED = 'Hypergradient(step, limit), "on" for its defaults, words such as "step=0.02,limit=8", or None'


@dataclass(frozen=True)
class Hypergradient:
    """Of each stream's adapters, every A and B of a group of linears has a factor on its learning rate (this module's docstring).

    Args:
        step: by how much the logarithm of a factor moves at a cosine of 1, above 0.
        limit: the largest factor, above 1; the smallest is 1 over it.
    """

    step: float = 0.02
    limit: float = 8.0

    def __post_init__(self):
        keep(
            self,
            step=float(number("step", self.step, "a number > 0", lambda x: x > 0)),
            limit=float(number("limit", self.limit, "a factor > 1", lambda x: x > 1)),
        )

    @property
    def word(self) -> str:
        """As the command line has it, with what is not the default."""
        return ",".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name) != f.default) or "on"


def as_hypergradient(given) -> Hypergradient | None:
    """A ``Hypergradient`` or None, of one, its class, its ``word``, or None."""
    if given is None or isinstance(given, Hypergradient):
        return given
    if given is Hypergradient or isinstance(given, str) and given == "on":
        return Hypergradient()
    named = words_of(given, {"step": float, "limit": float}) if isinstance(given, str) else None
    if named is None:
        raise wrong("hypergradient", given, EXPECTED)
    try:
        return Hypergradient(**named)
    except ValueError as error:
        raise ValueError(f"hypergradient={given!r}: {error}") from None
