"""The short convolution against its reference."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, check, each, make_case, run, same_bits_at_any_threads, streams_stand_alone

from dynadapt import _C
from dynadapt.bench.cases.short_convolution import short_convolution_backward, short_convolution_forward

OPS = [short_convolution_forward, short_convolution_backward]
# streams, segment, channels, width, whether streams go on from a state
SIZES = [(1, 1, 5), (2, 63, 20), (3, 100, 64), (2, 3, 17, 4), (1, 5, 33, 1), (2, 40, 16, 7, False)]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(short_convolution_backward, [(2, 63, 20, 4, True, False)])
def test_backward_to_the_input_alone(case):
    check(case)


@pytest.mark.parametrize("lengths", [(0, 5), (2, 1)])
@each(OPS, [(2, 5, 20)])
def test_lengths(case, lengths):
    check(case.change(lengths=torch.tensor(lengths, dtype=torch.int32)))


@each(OPS, [(3, 100, 37)])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


@each(short_convolution_forward, [(4, 30, 37)])
def test_streams(case):
    streams_stand_alone(case)
    a_bad_stream_stays_alone(case.change(final=None))  # which has the segment's last rows alone


@each(short_convolution_backward, [(4, 30, 37, 4, True, False)])
def test_streams_backward(case):
    streams_stand_alone(case)
    a_bad_stream_stays_alone(case)


@each(short_convolution_forward, [(1, 20, 37)])
def test_later_tokens_change_no_bit(case):
    later = case["x"].clone()
    later[8:] = float("nan")
    assert torch.equal(run(case)["y"][:8], run(case.change(x=later))["y"][:8])


def test_errors_name_the_argument():
    good = make_case(short_convolution_forward, (2, 6, 5)).arguments
    call = lambda **change: _C.short_convolution_forward(**{**good, **change})  # noqa: E731
    call()
    with pytest.raises(ValueError, match=r"short_convolution_forward: weight has shape \[4, 4\], accepted is \[5, any\]"):
        call(weight=torch.zeros(4, 4))
    with pytest.raises(ValueError, match=r"weight has 0 columns, accepted is 1 to"):
        call(weight=torch.zeros(5, 0), state=None)
    with pytest.raises(ValueError, match=r"lengths\[0\] is 7, accepted is 0 to 6"):
        call(lengths=torch.tensor([7, 6], dtype=torch.int32))
