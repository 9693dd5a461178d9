"""``dynadapt profile``: options, what is measured, and what is printed."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from dynadapt.common.options import add_settings, given, like, setting, settings_of
from dynadapt.experiments.config import EvalConfig
from dynadapt.ops.table import OPS
from dynadapt.runs.progress import say

EXAMPLES = """examples:
  dynadapt profile --op linear_forward --streams 1 --segment 512
      each linear group of SmolLM2-135M: time, GFLOP/s and GB/s, after a check against float64
  dynadapt profile --step --iters 10 --json step.json
      whole adapt steps (LoRA) of a model of that size with random weights
  dynadapt profile --op linear_forward --base q4_k --model llama-3.2-1b --segment 128
      with weights in the blocks of a quantised file: GB/s counts the bytes that are read
  eval "$(dynadapt profile --op cross_entropy --print-perf)"
      the processor's counters over the timed calls alone
  dynadapt profile --op update --model llama-3.2-1b --streams 8 --print-ncu
      the lines that put Nsight Compute around it; then dynadapt profile --parse-ncu update.csv

Results are checked before anything is timed. Caches are warm: this is for profilers and for comparing a kernel with itself.
docs/profiling.md walks through one kernel."""


@dataclass(frozen=True)
class Measured:
    """What is measured."""

    model: str = like(EvalConfig, "model", help="sizes: a known geometry or a Hugging Face directory (weights are random)")
    streams: int = setting(1, "streams side by side", least=1)
    segment: int = setting(512, "tokens of each", least=1)
    memory: int = setting(512, "tokens that each stream remembers, where the op or step attends to them", least=0)
    case: str = setting("", "with --op: only the case of this label")
    dtype: str = setting("auto", "bf16 or fp32; auto: what is fastest where this runs", choices=("auto", "bf16", "fp32"))
    base: str = setting(
        "same",
        "what frozen weights are kept in: the arithmetic's own dtype, int8, or the blocks of a GGUF format (CPU)",
        choices=("same", "int8", "q8_0", "q4_0", "q4_1", "q5_0", "q4_k", "q6_k"),
    )
    backend: str = like(EvalConfig, "backend", help="cpu, triton or reference; auto takes the device's own")
    device: str = like(EvalConfig, "device", help="cpu, cuda or cuda:N")
    warmup: int = setting(3, "calls before the timed ones", least=0)
    iters: int = setting(20, "timed calls", least=1)


def add_options(command: argparse.ArgumentParser) -> None:
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--op", choices=OPS, metavar="NAME", help=f"one op: {', '.join(OPS)}")
    what.add_argument("--step", action="store_true", help="one adapt step: forward, score of each token, backward, update")
    what.add_argument("--parse-ncu", metavar="FILE.csv", help="measure nothing; a table of the kernels in what ncu printed as CSV")
    add_settings(command, Measured)
    command.add_argument("--json", metavar="FILE", help="write the results as JSON")
    for tool, text in (
        ("ncu", "the lines that measure this with Nsight Compute and make the CSV for --parse-ncu"),
        ("nsys", "the line that records this with Nsight Systems"),
        ("perf", "the line that counts the processor's events over the timed calls (CPU)"),
    ):
        command.add_argument(f"--print-{tool}", action="store_true", help=f"measure nothing; print {text}")
    command.add_argument("--perf-control", metavar="CTL,ACK", help="pipes of `perf stat --control`: --print-perf uses it")


def run(arguments) -> int:
    if arguments.parse_ncu:
        return _parse_ncu(arguments.parse_ncu, arguments.json)
    measured = Measured(**given(Measured, arguments))
    for name, said in settings_of(Measured).items():
        if said.least is not None and getattr(measured, name) < said.least:
            raise ValueError(f"--{name} {getattr(measured, name)}: expected at least {said.least}")
    if arguments.step and measured.case:
        raise ValueError(f"--case {measured.case} with --step: cases are those of an op; leave it out")
    if arguments.print_ncu or arguments.print_nsys or arguments.print_perf:
        return _print_lines(arguments, measured)
    return _measure(arguments, measured)


# ---- lines


def _options(arguments, measured: Measured, device: str) -> list[str]:
    """This call's own options again, without those that are at their defaults."""
    options = ["--step"] if arguments.step else ["--op", arguments.op]
    for name, value in {**vars(measured), "device": device}.items():
        if value != getattr(Measured, name):
            options += [f"--{name}", str(value)]
    return options


def _print_lines(arguments, measured: Measured) -> int:
    from dynadapt.bench.profile import lines

    name = "step" if arguments.step else arguments.op
    gpu = measured.device if measured.device.startswith("cuda") else "cuda"
    if arguments.print_ncu:
        print(lines.ncu(_options(arguments, measured, gpu), name, arguments.step))
    if arguments.print_nsys:
        print(lines.nsys(_options(arguments, measured, gpu), name))
    if arguments.print_perf:
        if measured.device.startswith("cuda"):
            raise ValueError(f"--print-perf with --device {measured.device}: perf counts what the processor does; expected cpu")
        print(lines.perf(_options(arguments, measured, "cpu")))
    return 0


# ---- measuring


def _measure(arguments, measured: Measured) -> int:
    what_runs = "the adapt step" if arguments.step else f"op {arguments.op}"
    say(f"preparing {what_runs}, {measured.warmup} calls ahead of {measured.iters} that are measured")
    from dynadapt.bench.profile.run import profile_op, profile_step
    from dynadapt.common.environment import environment
    from dynadapt.ops import profiler_ranges as ranges

    ranges.enable()
    pipes = arguments.perf_control and tuple(arguments.perf_control.split(","))
    if pipes and len(pipes) != 2:
        raise ValueError(f"--perf-control {arguments.perf_control}: expected two pipes, CTL,ACK")
    from dynadapt.bench.profile.measure import Runs

    runs = Runs(measured.warmup, measured.iters, pipes)
    what = {name: value for name, value in asdict(measured).items() if name not in ("warmup", "iters")}
    if what["dtype"] == "auto":
        from dynadapt.engine.arithmetic import fastest

        what["dtype"] = fastest(what["device"], what["backend"])[0]
    found = environment()
    print(_header(found, ranges.status()))
    rows = profile_step(what, runs) if arguments.step else profile_op(arguments.op, what, runs)
    what_ran = "adapt step" if arguments.step else arguments.op
    _show(f"{what_ran}, {runs.iters} calls after {runs.warmup}, by the {rows[0]['clock']} clock", rows)
    if arguments.json:
        content = {"environment": found, "what": "step" if arguments.step else arguments.op, **what, "runs": asdict(runs), "rows": rows}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return 0


def _header(found: dict, ranges: dict) -> str:
    native = found["native"]
    packages = ", ".join(f"{name} {found['packages'][name]}" for name in ("torch", "triton") if name in found["packages"])
    return (
        f"dynadapt {found['dynadapt']}, Python {found['python']}, {packages}\n"
        f"{found['cpu']}, {found['cores']} cores; native kernels: "
        + (f"{native['isa']}, {native['threads']} threads" if native else "not built")
        + f"; GPU: {found['gpu'] or 'none'}\n"
        f"NVTX ranges: Python {ranges['python']}; native {ranges['native']}\n"
        + " ".join(f"{name}={value}" for name, value in found["variables"].items())
    )


COLUMNS = {
    "ms": ("median_ms", "{:.3f}"),
    "20%": ("p20_ms", "{:.3f}"),
    "80%": ("p80_ms", "{:.3f}"),
    "GFLOP": ("gflop", "{:.4g}"),
    "GFLOP/s": ("gflop_per_s", "{:,.0f}"),
    "GB/s": ("gb_per_s", "{:.1f}"),
    "tokens/s": ("tokens_per_s", "{:,.0f}"),
    "error": ("error", "{:.1e}"),
}


def _show(title: str, rows: list[dict]) -> None:
    _table(title, {"case": ("label", "{}"), **COLUMNS}, rows)


def _table(title: str, columns: dict, rows: list[dict]) -> None:
    """Columns that no row has are left out."""
    from rich.table import Table

    from dynadapt.runs.console import print_whole, table_console

    print(f"\n{title}")
    columns = {head: entry for head, entry in columns.items() if any(row.get(entry[0]) is not None for row in rows)}
    table = Table(box=None, pad_edge=False)
    for i, head in enumerate(columns):
        table.add_column(head, justify="left" if i == 0 else "right", overflow="fold" if i == 0 else "ellipsis")
    for row in rows:
        table.add_row(*("-" if row.get(key) is None else pattern.format(row[key]) for key, pattern in columns.values()))
    print_whole(table_console(), table)


# ---- ncu's CSV


NCU_COLUMNS = {
    "kernel": ("kernel", "{}"),
    "calls": ("launches", "{}"),
    "us": ("microseconds", "{:,.1f}"),
    "GB/s": ("gb_per_s", "{:,.0f}"),
    "DRAM": ("dram_percent", "{:.0f}%"),
    "tensor": ("tensor_percent", "{:.0f}%"),
    "SM": ("sm_percent", "{:.0f}%"),
    "roofline": ("roofline_percent", "{:.0f}%"),
}
NCU_LEGEND = """us: all calls together; the rest: the median call. DRAM, tensor, SM: percent of the peak of the DRAM, the tensor
cores, the multiprocessors; roofline: the larger of DRAM and tensor (--json also has registers, occupancy and the bound)"""


def _parse_ncu(file: str, out: str | None) -> int:
    from dynadapt.bench.profile.ncu import read, summarise

    rows = summarise(read(Path(file)))
    _table(file, NCU_COLUMNS, rows)
    print(NCU_LEGEND)
    if out:
        Path(out).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    return 0
