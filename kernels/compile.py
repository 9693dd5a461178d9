"""Compiles every kernel for every architecture, without a GPU, and holds each to its budget.

    python -m dynadapt.kernels.compile [FILE...] [--arch 90 ...] [--quick] [--json OUT] [--jobs N]

A row is one ``Variant`` on one architecture: registers a thread, spilled bytes, stack, shared memory, which tensor-core
instruction it uses, seconds; in the file also how many accesses a thread makes of 1 or 2 bytes, and whether its products wait for each other. Exit status 1, with the rows named, when one does not compile or leaves its budget. FILE is
the name of a file of this package (``linear``) or the path of a Python file that exports ``VARIANTS``.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

from .common import FUSION, INTERPRET, Variant

ARCHS = (80, 90, 100)
TARGET = 90  # what the kernels are tuned for
# Bytes that one block can have. sm_80 itself has 163 KiB: what is compiled for it also serves sm_86, sm_89 and sm_120 (tiles.generation).
SHARED = {80: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# Device functions, which are compiled inside the kernels of other files, and files of the host alone.
NOT_KERNELS = {
    "__init__",
    "common",
    "compile",
    "choices",
    "epilogue",
    "tiles",
    "token_sums",
    "attention_parts",
    "delta_parts",
    "lora_gradient_tiles",
}
# Budgets are of Triton 3.9. What earlier versions (3.6) spill beyond them, in bytes by kernel and architecture, where not 0.
OLDER_SPILLS = {
    ("dynadapt_attention_dkv", 80): 16,  # heads of 256
    ("dynadapt_cross_entropy_hidden", 100): 200,
    ("dynadapt_delta_rule_forward", 100): 8,
    ("dynadapt_head_norm_weights", 80): 12,
    ("dynadapt_lora_gradient", 80): 36,
    ("dynadapt_lora_gradient_update", 100): 4,
    ("dynadapt_lora_gradient_update_sum", 90): 8,
    ("dynadapt_row_expand", 100): 24,
}
# Loads and stores of 1 or 2 bytes by a thread that a kernel's code for the target may have: single numbers beside its tiles, or those named here, of
# optional ops, of fused updates, and of gate and up that lie in turns. What is beyond it is most often a tile of whose first column nothing is known.
NARROW = 16
MORE_NARROW = {
    "dynadapt_bias_gradient": 64,  # of an odd width
    "dynadapt_delta_gates_backward": 32,
    "dynadapt_gather_columns": 32,
    "dynadapt_linear_activation_forward": 144,
    "dynadapt_lora_gradient_update": 96,
    "dynadapt_reset": 32,
    "dynadapt_row_expand": 128,
    "dynadapt_row_gradient": 32,
    "dynadapt_row_shrink": 96,
    "dynadapt_slot_expand": 96,
    "dynadapt_slot_gradient": 64,
    "dynadapt_slot_shrink": 64,
    "dynadapt_weight_gradient": 32,
    "dynadapt_weight_gradient_update": 64,
}
BY_PARTS = "dynadapt_delta_rule_"  # kernels whose products of float32 are sums of products of TF32's parts, as exact
# The first that occurs in the PTX is what the kernel multiplies with.
TENSOR_CORE = (("tcgen05", "tcgen05.mma"), ("wgmma", "wgmma.mma_async"), ("mma", "mma.sync"))
EXPECTED = {80: ("mma",), 90: ("wgmma",), 100: ("tcgen05", "mma")}


@dataclass
class Row:
    """What one variant became on one architecture. ``faults`` is empty when it keeps its budget."""

    file: str
    kernel: str
    variant: str
    arch: int
    registers: int = 0
    spills: int = 0  # bytes stored and loaded
    stack: int = 0  # bytes
    shared: int = 0  # bytes
    tensor_core: str = "none"
    narrow: int = 0  # loads and stores of 1 or 2 bytes by a thread, in the code
    one_by_one: bool = False  # each wgmma waits for the one before
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.file}: {self.kernel} [{self.variant}] sm_{self.arch}"


def kernel_files() -> list[str]:
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in NOT_KERNELS)


def load(name: str):
    """The module of a kernel file, by its name in this package or by the path of a Python file."""
    if not name.endswith(".py"):
        return importlib.import_module(f"{__package__}.{name}")
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Triton looks up a kernel's globals through its module
    spec.loader.exec_module(module)
    return module


def variants(name: str) -> list[Variant]:
    """The variants of one file; a file with kernels and no variants is an error, because nothing would check it."""
    module = load(name)
    found = getattr(module, "VARIANTS", None)
    if not found and "@triton.jit" in Path(module.__file__).read_text():
        raise ValueError(f"kernels file {name!r} has Triton kernels but exports no VARIANTS: list[common.Variant]")
    return list(found or [])


def build(variant: Variant, arch: int):
    """Triton's compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = variant.kernel.arg_names
    unknown = [n for n in (*variant.signature, *variant.constexprs, *variant.aligned) if n not in names]
    missing = [n for n in names if n not in variant.signature and n not in variant.constexprs]
    if unknown or missing:
        raise ValueError(f"variant {variant.name!r}: no such arguments: {unknown}; without a type or a value: {missing}")
    signature = {n: "constexpr" if n in variant.constexprs else variant.signature[n] for n in names}
    attrs = {(names.index(n),): [["tt.divisibility", 16]] for n in variant.aligned}
    source = ASTSource(fn=variant.kernel, signature=signature, constexprs=dict(variant.constexprs), attrs=attrs)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, **FUSION}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL of a cubin. Without a driver Triton itself knows neither registers nor spills."""
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", text)}


def disassembled(cubin: bytes) -> str:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([knobs.nvidia.cuobjdump.path, "-sass", file.name], check=True, capture_output=True, text=True).stdout


def narrow_accesses(sass: str) -> int:
    return len(re.findall(r"\b(?:LDG|STG)\.E(?:\.\w+)*?\.[US](?:8|16)\b", sass))


def waits_one_by_one(sass: str) -> bool:
    """Whether the compiler gave up on products that follow each other: then every wgmma is waited for, else one at the end of a few. It does where
    an accumulator is set, as to zero, while another one's product is on its way (ptxas calls it C7515)."""
    products = re.findall(r"\bHGMMA\.[^;]*", sass)
    return len(products) >= 8 and sum("gsb0" in product for product in products) > 0.8 * len(products)


def spilled(ptx: str, arch: int) -> int:
    """Bytes spilled, stores and loads, as the assembler reports them. Asked only where a stack exists: spills live there."""
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE).group(1)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(arch).path, "-v", f"--gpu-name={target}", file.name, "-o", os.devnull]
        report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill", report))


def older_triton() -> bool:
    import triton

    return tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)


def check(row: Row, variant: Variant, scratch: int, ptx: str = "") -> None:
    """Fill in what leaves the budget."""
    spills = max(variant.spills, OLDER_SPILLS.get((row.kernel, row.arch), 0)) if older_triton() else variant.spills
    budgets = [
        ("spills", row.spills, spills, "bytes"),
        ("registers", row.registers, variant.registers, "a thread"),
        ("shared memory", row.shared, min(variant.shared, SHARED.get(row.arch, variant.shared)), "bytes"),
    ]
    row.faults += [f"{what}: {used} {unit}, budget {budget}" for what, used, budget, unit in budgets if used > budget]
    if variant.tensor_core and row.tensor_core not in EXPECTED.get(row.arch, ("mma",)):
        row.faults.append(f"tensor core: {row.tensor_core}, expected {' or '.join(EXPECTED.get(row.arch, ('mma',)))}")
    if "tf32" in ptx and not row.kernel.startswith(BY_PARTS):
        row.faults.append("TF32: products of float32 are rounded to 10 bits")
    if row.arch == TARGET and row.narrow > (most := MORE_NARROW.get(row.kernel, NARROW)):
        row.faults.append(f"accesses of 1 or 2 bytes: {row.narrow}, budget {most}")
    if row.one_by_one and not variant.one_by_one:
        row.faults.append("each wgmma waits for the one before: an accumulator is set while another one's product is on its way")
    if scratch:
        row.faults.append(f"global scratch: {scratch} bytes, which Triton would allocate at each launch")


def examine(file: str, index: int, arch: int) -> Row:
    """Compile one variant for one architecture and measure it."""
    variant = variants(file)[index]
    row = Row(Path(file).stem, variant.kernel.__name__, variant.name, arch)
    start = time.perf_counter()
    try:
        compiled = build(variant, arch)
        used = resources(compiled.asm["cubin"])
        row.registers, row.stack = used["REG"], used["STACK"]
        row.shared = compiled.metadata.shared
        row.tensor_core = next((name for name, text in TENSOR_CORE if text in compiled.asm["ptx"]), "none")
        row.spills = spilled(compiled.asm["ptx"], arch) if row.stack or used.get("LOCAL") else 0
        sass = disassembled(compiled.asm["cubin"])
        row.narrow, row.one_by_one = narrow_accesses(sass), waits_one_by_one(sass)
        check(row, variant, compiled.metadata.global_scratch_size, compiled.asm["ptx"])
    except Exception as error:  # the other kernels are still worth knowing about
        row.faults.append(f"{type(error).__name__}: {str(error).strip()[:600]}")
    row.seconds = round(time.perf_counter() - start, 2)
    return row


def selected(found: list[Variant], archs: list[int], quick: bool):
    """(index, architecture) of what is compiled; ``quick``: one variant of each kernel where it is not the main target."""
    first = {v.kernel: i for i, v in reversed(list(enumerate(found)))}
    return [
        (i, arch)
        for i, v in enumerate(found)
        for arch in archs
        if arch in v.archs and (arch == TARGET or not quick or first[v.kernel] == i)
    ]


def examine_all(files: list[str], archs: list[int], jobs: int, quick: bool, show=lambda row: None) -> list[Row]:
    work, rows = [], []
    for file in files:
        try:
            work += [(file, i, arch) for i, arch in selected(variants(file), archs, quick)]
        except Exception as error:
            rows.append(Row(Path(file).stem, "-", "-", 0, faults=[f"{type(error).__name__}: {error}"]))
            show(rows[-1])
    with ExitStack() as stack:
        if jobs <= 1 or len(work) <= 1:
            results = (examine(*item) for item in work)
        else:
            # forked: a worker has torch and the kernels already; nothing here has started a thread or touched a GPU
            pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=get_context("fork")))
            results = pool.map(examine, *zip(*work))
        for row in results:
            rows.append(row)
            show(row)
    return rows


HEADER = f"{'file':18} {'kernel':38} {'variant':26} {'arch':>6} {'regs':>4} {'spill':>6} {'stack':>6} {'KiB':>6} {'tensor':>8} {'s':>6}"


def line(r: Row) -> str:
    text = (
        f"{r.file:18} {r.kernel:38} {r.variant:26} sm_{r.arch:<3} {r.registers:4} {r.spills:6} {r.stack:6} "
        f"{r.shared / 1024:6.1f} {r.tensor_core:>8} {r.seconds:6.1f}"
    )
    return text + "".join(f"\n    FAILS: {fault}" for fault in r.faults)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="FILE", help="kernel files; without any, all of them")
    parser.add_argument("--arch", type=int, nargs="+", default=list(ARCHS), help="compute capabilities (default: 80 90 100)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: as many as cores)")
    parser.add_argument("--quick", action="store_true", help=f"one variant of each kernel on all architectures but {TARGET}")
    parser.add_argument("--json", metavar="OUT", help="also write the rows there")
    args = parser.parse_args(arguments)
    if INTERPRET:
        print("TRITON_INTERPRET=1 is set: kernels are then Python functions, nothing can be compiled; unset it", file=sys.stderr)
        return 2
    import triton

    files = [f if f.endswith(".py") and "/" in f else f.removesuffix(".py") for f in args.files] or kernel_files()
    print(f"Triton {triton.__version__}\n{HEADER}")
    rows = examine_all(files, args.arch, args.jobs, args.quick, lambda row: print(line(row), flush=True))
    if args.json:
        Path(args.json).write_text(json.dumps({"triton": triton.__version__, "rows": [asdict(r) for r in rows]}, indent=1) + "\n", "utf-8")
    failed = [r for r in rows if r.faults]
    print(f"{len(rows)} compiled, {len(failed)} failed" + "".join(f"\n  {r.name}: {'; '.join(r.faults)}" for r in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
