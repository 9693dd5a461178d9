"""What a step launches on a GPU, kernel by kernel, and a time for each: a prediction to be held against measurement.

The step runs as in work.py, on tensors without memory, and every op calls its Triton wrapper; kernels and cuBLAS' products are noted
where they would be launched. Nothing is computed, and no GPU is needed.

A kernel's time is the larger of its products at the card's rate and its traffic at the card's bandwidth, over three factors: what a
sound kernel reaches of a ceiling (REACHED, an assumption until a GPU has run it), how evenly its programs fill the multiprocessors, and
for traffic how many programs it takes to draw all of it; and never less than LATENCY.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dynadapt.ops.dispatch import kernel_module, resolve
from dynadapt.ops.table import OPS

from .ceilings import Ceilings
from .datasheets import card
from .predict import NAMES
from .work import Work, WorkRecorder, step_work

MULTIPROCESSORS = {"b200": 148, "h200": 132, "h200-nvl": 132, "h100": 132, "h100-nvl": 132, "h100-pcie": 114}
# Assumed, not measured: shares of the datasheet's ceilings that kernels of each kind reach when they fill the card.
REACHED = {"cuBLAS": 0.75, "products": 0.60, "attention": 0.45, "traffic": 0.85}
DRAWS_ALL = 0.5  # programs a multiprocessor from which on traffic is no longer bound by how few there are
LATENCY = 2.5e-6  # seconds of a node of a CUDA graph, however little it does
# Of a product that cuBLAS computes: rows and columns of a tile, what of REACHED is left at that size, and pieces of the inner sum. It is
# taken to choose what fills the card best, each piece of at least 512 terms; adding pieces up costs a fifth.
TILES = ((128, 256, 1.0), (128, 128, 0.9), (64, 128, 0.7), (64, 64, 0.5))
SPLITS, LEAST_TERMS, SPLIT = (1, 2, 4, 8), 512, 0.8
ASSUMED = (
    f"kernels that fill the card reach {REACHED['cuBLAS']:.0%} (cuBLAS), {REACHED['products']:.0%} (own products) or {REACHED['attention']:.0%} "
    f"(attention) of the datasheet's products, {REACHED['traffic']:.0%} of its bandwidth from {DRAWS_ALL:g} programs a multiprocessor on; "
    f"a launch takes {1e6 * LATENCY:g} us at least; cuBLAS takes the tile that ends first; smaller tiles reach less, here and there"
)
GATHERED = {"embedding_forward": ("table", "position_table")}  # of these a kernel reads as many values as it writes, not all
REWRITTEN = {  # what a kernel both reads and writes
    "update_apply": ("master", "first", "second"),
    "cross_entropy_rows": ("logits",),
    "cross_entropy_apply": ("logits",),
}
L2, ROWS_AT_A_TIME = 50e6, 264  # bytes, of Hopper; rows that it scores at a time, two a multiprocessor
PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "baddbmm_": (1, 2)}


def multiprocessors_of(gpu: str) -> int:
    """Of a card by any of its usual names. Raises ValueError naming the cards whose number is known."""
    key = card(gpu)
    if key not in MULTIPROCESSORS:
        raise ValueError(f"gpu={gpu!r}: its number of multiprocessors is not kept here; expected one of {', '.join(MULTIPROCESSORS)}")
    return MULTIPROCESSORS[key]


@dataclass(frozen=True)
class Launch:
    """One kernel: whose op it is part of, its programs, the bytes of the tensors that it is given, its share of the op's products, and how
    much of what its kind reaches."""

    op: str
    kernel: str
    programs: int
    bytes: int
    flops: int = 0
    reaches: float = 1.0

    @property
    def kind(self) -> str:
        if self.kernel.startswith("cuBLAS"):
            return "cuBLAS"
        return "attention" if "attention" in self.kernel else "products"


@dataclass(frozen=True)
class KernelTime:
    """All launches of one kernel in a step, in one shape."""

    kernel: str
    op: str
    count: int
    programs: int
    waves: float
    floor: float
    seconds: float
    limit: str


@dataclass(frozen=True)
class StepTime:
    """What a step is predicted to take: ``kernels``, the longest first, of ``launches`` launches; ``products``: its FLOPs that kernels
    compute, and ``rate`` FLOPs a second that the card could."""

    kernels: list[KernelTime]
    launches: int
    products: int
    rate: float

    @property
    def seconds(self) -> float:
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def floor(self) -> float:
        return sum(kernel.floor for kernel in self.kernels)

    @property
    def share_of_product_rate(self) -> float:
        return self.products / self.rate / self.seconds


def step_time(gpu: str, ceilings: Ceilings, *arguments, **options) -> StepTime:
    """Of a step on a card by its name; the rest are ``step_work``'s. Raises ValueError as ``multiprocessors_of`` and ``step_launches``."""
    count = multiprocessors_of(gpu)
    work, launches = step_launches(count, *arguments, **options)
    products = sum(op.flops - op.skipped for op in work.ops.values())
    rate = ceilings.product_rate(NAMES[work.dtype])
    return StepTime(kernel_times(launches, ceilings, count, work.dtype), len(launches), products, rate)


def time_of(launch: Launch, ceilings: Ceilings, multiprocessors: int, dtype: str) -> tuple[float, float, str]:
    """(seconds at the ceilings, seconds expected, what limits it) of one launch."""
    products, traffic = launch.flops / ceilings.product_rate(dtype), launch.bytes / ceilings.bandwidth
    even = launch.programs / (multiprocessors * math.ceil(launch.programs / multiprocessors))
    drawn = min(1.0, launch.programs / (multiprocessors * DRAWS_ALL))
    slow = {
        "products": products / (REACHED[launch.kind] * launch.reaches * even),
        "traffic": traffic / (REACHED["traffic"] * drawn),
        "latency": LATENCY,
    }
    limit = max(slow, key=lambda what: slow[what])
    return max(products, traffic), slow[limit], limit


def kernel_times(launches: list[Launch], ceilings: Ceilings, multiprocessors: int, dtype: torch.dtype) -> list[KernelTime]:
    """By kernel and shape, the longest in all first."""
    groups: dict[Launch, int] = {}
    for launch in launches:
        groups[launch] = groups.get(launch, 0) + 1
    found = []
    for launch, count in groups.items():
        floor, seconds, limit = time_of(launch, ceilings, multiprocessors, NAMES[dtype])
        waves = launch.programs / multiprocessors
        found.append(KernelTime(launch.kernel, launch.op, count, launch.programs, waves, count * floor, count * seconds, limit))
    return sorted(found, key=lambda kernel: -kernel.seconds)


def step_launches(multiprocessors: int, *arguments, **options) -> tuple[Work, list[Launch]]:
    """(the work, every launch in order) of a step on a card of so many multiprocessors; the rest are ``step_work``'s.

    Raises:
        ValueError: Triton is not installed, or its kernels were imported to be compiled.
    """
    os.environ.setdefault("TRITON_INTERPRET", "1")
    try:
        from triton.runtime.interpreter import GridExecutor

        interpreted = kernel_module("common").INTERPRET
    except ImportError as error:
        raise ValueError(f"explain: the kernels' launches need Triton ({error}); pip install triton") from error
    if not interpreted:
        raise ValueError("explain: set TRITON_INTERPRET=1 before dynadapt is imported: launches are noted in Triton's interpreter")
    noted: list[Launch] = []

    class Recorder(_Launches):
        launches = noted

    def launched(executor, *args, **kwargs):
        given, name = dict(zip(executor.arg_names, args)) | kwargs, executor.fn.__name__.removeprefix("dynadapt_")
        noted.append(Launch("", name, math.prod(executor.grid), _kernel_moves(name, given), reaches=_tile_reaches(name, given)))

    with mock.patch.object(GridExecutor, "__call__", launched), _Products(noted, multiprocessors):
        work = step_work(*arguments, **options, recorder=Recorder)
    return work, noted


def call_kernels(*arguments, **options) -> Work:
    """Every op of a step calls its Triton wrapper, on tensors without memory, and nothing is noted: who compiles ahead takes the launches
    where Triton would make them. Arguments are ``step_work``'s."""

    class Recorder(_Launches):
        launches: list[Launch] = []

    return step_work(*arguments, **options, recorder=Recorder)


class _Launches(WorkRecorder):
    """Every op also calls what serves it on a GPU; what is launched then is its own, and so are the products counted until the next."""

    launches: list[Launch]
    joins_activation = True

    def __init__(self, ledger, dtype):
        super().__init__(ledger, dtype)
        self.begun, self.name, self.counted = 0, "", 0

    def decide(self, name: str, *arguments) -> None:
        self._called(name, [arguments])

    def noted(self, name: str, calls: list[tuple]) -> None:
        self.begun, self.name = len(self.launches), name
        self.counted = self.ops[name].flops
        if name not in OPS:  # of ops/decisions.py
            getattr(kernel_module("decisions"), name)(*calls[0])
        elif len(calls) > 1:
            kernel_module("lora_gradient").lora_gradients(calls)
        else:
            resolve(name, "triton", self.dtype).function(*calls[0])

    def gathers_gradients(self, linears: list[tuple], streams: int, rows: int) -> bool:
        return kernel_module("lora_gradient").linears_fit(self.dtype, linears, streams, rows)

    def settle(self) -> None:
        super().settle()
        if self.name:
            self._share(self.ops[self.name].flops - self.counted)
            self.name = ""

    def _share(self, flops: int) -> None:
        """Products that no cuBLAS call is known to compute belong to the op's kernels, in proportion to what they read and write."""
        own = self.launches[self.begun :]
        left = max(0, flops - sum(launch.flops for launch in own))
        total = sum(launch.bytes for launch in own if not launch.flops)
        for i, launch in enumerate(own):
            share = 0 if launch.flops or not total else left * launch.bytes // total
            self.launches[self.begun + i] = replace(launch, op=self.name, flops=launch.flops or share)


class _Products(TorchDispatchMode):
    """Notes the products that torch hands to cuBLAS."""

    def __init__(self, launches: list[Launch], multiprocessors: int):
        super().__init__()
        self.launches, self.multiprocessors = launches, multiprocessors

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name in PRODUCTS:
            a, b = (args[i] for i in PRODUCTS[name])
            batch, (m, k), n = math.prod(a.shape[:-2]), a.shape[-2:], b.shape[-1]
            programs, reaches = self._tiles(batch, m, n, k)
            moved = _moved([a, b, made]) + (_moved([made]) if PRODUCTS[name][0] else 0)  # added onto what is there
            self.launches.append(Launch("", f"cuBLAS {m} x {n} x {k}", programs, moved, 2 * batch * m * n * k, reaches))
        return made

    def _tiles(self, batch: int, m: int, n: int, k: int) -> tuple[int, float]:
        """(programs, share of what is reached) of the choice that ends first."""
        found = []
        for rows, columns, share in TILES:
            for split in SPLITS:
                if split == 1 or k // split >= LEAST_TERMS:
                    programs = batch * math.ceil(m / rows) * math.ceil(n / columns) * split
                    reaches = share * (SPLIT if split > 1 else 1.0)
                    even = programs / (self.multiprocessors * math.ceil(programs / self.multiprocessors))
                    found.append((reaches * even, programs, reaches))
        _, programs, reaches = max(found)
        return programs, reaches


def _kernel_moves(name: str, given: dict) -> int:
    """Bytes of a kernel's tensors, each once or, where it is written over, twice; those that it gathers from count as what it writes."""
    gathered = GATHERED.get(name, ())
    tensors = {argument: t for argument, t in given.items() if isinstance(t, torch.Tensor)}
    read = [_moved([tensors["out"]]) for argument in gathered if argument in tensors]
    read += [_moved([tensors[argument]]) for argument in REWRITTEN.get(name, ()) if argument in tensors]
    if name == "cross_entropy_rows" and _moved([tensors["logits"][:ROWS_AT_A_TIME]]) > L2:
        read.append(_moved([tensors["logits"]]))  # a row's second time is from memory, too
    return _moved(t for argument, t in tensors.items() if argument not in gathered) + sum(read)


def _tile_reaches(name: str, given: dict) -> float:
    """What of REACHED is left to an own product of large matrices at its tile, as to cuBLAS'."""
    if not name.startswith(("linear_", "cross_entropy_")) or not {"BM", "BN"} <= set(given):
        return 1.0
    return next((share for rows, columns, share in TILES if given["BM"] >= rows and given["BN"] >= columns), TILES[-1][2])


def _moved(tensors) -> int:
    """Bytes of tensors, each once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())
