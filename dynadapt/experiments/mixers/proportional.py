"""Proportional: weights as large as the domains are, the mix of reading all data once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .fixed import Fixed
from .mixer import MixerError, Shaping, by_domain, check_domains


def proportions(domains: Sequence[str], sizes: Mapping[str, float]) -> dict[str, float]:
    """sizes, in tokens or any other unit, divided by their sum. An empty domain is refused."""
    domains = check_domains(domains)
    array = by_domain("sizes", domains, sizes, least=0)
    for domain, size in zip(domains, array):
        if size == 0:
            raise MixerError(f"sizes: domain {domain!r} is empty")
    return dict(zip(domains, (array / array.sum()).tolist()))


class Proportional(Fixed):
    """sizes: by domain. `initial` is accepted, as everywhere, and not used."""

    name = "proportional"

    def __init__(
        self,
        domains: Sequence[str],
        initial: Mapping[str, float] | None = None,
        *,
        sizes: Mapping[str, float],
        shaping: Shaping = Shaping(),
    ):
        super().__init__(domains, proportions(domains, sizes), shaping)
