"""When two runs of one seed part: a method and its control, the run on its average weights, by their losses in training."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

PARTS = 16  # of a run, over each of which losses are averaged; of a shorter one, its steps


def training_apart(folder: Path) -> dict[str, dict]:
    """Of a case's folder, by method with a control: {"steps" of a part, "seeds": {seed: the method's mean training loss less its control's, part by
    part}}. Seeds that one of the two lacks are left out."""
    found: dict[str, dict] = {}
    for seed in sorted(folder.glob("seed-*")):
        for control in sorted(path.parent for path in seed.glob("*-average/judged.json")):
            method = control.name.removesuffix("-average")
            if not (seed / method / "judged.json").exists():
                continue
            one, other = (_by_part(seed / name) for name in (method, control.name))
            row = found.setdefault(method, {"less": control.name, "steps": len(one[0]), "seeds": {}})
            row["seeds"][seed.name.removeprefix("seed-")] = [round(float(a.mean() - b.mean()), 4) for a, b in zip(one, other)]
    return found


def _by_part(run: Path) -> list[np.ndarray]:
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    return np.array_split(losses, min(PARTS, len(losses)))
