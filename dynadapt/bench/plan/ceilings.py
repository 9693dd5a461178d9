"""What a machine can do at most: products, memory traffic, memory."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dynadapt.bench.ceiling import gemm_ceiling
from dynadapt.runs.rundir import read_json

from .datasheets import CARDS, card


@dataclass(frozen=True)
class Ceilings:
    """``flops`` per second of dense products by dtype name; ``bandwidth`` in bytes read and written a second; ``memory`` in bytes,
    None where it is not known."""

    name: str
    kind: str  # "cpu" or "gpu": measured steps of one kind say nothing about the other
    source: str
    flops: dict[str, float]
    bandwidth: float
    memory: float | None = None

    def product_rate(self, dtype: str) -> float:
        if dtype not in self.flops:
            raise ValueError(f"dtype={dtype!r}: no product rate of {self.name} is known for it; there are {', '.join(sorted(self.flops))}")
        return self.flops[dtype]


def datasheet(gpu: str) -> Ceilings:
    """A GPU's ceilings as its vendor gives them, by any of its usual names. Raises ValueError naming the GPUs that are known."""
    name, bf16, fp32, bandwidth, memory = CARDS[card(gpu)]
    return Ceilings(
        name, "gpu", "the vendor's datasheet, not measured", {"bf16": 1e12 * bf16, "fp32": 1e12 * fp32}, 1e9 * bandwidth, 1e9 * memory
    )


def from_campaign(path: str | Path) -> Ceilings:
    """Ceilings that `benchmarks/gpu_campaign.py ceilings` measured. Raises ValueError when the file holds none."""
    record = read_json(Path(path))
    rows = record.get("rows", [])
    copies = [row["gb_per_s"] for row in rows if row.get("what") == "copy"]
    products = [row["tflops"] for row in rows if row.get("what") == "matmul bf16"]
    if not copies or not products:
        raise ValueError(
            f"ceilings={str(path)!r}: holds no rows 'copy' and 'matmul bf16'; expected the file of the campaign's stage ceilings"
        )
    environment = record.get("environment", {})
    return Ceilings(
        environment.get("gpu") or "GPU",
        "gpu",
        "measured by the campaign's stage ceilings",
        {"bf16": 1e12 * max(products)},
        1e9 * max(copies),
        environment.get("gpu_memory_bytes"),
    )


def measured_here(dtypes=("bf16", "fp32"), seconds: float = 1.0) -> Ceilings:
    """This machine's CPU, measured now: the best large product of either library, and a copy that no cache holds."""
    from dynadapt.common.environment import cpu_name
    from dynadapt.ops.dispatch import native_module

    threads = native_module().num_threads()
    kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
    flops = {name: 1e9 * gemm_ceiling(kinds[name], threads, seconds)["gflops"] for name in dtypes}
    return Ceilings(f"{cpu_name()}, {threads} threads", "cpu", "measured now", flops, copy_bandwidth(seconds), machine_memory())


def machine_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Bytes of memory that this process may use: the machine's, or its control group's where that allows less."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        allowed = limit.read_text().strip()
    except OSError:
        return memory
    return min(memory, float(allowed)) if allowed.isdigit() else memory


def copy_bandwidth(seconds: float = 1.0, size: int = 1 << 28) -> float:
    """Bytes read and written a second by a copy of ``size`` bytes; the best of the runs that ``seconds`` allow."""
    a, b = torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        b.copy_(a)
        best = max(best, 2 * size / (time.perf_counter() - start))
    return best
