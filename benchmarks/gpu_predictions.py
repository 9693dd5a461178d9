"""What an adapt step is predicted to take on a GPU, kernel by kernel, at every model and shape that the campaign measures.

    python benchmarks/gpu_predictions.py [--out benchmarks/results/gpu-predictions.json]
    python benchmarks/gpu_predictions.py --mixtures [--out benchmarks/results/gpu-mixtures.json]

The second says what one text in segments of 512 costs with K rates side by side, K streams of a step, and with a guard, a step without learning more:
the mixture's own small launches are not in it.

Nothing is measured: `dynadapt plan --gpu NAME --explain` prints one of these, and dynadapt/bench/plan/launches.py says how. The file is
committed before any GPU has run a step; the campaign's summary puts its figures beside the measured ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["TRITON_INTERPRET"] = "1"

from dynadapt.adapt.methods import LoRA  # noqa: E402
from dynadapt.adapt.optimizers import Adam  # noqa: E402
from dynadapt.bench.plan.ceilings import datasheet  # noqa: E402
from dynadapt.bench.plan.launches import ASSUMED, step_time  # noqa: E402
from dynadapt.engine.memory import SegmentMemory  # noqa: E402
from dynadapt.runs.rundir import write_json  # noqa: E402

CARDS = ("h100", "h200")
MIXED = ("smollm2-135m", "llama-3.2-1b")  # models of mixtures
KEPT = 12  # kernels of each step, the longest


def prediction(model: str, streams: int, segment: int, card: str) -> dict:
    from benchmarks.gpu.geometry import MODELS, RANK
    from benchmarks.gpu.step_worker import ALPHA, batch_that_fits

    ceilings = datasheet(card)
    batch = batch_that_fits(model, streams, segment, ceilings.memory)
    memory = SegmentMemory(segment, 0)
    found = step_time(card, ceilings, MODELS[model], LoRA(RANK, ALPHA), Adam(), memory, streams, segment, batch=batch)
    return {
        "card": card,
        "model": model,
        "streams": streams,
        "segment": segment,
        "batch": batch,
        "predicted_seconds": found.seconds,
        "floor_seconds": found.floor,
        "tokens_per_s": streams * segment / found.seconds,
        "share_of_product_rate": found.share_of_product_rate,
        "launches": found.launches,
        "longest": [vars(kernel) for kernel in found.kernels[:KEPT]],
    }


def mixtures() -> list[dict]:
    """Of one text, by card and model: the step at K rates, and the prior's forward, beside the step at one."""
    from benchmarks.gpu.geometry import MODELS, RANK
    from benchmarks.gpu.step_worker import ALPHA

    rows, memory = [], SegmentMemory(512, 4)
    for card in CARDS:
        for model in MIXED:
            time = lambda adapt, streams: step_time(card, datasheet(card), MODELS[model], adapt, Adam(), memory, streams, 512)  # noqa: E731
            at = {str(k): time(LoRA(RANK, ALPHA), k).seconds for k in (1, 3, 4)}
            rows.append({"card": card, "model": model, "segment": 512, "rates_seconds": at, "guard_seconds": time(None, 1).seconds})
    return rows


def main() -> int:
    from benchmarks.gpu.geometry import SHAPES, models

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixtures", action="store_true", help="predict K rates side by side and a guard instead")
    parser.add_argument("--out", type=Path, help="(default: benchmarks/results/gpu-predictions.json, gpu-mixtures.json with --mixtures)")
    given, rows = parser.parse_args(), []
    out = given.out or ROOT / f"benchmarks/results/gpu-{'mixtures' if given.mixtures else 'predictions'}.json"
    said = {"what": "predicted, not measured", "assumed": ASSUMED, "command": "python benchmarks/gpu_predictions.py"}
    if given.mixtures:
        write_json(out, {**said, "command": f"{said['command']} --mixtures", "rows": mixtures()})
        return 0
    for card in CARDS:
        for model in models(tiny=False):
            for streams, segment in SHAPES:
                row = prediction(model, streams, segment, card)
                rows.append(row)
                share = row["share_of_product_rate"]
                print(
                    f"{card}  {model:14} {streams:3} x {segment:<5} {1e3 * row['predicted_seconds']:9.2f} ms  {share:.0%} of the rate of products"
                )
    write_json(out, {**said, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
