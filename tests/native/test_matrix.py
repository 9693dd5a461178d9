"""PackedMatrix: what goes in comes out, whole or by rows, and errors name what is wrong."""

import pytest
import torch

from dynadapt import _C

SHAPES = [(1, 1), (3, 5), (32, 32), (100, 63), (257, 130)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_round_trip(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    matrix = _C.PackedMatrix(weight)
    assert matrix.shape == shape
    assert matrix.dtype == str(dtype).removeprefix("torch.")
    out = torch.full(shape, float("nan"), dtype=dtype)
    matrix.unpack(out)
    assert torch.equal(out, weight)

    index = torch.randint(0, shape[0], (17,))
    rows = torch.full((17, shape[1]), float("nan"), dtype=dtype)
    matrix.gather_rows(index, rows)
    assert torch.equal(rows, weight[index])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_update_rows(dtype):
    weight = torch.randn(70, 33).to(dtype)
    matrix = _C.PackedMatrix(weight)
    rows = torch.tensor([69, 0, 31, 32], dtype=torch.int32)
    values = torch.randn(4, 33)
    matrix.update_rows(rows, values)
    weight[rows.long()] = values.to(dtype)
    out = torch.empty_like(weight)
    matrix.unpack(out)
    assert torch.equal(out, weight)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_update_of_all_rows(shape, dtype, threads):
    matrix, values, out = _C.PackedMatrix(torch.zeros(shape, dtype=dtype)), torch.randn(shape), torch.empty(shape, dtype=dtype)
    values.view(-1)[0] = 1e-39  # not normal, and kept all the same
    _C.set_num_threads(threads)
    try:
        matrix.update_rows(None, values)
    finally:
        _C.set_num_threads(0)
    matrix.unpack(out)
    assert torch.equal(out, values.to(dtype))


def test_storage_stays_in_its_dtype():
    assert _C.PackedMatrix(torch.zeros(64, 64, dtype=torch.bfloat16)).nbytes == 64 * 64 * 2


def test_errors_name_the_argument():
    matrix = _C.PackedMatrix(torch.zeros(4, 6))
    with pytest.raises(ValueError, match=r"PackedMatrix: weight has dtype .*accepted is float32 or bfloat16"):
        _C.PackedMatrix(torch.zeros(4, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"weight has strides"):
        _C.PackedMatrix(torch.zeros(4, 6).t())
    with pytest.raises(ValueError, match=r"out has shape \[4, 5\], accepted is \[4, 6\]"):
        matrix.unpack(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"index\[1\] is 4, accepted is 0 to 3"):
        matrix.gather_rows(torch.tensor([0, 4]), torch.zeros(2, 6))
    with pytest.raises(ValueError, match="accepted is a tensor"):
        matrix.unpack([1.0])
