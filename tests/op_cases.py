"""Tests over the cases of dynadapt.bench.cases that are the same for every op and every backend.

The rule of ``check``: no further from the float64 reference than plain torch in the same dtype, plus a little. On a machine without a
GPU, Triton's kernels run in its interpreter at small odd sizes.
"""

import pytest
import torch

from dynadapt import _C
from dynadapt.bench import cases
from dynadapt.bench.cases import Draw, OpCase

DTYPES = [torch.float32, torch.bfloat16]


def each(makes, sizes, dtypes=DTYPES, **draw):
    """The test's ``case`` is every op of ``makes`` at every one of ``sizes`` (tuples, or dicts of names) in every dtype; ``draw``:
    how its arguments are drawn."""
    makes = makes if isinstance(makes, (list, tuple)) else [makes]
    short = lambda size: ",".join(map(str, size.values() if isinstance(size, dict) else size)).replace(" ", "")  # noqa: E731
    parameters = [
        pytest.param((make, size, dtype, draw), id=f"{make.__name__}-{short(size)}-{str(dtype).removeprefix('torch.')}")
        for make in makes
        for size in sizes
        for dtype in dtypes
    ]
    return pytest.mark.parametrize("case", parameters, indirect=True)


def make_case(make, size, dtype=torch.float32, draw=None) -> OpCase:
    drawn = Draw(dtype, **(draw or {}))
    return make(drawn, **size) if isinstance(size, dict) else make(drawn, *size)


def run(case: OpCase, backend="cpu", dtype=None, device="cpu", function=None) -> dict:
    return {name: t.cpu() for name, t in cases.run(case, backend, dtype, device, function).items()}


def check(case: OpCase, backend="cpu", device="cpu") -> dict:
    return {name: t.cpu() for name, t in cases.check(case, backend, device)[0].items()}


def same_bits(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(t.nan_to_num(7), b[name].nan_to_num(7)) for name, t in a.items())


def same_bits_at_any_threads(case: OpCase) -> None:
    """One, two and five threads."""
    try:
        results = []
        for threads in (1, 2, 5):
            _C.set_num_threads(threads)
            results.append(run(case))
    finally:
        _C.set_num_threads(0)
    assert same_bits(results[0], results[1]) and same_bits(results[0], results[2]), case.op


def with_a_bad_row(case: OpCase, row: int, value=float("nan")) -> OpCase:
    """``value`` in one row of everything that the op reads."""
    for name in set(case.about.rows) - set(case.about.outputs):
        if isinstance(case[name], torch.Tensor) and case[name].is_floating_point():
            case = case.spoil(name, row, value)
    return case


def rows_stand_alone(case: OpCase, run=run, value=float("nan"), whole=True, parts=True) -> None:
    """A row's outputs have the same bits without the rows before or behind it, and when another row is not finite.

    whole: all outputs of the bad row are not finite, else only some; parts: False where rows alone may be summed in another order.
    """
    n, about = case.row_count, case.about
    bad, outputs = 2 * n // 5, [name for name in about.outputs if name in about.rows and case[name] is not None]
    clean, others = run(case), torch.arange(n) != bad
    for rows in (slice(0, bad), slice(bad, n), slice(n - 1, n)) if parts else ():
        alone = run(case.cut(rows))
        assert all(torch.equal(clean[name][rows], alone[name]) for name in outputs), (case.op, rows)
    dirty = run(with_a_bad_row(case, bad, value))
    for name in outputs:
        assert torch.equal(clean[name][others], dirty[name][others]), (case.op, name)
        finite = torch.isfinite(dirty[name][bad])
        assert not (finite.any() if whole else finite.all()), (case.op, name)


def of_stream(case: OpCase, outputs: dict, i: int) -> dict:
    """The outputs of one stream: its rows, its entry or its slot."""
    length, about = case.row_count // case.stream_count, case.about
    part = lambda name: (  # noqa: E731
        slice(i * length, (i + 1) * length) if name in about.rows else slice(i, i + 1) if name in about.streams else case["slots"][i].long()
    )
    return {name: t[part(name)] for name, t in outputs.items()}


def streams_stand_alone(case: OpCase, run=run, same=same_bits) -> None:
    """Each stream batched with the others has the bits of that stream alone."""
    together = run(case)
    for i in range(case.stream_count):
        alone = case.stream(i)
        assert same(of_stream(case, together, i), of_stream(alone, run(alone), 0)), (case.op, i)


def a_bad_stream_stays_alone(case: OpCase, run=run, value=float("nan")) -> None:
    """A row that is not finite is seen by all outputs of its own stream, the second, and by no other's."""
    clean, dirty = run(case), run(with_a_bad_row(case, case.row_count // case.stream_count + 10, value))
    for i in range(case.stream_count):
        a, b = of_stream(case, clean, i), of_stream(case, dirty, i)
        assert not any(torch.isfinite(t).all() for t in b.values()) if i == 1 else same_bits(a, b), (case.op, i)


def later_tokens_change_no_bit(case: OpCase, t: int, run=run) -> None:
    """Of a gated delta rule over one stream: outputs up to token t are the same whatever follows, and where nothing does."""
    draw, later = Draw(case.dtype, seed=1), {}
    for name in ("qkv", "g", "beta"):
        later[name] = case[name].clone()
        later[name][t + 1 :] = -5 * draw.wide(len(case[name]) - t - 1, later[name].shape[1]).abs()
    before, after, alone = run(case), run(case.change(**later)), run(case.cut(slice(0, t + 1)))
    assert torch.equal(before["out"][: t + 1], after["out"][: t + 1])
    assert torch.equal(before["out"][: t + 1], alone["out"])


def gates_at_their_ends(case: OpCase) -> OpCase:
    """Gates [9, 5] of steps that are as good as none, that a softplus by its definition would overflow at, and rates of 0 and 1."""
    ends = torch.tensor([-1e4, -80.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 80.0, 1e4])[:, None].expand(-1, 5).contiguous()
    return case.change(a=ends, b=ends.clone(), dt_bias=torch.zeros(5), a_log=torch.tensor([-9.0, -2.0, 0.0, 1.0, 2.8]))
