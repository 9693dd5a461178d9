"""Replay: the average weights of an earlier run, as a static mix.

The control that the literature lacks: in Velocitune's own table such a run beats the dynamic one on mathematics (36.6 against 35.9),
so a dynamic rule has shown something only where it beats this. The run's summary.json holds `static_weights`: the weights averaged over
tokens, or, for DoReMi, over steps, as it defines its result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from dynadapt.runs.rundir import read_json

from .fixed import Fixed
from .mixer import MixerError, Shaping, check_domains


def static_weights_of(run: str | Path) -> dict[str, float]:
    """What summary.json of a finished reweighting run says its average weights were."""
    summary = Path(run) / "summary.json"
    if not summary.is_file():
        raise MixerError(f"run {str(run)!r}: no summary.json in it; it is not a finished run")
    weights = read_json(summary).get("static_weights")
    if not isinstance(weights, dict):
        raise MixerError(f"run {str(run)!r}: its summary.json has no static_weights; it is not a reweighting run")
    return weights


class Replay(Fixed):
    """run: directory of a finished run. `initial` is accepted, as everywhere, and not used."""

    name = "replay"

    def __init__(
        self, domains: Sequence[str], initial: Mapping[str, float] | None = None, *, run: str | Path, shaping: Shaping = Shaping()
    ):
        self.run = str(run)
        weights, domains = static_weights_of(run), check_domains(domains)
        if set(weights) != set(domains):
            raise MixerError(f"run {self.run!r}: its domains are {', '.join(weights)}; here they are {', '.join(domains)}")
        super().__init__(domains, weights, shaping)
