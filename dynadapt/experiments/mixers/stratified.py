"""Stratified: every domain the same weight. No published dynamic rule beats it consistently (arXiv 2411.05735, Aioli)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .fixed import Fixed
from .mixer import Shaping, check_domains


class Stratified(Fixed):
    """`initial` is accepted, as everywhere, and not used."""

    name = "stratified"

    def __init__(self, domains: Sequence[str], initial: Mapping[str, float] | None = None, shaping: Shaping = Shaping()):
        domains = check_domains(domains)
        super().__init__(domains, {domain: 1.0 / len(domains) for domain in domains}, shaping)
