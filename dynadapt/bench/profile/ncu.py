"""What Nsight Compute measured, as one row a kernel: time, bandwidth, use of the tensor cores, share of the roofline.

Reads what ``ncu --csv --page raw`` prints, or ``ncu --import FILE.ncu-rep --csv --page raw``.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from pathlib import Path

# ncu's names -> ours. Where two metrics say the same on different GPUs, the larger counts.
METRICS = {
    "gpu__time_duration.sum": "ns",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "dram__bytes.sum": "dram_bytes",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "l2_percent",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor_percent",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "launch__registers_per_thread": "registers",
    "launch__grid_size": "grid",
    "launch__block_size": "block",
    "smsp__sass_inst_executed_op_local_ld.sum": "local_loads",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank_conflicts",
}
UNITS = {"us": 1e3, "ms": 1e6, "s": 1e9, "usecond": 1e3, "msecond": 1e6, "second": 1e9, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def kernels_of(text: str) -> list[dict]:
    """One dict a launch from ncu's CSV: a line of names, one of units, one for each launch; other lines are passed over.

    Times are nanoseconds, sizes bytes. What ncu did not measure is left out.
    """
    lines = [line for line in text.splitlines() if line.startswith('"')]
    table = list(csv.reader(io.StringIO("\n".join(lines))))
    if len(table) < 3:
        return []
    names, units = table[0], dict(zip(table[0], table[1]))
    rows = []
    for values in table[2:]:
        row = dict(zip(names, values))
        found = {"kernel": row.get("Kernel Name", "?")}
        for metric, label in METRICS.items():
            value = _number(row.get(metric, ""), units.get(metric, ""))
            if value is not None:
                found[label] = max(value, found.get(label, 0.0))
        rows.append(found)
    return rows


def _number(text: str, unit: str) -> float | None:
    """In nanoseconds, bytes or plain numbers: ncu picks a unit for each column."""
    try:
        return float(text.replace(",", "")) * UNITS.get(unit, 1.0)
    except ValueError:  # "n/a", or nothing
        return None


def short_name(kernel: str) -> str:
    """Without arguments and template parameters."""
    return re.split(r"[(<]", kernel.removeprefix("void "), maxsplit=1)[0].strip()


def summarise(launches: list[dict]) -> list[dict]:
    """A row a kernel, the longest first: ``launches``, ``microseconds`` of all of them, and medians over them of ``gb_per_s``
    (bytes that crossed the DRAM's bus), ``dram_percent``, ``tensor_percent``, ``sm_percent``, ``occupancy_percent``.

    ``roofline_percent`` is the larger of what the DRAM and the tensor cores reached of their peaks, and ``bound`` says which;
    a kernel that is far from both waits for something else.
    """
    groups: dict[str, list[dict]] = {}
    for launch in launches:
        groups.setdefault(short_name(launch["kernel"]), []).append(launch)
    rows = [_summary(name, group) for name, group in groups.items()]
    return sorted(rows, key=lambda row: -(row["microseconds"] or 0.0))


def _summary(name: str, group: list[dict]) -> dict:
    def middle(label):
        values = [g[label] for g in group if label in g]
        return statistics.median(values) if values else None

    bandwidth = [g["dram_bytes"] / g["ns"] for g in group if g.get("ns") and "dram_bytes" in g]  # bytes a ns are GB a s
    percents = {label: middle(label) for label in ("dram_percent", "tensor_percent", "sm_percent", "occupancy_percent")}
    roofs = {"DRAM": percents["dram_percent"], "tensor cores": percents["tensor_percent"]}
    bound = max((b for b in roofs if roofs[b] is not None), key=roofs.get, default=None)
    return {
        "kernel": name,
        "launches": len(group),
        "microseconds": sum(g["ns"] for g in group if "ns" in g) / 1e3,
        "gb_per_s": statistics.median(bandwidth) if bandwidth else None,
        **percents,
        "registers": middle("registers"),
        "roofline_percent": roofs.get(bound),
        "bound": bound,
    }


def read(path: Path) -> list[dict]:
    """The launches of a file.

    Raises:
        ValueError: it holds none.
    """
    launches = kernels_of(Path(path).read_text("utf-8", errors="replace"))
    if not launches:
        raise ValueError(f"{path} holds no kernels: expected what `ncu --csv --page raw` prints")
    return launches
