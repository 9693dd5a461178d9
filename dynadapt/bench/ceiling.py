"""The machine's matrix-product ceiling, measured where and when it is used.

A share of the ceiling says how much of the machine a step gets out of it. The ceiling is the best of the
providers present (ours and torch's) over a few large shapes, so that neither a slow library nor a slow
kernel of ours flatters the share.
"""

from __future__ import annotations

import time

import torch

from dynadapt.ops.dispatch import native_module

# M, N, K: large enough that edges and packing don't count, small enough for the caches of a desktop.
SHAPES = ((1024, 1024, 1024), (512, 3072, 576), (1024, 2048, 768))


def native_product(M: int, N: int, K: int, dtype: torch.dtype):
    """A call that computes y [M, N] = x W^T with the packed kernels."""
    native = native_module()
    x, y = torch.randn(M, K).to(dtype), torch.empty(M, N, dtype=dtype)
    weight = native.PackedMatrix(torch.randn(N, K).to(dtype))
    return lambda: native.linear_forward(x, [weight], None, None, None, None, 1.0, None, y)


def torch_product(M: int, N: int, K: int, dtype: torch.dtype):
    """The same with torch.mm."""
    x, y, weight = torch.randn(M, K).to(dtype), torch.empty(M, N, dtype=dtype), torch.randn(N, K).to(dtype)
    return lambda: torch.mm(x, weight.t(), out=y)


def gemm_ceiling(dtype: torch.dtype, threads: int, seconds: float = 1.0) -> dict:
    """Best GFLOP/s of a large product in ``dtype`` on ``threads`` threads, and who reached it.

    Providers and shapes take turns for about ``seconds``; the best single run counts, since anything that
    disturbs a run only makes it slower. Returns {"gflops", "provider", "shape"}.
    """
    native = native_module()
    clock = time.thread_time if threads == 1 else time.perf_counter  # one thread: undisturbed by other processes
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    native.set_num_threads(threads)
    try:
        calls = [(provider.__name__, shape, provider(*shape, dtype)) for shape in SHAPES for provider in (native_product, torch_product)]
        best = {"gflops": 0.0, "provider": None, "shape": None}
        end, rounds = time.perf_counter() + seconds, 0
        while rounds < 3 or time.perf_counter() < end:
            for name, (M, N, K), call in calls:
                start = clock()
                call()
                rate = 2e-9 * M * N * K / (clock() - start)
                if rounds and rate > best["gflops"]:  # the first round warms up
                    best = {"gflops": rate, "provider": name.removesuffix("_product"), "shape": [M, N, K]}
            rounds += 1
        return best
    finally:
        native.set_num_threads(0)
        torch.set_num_threads(before)


def instruction_peak(dtype: torch.dtype, threads: int, seconds: float = 0.3) -> float:
    """GFLOP/s of a register-only loop of the instructions that products in ``dtype`` are made of, on ``threads`` threads.

    What no program of this instruction set exceeds, whereas a ceiling is only as good as the library that reached it. The best of
    several runs of about ``seconds`` / 4 counts.
    """
    native, bf16 = native_module(), dtype == torch.bfloat16
    native.set_num_threads(threads)
    try:
        repetitions, took, best = 10_000, 0.0, 0.0
        end = time.perf_counter() + seconds
        while took < seconds / 4 or time.perf_counter() < end:
            start = time.perf_counter()
            flops = native.peak_flops(bf16, repetitions)
            took = time.perf_counter() - start
            best = max(best, flops / took / 1e9)
            repetitions = repetitions if took >= seconds / 4 else 2 * repetitions
        return best
    finally:
        native.set_num_threads(0)
