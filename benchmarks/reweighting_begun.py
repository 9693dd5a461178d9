"""Whether a folder of `benchmarks/reweighting.py` was begun with the settings of now: seeds of two sizes, or of two searches, are no sample of either."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from dynadapt.experiments.reweight import ReweightConfig, SearchConfig
from dynadapt.runs.rundir import read_json

# of a run's settings: what is its method's or its seed's own, and paths of this machine
OWN = ("domains", "corpus", "model", "mixer", "settings", "weights", "target", "reference", "seed", "evaluate")


def check_begun(case: Path, methods: Iterable[str], config: ReweightConfig, searches: dict[str, SearchConfig]) -> None:
    """
    Args:
        case: its folder, which need not be there.
        methods: whose runs are held against `config`.
        searches: by method, how each would look for its mixture now.

    Raises:
        SystemExit: a run or a search of any seed has other settings, naming the first.
    """
    now = {name: value for name, value in config.to_dict().items() if name not in OWN}
    now["domains"] = sorted(config.domains)
    for method in methods:
        for path in sorted(case.glob(f"seed-*/{method}/config.json")):
            begun = read_json(path)
            _same(path, {**begun, "domains": sorted(begun["domains"])}, now)
    for method, how in searches.items():
        for path in sorted(case.glob(f"seed-*/searches/{method}/config.json")):
            _same(path, read_json(path), asdict(how))


def _same(path: Path, begun: dict, now: dict) -> None:
    for name, value in now.items():
        if name in begun and begun[name] != value:
            raise SystemExit(f"{path.parent} was begun with {name} {begun[name]!r}, not {value!r}: give another --out")
