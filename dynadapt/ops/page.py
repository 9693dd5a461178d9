"""docs/ops.md out of the table of ops: ``python -m dynadapt.ops.page > docs/ops.md``."""

from __future__ import annotations

from pathlib import Path

from .table import CONDITIONS, OPS, Row

CASES = Path(__file__).resolve().parents[1] / "bench" / "cases"

HEAD = """# Every op

One row an op, printed from [the table](../dynadapt/ops/table.py) by `python -m dynadapt.ops.page > docs/ops.md`. [Adding an op](op.md)
goes through a row's columns from left to right. N rows are S streams of T tokens; multiply-adds count two FLOPs, and "none" is what
torch's `FlopCounterMode` counts for sums and elementwise work. Bytes are counted by the case: each input read once, each output written
once.

| op | mathematics | contract, reference | CPU | GPU | case | FLOPs | called in | when | torch | JAX |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def _link(text: str, path: str) -> str:
    return f"[{text}](../{path})"


def _case(op: str) -> str:
    """The file that makes the op's cases."""
    for path in sorted(CASES.glob("*.py")):
        if f"\ndef {op}(" in path.read_text():
            return path.name
    raise ValueError(f"op {op!r} has no case: expected a function of its name in {CASES}")


def _cells(row: Row) -> list[str]:
    cpu = f"{_link('checks', f'csrc/cpu/{row.family}.cpp')}, {_link('kernel', f'csrc/cpu/kernels/{row.kernel or row.family}.cpp')}"
    formula = " ".join((row.formula.__doc__ or "").split("\n\n")[0].split()) if row.formula else "none"
    torch_ops = ", ".join(f"`{name}`" for name in row.torch_names)
    return [
        f"`{row.name}`",
        row.says,
        _link(f"`{row.family}.{row.name}`", f"dynadapt/ops/{row.family}.py"),
        cpu if row.native else "the reference",
        _link("Triton", f"kernels/{row.family}.py") if row.triton else "none",
        _link("case", f"dynadapt/bench/cases/{_case(row.name)}"),
        formula,
        row.used,
        "; ".join(CONDITIONS[c] for c in row.when) or "always",
        _link(torch_ops, f"dynadapt/interop/torch_ops/{row.family}.py") + (", differentiable" if row.derivative else ""),
        f"`dynadapt_{row.name}`" if row.jax else "none",
    ]


def page() -> str:
    """The page's text."""
    return HEAD + "".join(f"| {' | '.join(_cells(row))} |\n" for row in OPS.values())


if __name__ == "__main__":
    print(page(), end="")
