"""Matrices in int8: what goes in comes out as the reference rounds it, products are as near to float64 as the reference's, and the same
to the bit whatever the instruction set, VNNI or not, the threads, the rows and the streams."""

import math
import os
import subprocess
import sys

import pytest
import torch
from op_cases import check, each, rows_stand_alone, run, same_bits_at_any_threads, streams_stand_alone

from dynadapt import _C, Adam, Engine, LoRA, load
from dynadapt.bench.cases.cross_entropy import cross_entropy
from dynadapt.bench.cases.linear import linear_backward, linear_forward
from dynadapt.ops.int8 import Int8Matrix

from .engine_c import DTYPES as C_DTYPES
from .engine_c import SEGMENT, EngineC, Params, Refused, text, write

LAYERS = [linear_forward, linear_backward]


def layer(n, k, parts, rank, streams=1):
    return dict(n=n, k=k, parts=parts, rank=rank, streams=streams, base="int8")


def head(n, hidden, vocabulary, gradient=True, weights=True, spread=1.0):
    return dict(n=n, hidden=hidden, vocabulary=vocabulary, gradient=gradient, weights=weights, spread=spread, base="int8")


# N, K, parts, rank, streams: groups that end early, parts that end inside a group, panels of a few columns
SIZES = [
    layer(1, 5, (3,), 0),
    layer(1, 64, (32, 32), 4),
    layer(63, 65, (33, 7, 7), 3),
    layer(100, 96, (130,), 16, 2),
    layer(126, 577, (64, 31), 33, 3),
    layer(256, 192, (96, 64, 64), 16),
]


@each(LAYERS, SIZES)
def test_layers_against_reference(case):
    check(case)


@each(cross_entropy, [head(1, 5, 3), head(63, 33, 256), head(100, 65, 257, weights=False), head(77, 130, 1283, spread=20.0)])
def test_score_and_gradient(case):
    check(case)


@each(cross_entropy, [head(70, 96, 1000)])
def test_score_alone_is_the_same_score(case):
    both, alone = run(case), run(case.change(dh=None))
    assert torch.equal(both["nll"], alone["nll"]) and torch.equal(both["lse"], alone["lse"])


@each(LAYERS, [layer(111, 77, (65, 40), 5, 3)])
def test_streams_batched_equal_streams_alone(case):
    streams_stand_alone(case)


@each(LAYERS, [layer(100, 96, (130, 9), 16, 2)])
def test_threads_change_no_bit_of_layers(case):
    same_bits_at_any_threads(case)


@each(cross_entropy, [head(150, 65, 1111)])
def test_threads_change_no_bit_of_scores(case):
    same_bits_at_any_threads(case)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(LAYERS, [layer(60, 97, (33, 40), 8, 2), layer(60, 97, (33, 40), 0, 2)])
def test_a_bad_row_stays_alone(case, bad):
    rows_stand_alone(case, value=bad, parts=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@each(cross_entropy, [head(60, 33, 600)])
def test_a_bad_score_stays_alone(case, bad):
    rows_stand_alone(case, value=bad)


@each(linear_backward, SIZES[3:4])
def test_backward_without_dx_gives_the_same_dU(case):
    assert torch.equal(run(case)["dU"], run(case.change(dx=None))["dU"])


def extremes(n: int, k: int) -> torch.Tensor:
    """Every product of a group is the largest there is, all of one sign."""
    return torch.full((n, k), 127.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_sum_saturates(sign):
    x, w, y = sign * extremes(7, 192), extremes(40, 192), torch.empty(7, 40)
    _C.linear_forward(x, [_C.PackedMatrix.int8(w, "float32")], None, None, None, None, 1.0, None, y)
    assert (y == sign * 192 * 127 * 127).all()
    dx = torch.empty(7, 192)
    _C.linear_backward(sign * extremes(7, 40), [_C.PackedMatrix.int8(w, "float32")], None, None, None, 1.0, None, dx)
    assert (dx == sign * 40 * 127 * 127).all()
    nll, lse = torch.empty(7), torch.empty(7)
    _C.cross_entropy(x, _C.PackedMatrix.int8(w, "float32"), torch.zeros(7, dtype=torch.int64), None, nll, lse, None)
    torch.testing.assert_close(lse, torch.full((7,), sign * 192 * 127 * 127 + math.log(40)), rtol=1e-6, atol=0)


# ---- the matrix


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (32, 64), (100, 63), (257, 130)])
def test_it_holds_what_the_reference_holds(shape, dtype):
    weight = torch.randn(shape)
    ours, plain = _C.PackedMatrix.int8(weight, str(dtype).removeprefix("torch.")), Int8Matrix(weight, dtype)
    assert ours.shape == shape and ours.dtype == str(dtype).removeprefix("torch.")
    a, b = torch.full(shape, float("nan"), dtype=dtype), torch.empty(shape, dtype=dtype)
    ours.unpack(a), plain.unpack(b)
    assert torch.equal(a, b)
    index = torch.randint(0, shape[0], (17,))
    rows = torch.full((17, shape[1]), float("nan"), dtype=dtype)
    ours.gather_rows(index, rows)
    assert torch.equal(rows, b[index])


def test_its_bytes():
    assert _C.PackedMatrix.int8(torch.zeros(64, 576), "bfloat16").nbytes == 64 * 576 * (1 + 4 / 64)


def test_errors_name_the_argument():
    matrix = _C.PackedMatrix.int8(torch.zeros(4, 6), "float32")
    with pytest.raises(ValueError, match=r"PackedMatrix.int8: weight has dtype bfloat16, accepted is float32"):
        _C.PackedMatrix.int8(torch.zeros(4, 6).bfloat16(), "float32")
    with pytest.raises(ValueError, match=r"PackedMatrix.int8: dtype is float64, accepted is float32, bfloat16"):
        _C.PackedMatrix.int8(torch.zeros(4, 6), "float64")
    with pytest.raises(ValueError, match=r"weight has shape \[0, 6\]"):
        _C.PackedMatrix.int8(torch.zeros(0, 6), "float32")
    with pytest.raises(ValueError, match=r"update_rows: matrix is stored as int8"):
        matrix.update_rows(None, torch.zeros(4, 6))
    x, y = torch.zeros(2, 6), torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"parts\[1\] is stored as float32 and parts\[0\] as int8, accepted is int8 for all or none"):
        _C.linear_forward(x, [matrix, _C.PackedMatrix(torch.zeros(4, 6))], None, None, None, None, 1.0, None, y)
    with pytest.raises(ValueError, match=r"parts\[0\] has dtype float32, accepted is that of the activations, bfloat16"):
        _C.linear_forward(x.bfloat16(), [matrix], None, None, None, None, 1.0, None, y[:, :4].bfloat16())
    with pytest.raises(ValueError, match=r"cross_entropy_weight_gradient: head is stored as int8"):
        _C.cross_entropy_weight_gradient(x, matrix, torch.zeros(2, dtype=torch.int64), None, torch.zeros(2), torch.zeros(4, 6), False)


# ---- the same bits on every instruction set, with VNNI and without

DIGEST = """
import hashlib, sys
import numpy as np
from dynadapt import _C
draw = np.random.default_rng(0)
found = hashlib.sha256()
for n, k, parts in ((1, 5, (3,)), (63, 65, (33, 7)), (70, 192, (130, 64)), (13, 577, (96,))):
    x, dy = (draw.standard_normal((n, w)).astype(np.float32) for w in (k, sum(parts)))
    held = [_C.PackedMatrix.int8(draw.standard_normal((p, k)).astype(np.float32), "float32") for p in parts]
    y, dx = np.full_like(dy, np.nan), np.full_like(x, np.nan)
    _C.linear_forward(x, held, None, None, None, None, 1.0, None, y)
    _C.linear_backward(dy, held, None, None, None, 1.0, None, dx)
    found.update(y.tobytes() + dx.tobytes())
    nll, lse, targets = np.empty(n, np.float32), np.empty(n, np.float32), draw.integers(0, parts[0], n)
    _C.cross_entropy(x * np.float32(1e6), held[0], targets, None, nll, lse, None)  # one logit is all there is of the sum
    found.update(nll.tobytes() + lse.tobytes())
print(_C.isa(), int(_C.vnni()), found.hexdigest())
"""


def digest(**changes):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **changes}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, timeout=100)
    return done.stdout.split(), done.stderr


def test_instruction_sets_change_no_bit():
    """Integer sums are exact and the sums of groups have one order and one rounding each."""
    order = ["avx512_bf16", "avx512", "avx2", "portable"]
    expected, _ = digest()
    for isa in order[order.index(_C.isa()) :]:
        for vnni in {"0", expected[1] if isa == expected[0] else "0"}:
            found, error = digest(DYNADAPT_CPU_ISA=isa, DYNADAPT_CPU_VNNI=vnni)
            assert found == [isa, vnni, expected[2]], (isa, vnni, found, error)
        found, error = digest(DYNADAPT_CPU_ISA=isa)  # AVX-VNNI too, where the processor has it
        assert found[2] == expected[2], (isa, found, error)


def test_a_wrong_wish_for_vnni_is_an_import_error():
    _, error = digest(DYNADAPT_CPU_VNNI="yes")
    assert 'DYNADAPT_CPU_VNNI is "yes"' in error and "accept 0" in error


# ---- the C engine


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_c_engine_scores_as_the_python_engine(tmp_path, family, dtype):
    directory = write(tmp_path / "model", family)
    adapt, adam = LoRA(rank=3, alpha=6.0), Adam(lr=3e-3)
    python = Engine(load(str(directory)), adapt=adapt, optimizer=adam, segment=SEGMENT, dtype=dtype, backend="cpu", base="int8", seed=5)
    options = dict(dtype=C_DTYPES[dtype], segment=SEGMENT, rank=3, alpha=6.0, seed=5, lr=3e-3)
    ours, plain = EngineC(directory, base=1, **options), EngineC(directory, **options)
    assert ours.info.bytes < plain.info.bytes
    for i in range(3):
        tokens = text(1, SEGMENT + 1, python.config.vocab_size, seed=i)
        assert torch.equal(ours.step(tokens), python.step(tokens))


def test_a_wrong_base_of_the_c_engine_is_named(tmp_path):
    with pytest.raises(Refused, match=r"base is 2, accepted is 0 \(same\) or 1 \(int8\)"):
        EngineC(tmp_path, base=2)


def test_callers_that_do_not_know_the_base_go_on(tmp_path):
    directory = write(tmp_path / "model")
    options = dict(dtype=C_DTYPES["fp32"], segment=SEGMENT, rank=0)
    older, now = EngineC(directory, struct_size=Params.base.offset, **options), EngineC(directory, **options)
    tokens = text(1, SEGMENT + 1, now.info.vocabulary)
    assert torch.equal(older.step(tokens), now.step(tokens))
