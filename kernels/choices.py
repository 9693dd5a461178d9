"""Which of an op's two forms serves a shape: a table of measurements, looked up by the GPU's name.

``choices.json`` is {GPU name: [{op, rows, k, o, rank, form, fused_ms, split_ms, cublas_only_ms}]}, rows being a power of
two. It holds only what was measured; `python benchmarks/gpu_campaign.py choices` writes it. A shape that is not in it is served by
"split", whose matrix products are cuBLAS's, but for linear groups so small that launches decide (``unmeasured``).
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

FORMS = ("fused", "split")
# Operations of a product up to which the fused form wins. On an H200 it does in each group measured up to 4.3e9 (of SmolLM2-135M at 512 and
# 4,096 rows, of Llama-3.2-1B at 512), in two of four at 4.5e9 and 6.4e9, and in none above where it joins no activation.
SMALL = 4.4e9
FAR = 2  # doublings of the rows beyond which a measurement says nothing: a form that wins at 512 rows may lose at 32,768
TABLE = Path(__file__).with_name("choices.json")
_forced: str | None = None


def rows_bucket(rows: int) -> int:
    """The power of two that covers ``rows``: under this number the table keeps them."""
    return 1 << max(0, rows - 1).bit_length()


@cache
def gpu_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


@cache
def _measured(gpu: str) -> dict[tuple, dict[int, str]]:
    """(op, k, o, rank) -> {rows: form} for one GPU."""
    table: dict[tuple, dict[int, str]] = {}
    for entry in json.loads(TABLE.read_text("utf-8")).get(gpu, []):
        if entry["form"] not in FORMS:
            raise ValueError(f"{TABLE.name}: form {entry['form']!r} of {entry}, accepted is one of {FORMS}")
        table.setdefault((entry["op"], entry["k"], entry["o"], entry["rank"]), {})[entry["rows"]] = entry["form"]
    return table


def unmeasured(rows: int, k: int, o: int, rank: int, dtype: torch.dtype, arch: int) -> str:
    """The form of a linear group where nothing was measured: "fused" for adapters on a small product in bfloat16 on tensor cores that
    ``SMALL`` is for (``arch``: tiles.generation), else "split"."""
    small = rank > 0 and dtype == torch.bfloat16 and arch >= 90 and 2 * rows * k * o <= SMALL
    return "fused" if small else "split"


def choose(op: str, rows: int, k: int, o: int, rank: int, dtype: torch.dtype, otherwise: str = "split") -> str:
    """ "fused" or "split" for ``rows`` rows of a k -> o layer with adapters of ``rank`` (0: none): the form of the nearest
    measured number of rows of the same layer on this GPU; ``otherwise`` where none was measured, or none within a factor of 2 ** ``FAR``, and in
    another ``dtype`` than bfloat16, which is what is measured."""
    if _forced is not None:
        return _forced
    by_rows = _measured(gpu_name()).get((op, k, o, rank))
    if not by_rows or dtype != torch.bfloat16:
        return otherwise
    bucket = rows_bucket(rows).bit_length()
    away, nearest = min((abs(measured.bit_length() - bucket), measured) for measured in by_rows)
    return by_rows[nearest] if away <= FAR else otherwise


def reason(op: str) -> str:
    """For ``Engine.explain``: where the choice for ``op`` comes from."""
    if _forced is not None:
        return f"{_forced} form, forced"
    forms = [form for key, by_rows in _measured(gpu_name()).items() if key[0] == op for form in by_rows.values()]
    small = f"fused form up to {SMALL / 1e9:g} GFLOP in bf16, else " if op.startswith("linear") else ""
    if not forms:
        return f"{small}split form (this GPU has not been measured: python benchmarks/gpu_campaign.py choices)"
    return f"fused at {forms.count('fused')} of {len(forms)} measured shapes, split at the others; of unmeasured ones {small}split form"


def reload() -> None:
    """Read the table again, after the campaign has written to it."""
    _measured.cache_clear()


@contextmanager
def force(form: str | None):
    """Every choice is ``form`` inside this context (tests, measurements). None leaves the choice to the table."""
    global _forced
    if form is not None and form not in FORMS:
        raise ValueError(f"choices.force: form={form!r}, accepted is one of {FORMS} or None")
    previous, _forced = _forced, form
    try:
        yield
    finally:
        _forced = previous
