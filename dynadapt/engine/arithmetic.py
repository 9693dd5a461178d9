"""Which arithmetic a step is done in where nothing was said: the fastest here of those that are at least as exact.

docs/defaults.md has the measurements.
"""

from __future__ import annotations

import importlib.util

import torch

from dynadapt.ops import choose_device

# By instruction set in use: dtype, and why. bf16 is where the processor multiplies it; elsewhere each number is widened before it is
# multiplied, which takes longer and is less exact, and only halves the memory of frozen weights.
ON_A_CPU = {
    "avx512_bf16": ("bf16", "about twice as fast here as fp32: AVX512-BF16"),
    "neon": ("fp32", "more exact; no 64-bit Arm processor was timed"),
    "portable": ("fp32", "more exact; the portable kernels were not timed"),
}
WITHOUT_BF16 = ("fp32", "faster and more exact here: no AVX512-BF16")


def fastest(device: str | torch.device = "auto", backend: str = "auto", isa: str | None = None) -> tuple[str, str]:
    """(dtype, why) of what is fastest where a step would run, of those that are exact enough: "bf16" or "fp32".

    isa: instead of the instruction set in use, where native kernels would run.
    """
    if choose_device(device, backend, torch.bfloat16).type == "cuda":
        return "bf16", "what a GPU's products are made for"
    if backend == "reference":
        return "fp32", "more exact; the plain reference is for checks"
    if backend == "triton":
        return "fp32", "more exact; Triton's interpreter is for checks"
    if importlib.util.find_spec("dynadapt._C") is None:
        return "fp32", "the native kernels are not built"
    from dynadapt import _C

    return ON_A_CPU.get(isa or _C.isa(), WITHOUT_BF16)


def stored(dtype: str, device: str | torch.device = "auto", backend: str = "auto") -> str:
    """What bf16 is where the processor does not multiply it and `fastest` would choose fp32: "" otherwise."""
    on_cpu = backend in ("auto", "cpu") and choose_device(device, backend, torch.bfloat16).type == "cpu"
    if dtype != "bf16" or not on_cpu or fastest(device, backend)[0] == "bf16":
        return ""
    from dynadapt import _C

    slower = ", slower than fp32" if _C.isa() in ("avx2", "avx512") else ""
    return f"stored in bf16, multiplied in float32: half the memory of weights{slower}"


def why(dtype: str, device: str | torch.device = "auto", backend: str = "auto") -> str:
    """What is to be known of a dtype here: why it is the one that is chosen by itself, or what it is instead; "" for others."""
    chosen, reason = fastest(device, backend)
    return reason if dtype == chosen else stored(dtype, device, backend)
