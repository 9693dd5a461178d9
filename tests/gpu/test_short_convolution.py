"""The short convolution against its reference."""

import pytest
import torch
from op_cases import make_case, same_bits, streams_stand_alone

from dynadapt.bench.cases.short_convolution import short_convolution_backward, short_convolution_forward
from dynadapt.kernels import short_convolution as kernels

from .compare import check, each, real_sizes, run

OPS = [short_convolution_forward, short_convolution_backward]
SIZES = [(1, 1, 5), (2, 9, 20), (2, 3, 17, 4), (1, 5, 133, 1)]  # streams, segment, channels, width
REAL = [(4, 512, 8192), (3, 1000, 100)]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(short_convolution_backward, [(1, 20, 20, 2, False)], [torch.float32])
def test_few_programs_sum_many_tiles(case, monkeypatch):
    monkeypatch.setattr(kernels, "PROGRAMS", 2)
    assert same_bits(check(case), run(case))


@each(OPS, [(2, 5, 20)], [torch.float32])
def test_lengths(case):
    check(case.change(lengths=torch.tensor((0, 2), dtype=torch.int32)))


@each(short_convolution_forward, [(2, 9, 20)])
def test_streams(case):
    streams_stand_alone(case, run)


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"short_convolution_forward: weight has shape \[4, 4\], accepted is \[5, any\]"):
        run(make_case(short_convolution_forward, (1, 6, 5)).change(weight=torch.zeros(4, 4)))


@real_sizes(OPS, REAL)
def test_real_sizes(case):
    check(case)
