"""Compiles what a model's steps launch before any of them runs, on all cores: ``python -m benchmarks.gpu.ahead MODEL GPU ARCH MEMORY``.

One process after the other would compile for a minute or two, while the card waits. Here each of many goes through the ops of the steps
on tensors without memory, as Triton's launcher sees them, and compiles its share of the kernels into Triton's cache. None touches the card.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

from .campaign import child

MOST = 75.0  # seconds
PROCESSES = 16


def ahead(campaign, record, model: str, chosen: str) -> None:
    """Once for a model, the code and the choices on this machine. What fails or is cut is compiled where it is launched."""
    if campaign.device != "cuda":
        return
    gpu = record.data["environment"]["gpu"]
    mark = _mark(model, record.code, chosen)
    if mark.exists():
        return
    start = time.monotonic()
    major, minor = gpu["capability"]
    given = [model, gpu["name"], str(10 * major + minor), str(gpu["memory_bytes"]), str(gpu["multiprocessors"])]
    status, text = child([sys.executable, "-m", "benchmarks.gpu.ahead", *given], campaign.device, campaign.room(MOST))
    print(f"kernels compiled ahead: status {status}, {time.monotonic() - start:.0f} s; {text.strip()[-300:]}", flush=True)
    if status == 0:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(model: str, code: str, chosen: str) -> Path:
    """A file in Triton's cache, so that it is there as long as what was compiled."""
    from triton import knobs

    digest = hashlib.sha256(f"{model} {code} {chosen}".encode()).hexdigest()[:16]
    return Path(knobs.cache.dir) / f"dynadapt-ahead-{digest}"


class NoCard:
    """A driver for Triton that knows what card there is, and makes no context on it."""

    def __init__(self, arch: int):
        self.arch = arch

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def without_card(gpu: str, arch: int, memory: int, multiprocessors: int) -> None:
    """In this process Triton and torch know the card by its figures alone."""
    import torch
    from triton.runtime import driver

    driver.set_active(NoCard(arch))
    figures = SimpleNamespace(name=gpu, major=arch // 10, minor=arch % 10, total_memory=memory, multi_processor_count=multiprocessors)
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda device=None: gpu
    torch.cuda.get_device_capability = lambda device=None: (arch // 10, arch % 10)
    torch.cuda.get_device_properties = lambda device=None: figures


def compile_only(share: int, shares: int) -> dict:
    """Launches of this process launch nothing from now on; of the kernels that they need every ``shares``-th is compiled. {(name, key): compiled}."""
    from triton.runtime.jit import JITFunction

    run, compile_one, found = JITFunction.run, JITFunction._do_compile, {}

    def compiles(self, key, *rest, **more):
        one = self.__name__, key
        mine = found.setdefault(one, len(found) % shares == share)
        return compile_one(self, key, *rest, **more) if mine else None

    JITFunction._do_compile = compiles
    JITFunction.run = lambda self, *args, grid, warmup, **options: run(self, *args, grid=grid, warmup=True, **options)
    return found


def every_step(model: str, memory: int, of_shapes, forms) -> None:
    """Goes through the ops of the steps that the campaign measures, in each of the forms that their linears and head may have."""
    from dynadapt import Adam, LoRA, SegmentMemory
    from dynadapt.bench.plan.launches import call_kernels
    from dynadapt.kernels import choices

    from .geometry import MODELS
    from .step_worker import ALPHA, LR, RANK, batch_that_fits

    for form in forms:
        for streams, segment in of_shapes:
            batch = batch_that_fits(model, streams, segment, memory)
            with choices.force(form):
                step = (MODELS[model], LoRA(RANK, ALPHA), Adam(lr=LR), SegmentMemory(segment, 0), streams, segment)
                call_kernels(*step, batch=batch, memory_only=True)


def _worker(share: int, shares: int, model: str, memory: int) -> tuple[int, int]:
    from .geometry import shapes

    found = compile_only(share, shares)
    every_step(model, memory, shapes(model == "tiny"), (None, "fused", "split"))
    return sum(found.values()), len(found)


def main(model: str, gpu: str, arch: str, memory: str, multiprocessors: str) -> None:
    without_card(gpu, int(arch), int(memory), int(multiprocessors))
    import dynadapt.bench.plan.launches  # noqa: F401  before the processes part

    count = min(PROCESSES, os.cpu_count() or 1)
    with get_context("fork").Pool(count) as pool:  # nothing here has a context on the card
        made = pool.starmap(_worker, [(i, count, model, int(memory)) for i in range(count)])
    print(f"{sum(compiled for compiled, _ in made)} of {made[0][1]} kernels by {count} processes")


if __name__ == "__main__":
    main(*sys.argv[1:])
