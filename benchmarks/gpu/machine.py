"""Stages that look at the machine and get ready: environment, build, compile, ceilings."""

from __future__ import annotations

import re
import sys
import time

from benchmarks.native_build import build_commands, link_kernels

from . import kept
from .campaign import ROOT, child, output
from .timing import Timer

TOOLS = {
    "nvcc": "--version",
    "cmake": "--version",
    "ninja": "--version",
    "g++": "--version",
    "ncu": "--version",
    "compute-sanitizer": "--version",
}
OPTIONAL = ("liger_kernel", "cut_cross_entropy", "quack", "transformers", "peft", "gguf", "pytest", "xdist")


def environment(campaign, record) -> None:
    """Compilers, profilers and packages that are there."""
    import importlib.util

    record.data["rows"] = []
    for name, flag in TOOLS.items():
        lines = [line for line in output([name, flag]).splitlines() if re.search(r"\d+\.\d+", line)]
        record.add(tool=name, version=lines[0].strip() if lines else "absent")
    for name in OPTIONAL:
        record.add(package=name, present=importlib.util.find_spec(name) is not None)


def build(campaign, record) -> None:
    """The native libraries into dynadapt/, in place, without pip; dynadapt/kernels becomes a link to kernels/."""
    link_kernels(ROOT)
    record.data["rows"] = []
    record.add(what="dynadapt/kernels", linked=True)
    if campaign.tiny:
        return
    built, runs = ROOT / kept.BUILT, [sys.executable, "-c", "from dynadapt import _C; print(_C.isa())"]
    if built.exists() and built.read_text() == kept.mark() and child(runs, campaign.device, 60.0)[0] == 0:
        record.add(what="native libraries of this code", status=0, kept=True)
        return
    built.unlink(missing_ok=True)
    steps = {**build_commands(ROOT, ROOT / "build" / "gpu"), "import": runs}
    for name, command in steps.items():
        start = time.monotonic()
        status, text = child(command, campaign.device, campaign.room(campaign.left))
        ended = "was stopped at its time limit" if status is None else f"ended with status {status}"
        record.add(what=name, status=status, seconds=round(time.monotonic() - start, 1), said=text.strip()[-1500:])
        if status != 0:
            raise RuntimeError(f"build: {name} {ended}:\n{text[-3000:]}")
    built.write_text(kept.mark())


def compile(campaign, record) -> None:  # noqa: A001  (the stage's name)
    """Registers, spills and tensor cores of every kernel with the Triton of this machine (kernels/compile.py)."""
    import json

    out = campaign.out / "compile-rows.json"
    command = [sys.executable, "-m", "dynadapt.kernels.compile", "--json", str(out)] + (["--arch", "90"] if campaign.tiny else [])
    status, text = child(command, campaign.device, campaign.room(campaign.left), TRITON_INTERPRET="0")
    record.note(exit_status="stopped" if status is None else status, said=text[-4000:] if status != 0 else "")
    if out.exists():
        found = json.loads(out.read_text())
        record.note(triton=found["triton"], rows=found["rows"])
        out.unlink()
    if status is None:
        record.finish("out of time")


def ceilings(campaign, record) -> None:
    """What the machine can do at most, measured: copies, products, launches."""
    import torch

    timer, dev = Timer(campaign.device), campaign.device
    record.note(rows=[], gpu=record.card)  # those of an earlier call may be another card's
    size = 1 << (20 if campaign.tiny else 32)  # bytes
    for what, call in _copies_of(size, dev).items():
        t = timer(call, cold=False)
        record.add(what=what, bytes=2 * size, gb_per_s=2e-6 * size / t["median_ms"], **t)
    sizes = (
        [(64, 64, 64)]
        if campaign.tiny
        else [
            (8192, 8192, 8192),
            (4096, 8192, 2048),
            (32768, 2048, 2048),
            (4096, 1536, 576),
            (512, 576, 576),
            (4096, 49152, 576),
            (4096, 128256, 2048),
        ]
    )
    for m, n, k in sizes:
        x, w = (torch.randn(r, k, device=dev).bfloat16() for r in (m, n))
        y = torch.empty(m, n, device=dev, dtype=torch.bfloat16)
        t = timer(lambda: torch.mm(x, w.t(), out=y))
        record.add(what="matmul bf16", shape=[m, n, k], tflops=2e-9 * m * n * k / t["median_ms"], **t)
    if campaign.tiny:
        return
    _fp8(record, timer, 8192)
    _launches(record)


def _copies_of(size: int, device) -> dict:
    """Copies of `size` bytes; their buffers go with them. The runtime's own is slower in a graph than a kernel is: 2.7 and 4 TB/s on an H200."""
    import torch

    source, target = (torch.empty(size // 2, dtype=torch.bfloat16, device=device).normal_() for _ in range(2))
    return {"copy": lambda: target.copy_(source), "copy by a kernel": lambda: torch.neg(source, out=target)}


def _fp8(record, timer, n) -> None:
    import torch

    x, w = (torch.randn(n, n, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    try:
        t = timer(lambda: torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16))
        record.add(what="matmul fp8", shape=[n, n, n], tflops=2e-9 * n**3 / t["median_ms"], **t)
    except (RuntimeError, AttributeError) as error:
        record.add(what="matmul fp8", skipped=str(error)[:200])


def _launches(record, count: int = 1000) -> None:
    """Microseconds a small kernel costs, launched one by one and from a CUDA graph."""
    import torch

    from .timing import capture

    x = torch.zeros(1, device="cuda")

    def many():
        for _ in range(count):
            x.add_(1)

    for name, call in (("eager", many), ("graph", capture(lambda: many)[0])):
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        record.add(what=f"launch, {name}", microseconds=1e6 * (time.perf_counter() - start) / count)


def best(campaign, card: str) -> dict[str, float]:
    """{"gb_per_s", "tflops", "source"}: the ceilings measured on this card, or the vendor's figures for an H200, said so."""
    record = campaign.read("ceilings") or {}
    rows = record.get("rows", []) if record.get("gpu") == card else []
    copy = [r["gb_per_s"] for r in rows if str(r.get("what")).startswith("copy")]
    product = [r["tflops"] for r in rows if r.get("what") == "matmul bf16"]
    if copy and product:
        return {"gb_per_s": max(copy), "tflops": max(product), "source": "measured in the same campaign"}
    return {"gb_per_s": 4800.0, "tflops": 989.0, "source": "datasheet of the H200; run the stage ceilings first"}
