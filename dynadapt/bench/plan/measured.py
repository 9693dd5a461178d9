"""Steps that were measured, and how far the plan is from them.

measured.json holds what `collect` read from benchmarks/results: rows with the step's settings, seconds, peak memory and the ceilings
of the same machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from dynadapt.adapt.methods import LoRA
from dynadapt.engine.settings import cpu_batch
from dynadapt.model.geometries import geometry
from dynadapt.runs.rundir import read_json

from .ceilings import Ceilings
from .predict import NAMES, predict
from .work import Work, step_work

DTYPES = {name: dtype for dtype, name in NAMES.items()}
STEPS = ("step-bf16.json", "step-bf16-t128.json", "step-bf16-t2048.json", "step-bf16-s4.json", "step-fp32.json")


@dataclass(frozen=True)
class Measured:
    """One measured step beside its plan. ``floor`` and ``seconds`` a step; bytes: what the plan holds, and the process's peak."""

    row: dict
    floor: float
    held: int

    @property
    def slowdown(self) -> float:
        """Measured seconds over the floor."""
        return self.row["seconds"] / self.floor

    @property
    def beyond(self) -> int:
        """Peak bytes of the process beyond what the plan holds: the interpreter, torch, and the model as it was loaded."""
        return self.row["peak_memory_bytes"] - self.held


def rows() -> list[dict]:
    return json.loads(resources.files(__package__).joinpath("measured.json").read_text("utf-8"))["rows"]


def comparisons(kind: str) -> list[Measured]:
    """Every measured step on machines of one kind ("cpu" or "gpu") beside its plan."""
    found = []
    for row in rows():
        if row["kind"] == kind:
            work = _work(row)
            ceilings = Ceilings(
                row["machine"], kind, "measured with the step", {row["dtype"]: 1e9 * row["product_gflops"]}, 1e9 * row["copy_gb_per_s"]
            )
            found.append(Measured(row, predict(work, ceilings).floor, work.bytes_held))
    return found


def _work(row: dict) -> Work:
    threads = int(row["machine"].split()[-2])  # "..., 2 threads"
    return step_work(
        geometry(row["model"]),
        LoRA(rank=row["rank"]),
        streams=row["streams"],
        segment=row["segment"],
        dtype=DTYPES[row["dtype"]],
        batch=cpu_batch(row["streams"], row["segment"], threads) if row["kind"] == "cpu" else None,
        recompute=row["kind"] == "cpu",
    )


def collect(results: Path, copy_gb_per_s: float) -> list[dict]:
    """Rows from the step benchmarks' files. ``copy_gb_per_s``: copy bandwidth of the machine that wrote them."""
    found = []
    for name in STEPS:
        record = read_json(results / name)
        ours = record["providers"]["dynadapt"]
        found.append(
            {
                "file": name,
                "kind": "cpu",
                "machine": f"{record['environment']['cpu']}, {ours['threads']} threads",
                "model": record["model"],
                "dtype": record["dtype"],
                "streams": record["streams"],
                "segment": record["segment"],
                "rank": record["rank"],
                "seconds": ours["seconds"]["median"],
                "peak_memory_bytes": ours["peak_memory_bytes"],
                "product_gflops": record["ceiling"]["gflops"],
                "copy_gb_per_s": copy_gb_per_s,
            }
        )
    return found
