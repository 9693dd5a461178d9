"""Calls of a case: its outputs from any implementation, and how they are held against the float64 reference."""

from __future__ import annotations

import torch

from dynadapt.ops import QuantisedWeight, make_int8_matrix, make_matrix, make_parts, make_quantised, resolve

from .base import OpCase, convert, copy, named_tensors

# Allowed beyond torch's own error, in units of the largest true value: (largest error, root mean square). cpu in float32: its sums are
# one chain over K, torch's are several; in bfloat16: half of one rounding. Triton's tiles are summed in an order of their own.
TOLERANCE = {
    "cpu": {torch.float32: (2e-6, 3e-7), torch.bfloat16: (2.0**-10, 2.0**-13)},
    "triton": {torch.float32: (4e-6, 6e-7), torch.bfloat16: (2.0**-9, 2.0**-12)},
}


def materialise(case: OpCase, backend: str, dtype: torch.dtype | None = None, device=None) -> list:
    """The arguments of one call, all of them copies. ``dtype``: the case's, or float64 for the truth: then float32 is widened, too."""
    wanted = dtype or case.dtype

    def make(t):
        return copy(t, torch.float64 if wanted == torch.float64 and t.is_floating_point() else t.dtype, device)

    def kept(weight):
        if not isinstance(weight, QuantisedWeight):
            return make_int8_matrix(weight, backend, wanted)
        # in float64, too, a product sees the values that the case's dtype has
        return make_quantised(weight, wanted) if backend == "cpu" else make_matrix(weight.dequantise().to(case.dtype), backend, wanted)

    def frozen(weights):
        if case.base != "same":
            return [kept(w) for w in weights] if isinstance(weights, list) else kept(weights)
        if isinstance(weights, torch.Tensor):
            return make_matrix(weights, backend, wanted, device or weights.device)
        return make_parts(weights, backend, wanted, device or weights[0].device)

    return [frozen(v) if name in case.about.frozen else convert(v, make) for name, v in case.arguments.items()]


def run(case: OpCase, backend: str, dtype: torch.dtype | None = None, device=None, function=None) -> dict[str, torch.Tensor]:
    """The outputs of one call by name; ``function``: not the one that the backend resolves to."""
    call = materialise(case, backend, dtype, device)
    (function or resolve(case.op, backend, dtype or case.dtype).function)(*call)
    return written(case, call)


def written(case: OpCase, call: list) -> dict[str, torch.Tensor]:
    """The outputs among a call's arguments, by name."""
    by_name = dict(zip(case.arguments, call))
    return {key: t for name in case.about.outputs for key, t in named_tensors(name, by_name[name]).items()}


def after_reference(case: OpCase, backend: str = "reference") -> dict:
    """All arguments by name as a call leaves them: what a backward op is given. Frozen weights stay plain tensors."""
    call = materialise(case, backend)
    resolve(case.op, backend, case.dtype).function(*call)
    return {name: value if name in case.about.frozen else made for (name, value), made in zip(case.arguments.items(), call)}


def _allowed(backend: str, dtype: torch.dtype, count: int) -> dict[str, float]:
    largest, rms = TOLERANCE[backend][dtype]
    if backend == "triton":  # the root mean square of a few values is not far from the largest of them
        rms = min(largest, rms * (1 + 8 / count**0.5))
    return {"largest": largest, "rms": rms}


NORMS = {"largest": lambda e: e.abs().max().item(), "rms": lambda e: e.square().mean().sqrt().item()}


def check(case: OpCase, backend: str, device=None, function=None) -> tuple[dict[str, torch.Tensor], float]:
    """The outputs, and the largest relative error among them (2-norm, against float64); ``function`` as in ``run``.

    Raises:
        AssertionError: an output is not finite, or further from float64 than plain torch in the same dtype is, plus the tolerance.
    """
    ours = run(case, backend, case.dtype, device, function)
    plain, truth = (run(case, "reference", dtype, device) for dtype in (case.dtype, torch.float64))
    worst = 0.0
    for name, t in truth.items():
        o, p, of = ours[name], plain[name], f"{case.op} {case.label}: {name}".replace(" :", ":")
        if not t.is_floating_point():
            assert torch.equal(o, t), f"{of} differs from the reference's"
            continue
        if not t.numel():
            continue
        assert torch.isfinite(o).all(), f"{of} has values that are not finite"
        scale = t.abs().max().item()
        kept = o.dtype if "." in name else case.dtype  # a state's float32 is as near to the truth beside bfloat16 as without it
        for kind, tolerance in _allowed(backend, kept, t.numel()).items():
            error, bound = NORMS[kind](o.double() - t), NORMS[kind](p.double() - t) + case.slack * tolerance * scale
            assert error <= bound, f"{of} is off by {error:.3g} ({kind}), plain torch allows {bound:.3g} (values to {scale:.3g})"
        worst = max(worst, ((o.double() - t).norm() / t.norm().clamp(min=1e-300)).item())
    return ours, worst


def agrees(case: OpCase, backend: str, device=None, function=None) -> float | None:
    """The largest relative difference (2-norm) to the plain reference in the same dtype. None where that does not fit in memory.

    Raises:
        AssertionError: it is more than rounding.
    """
    ours = run(case, backend, case.dtype, device, function)
    try:
        plain = run(case, "reference", case.dtype, device)
    except torch.OutOfMemoryError:
        return None
    limit, worst = 0.03 if case.dtype == torch.bfloat16 else 1e-4, 0.0
    for name, p in plain.items():
        difference = ((ours[name].float() - p.float()).norm() / p.float().norm().clamp(min=1e-30)).item()
        assert difference <= limit, f"{case.op} {case.label}: {name} differs from torch by {difference:.3g}"
        worst = max(worst, difference)
    return worst
