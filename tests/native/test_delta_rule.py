"""The gated delta rule against its reference, the recurrence: odd sizes, shared key heads, states, lengths, batching, threads, causality."""

import pytest
import torch
from op_cases import (
    a_bad_stream_stays_alone,
    check,
    each,
    later_tokens_change_no_bit,
    make_case,
    same_bits_at_any_threads,
    streams_stand_alone,
)

from dynadapt import _C
from dynadapt.bench.cases.delta_rule import delta_rule_backward, delta_rule_forward

OPS = [delta_rule_forward, delta_rule_backward]
# streams, segment, key heads, value heads, key size, value size, whether streams go on from a state
SIZES = [(1, 1, 1, 1, 4, 4), (2, 63, 2, 2, 16, 8), (3, 100, 2, 4, 20, 17), (1, 130, 1, 3, 64, 48), (2, 70, 1, 1, 33, 65, False)]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(OPS, [(1, 129, 1, 1, 128, 128)], [torch.float32])
def test_at_the_size_of_models(case):
    check(case)


@each(OPS, [(1, 70, 1, 2, 8, 8)])
@pytest.mark.parametrize("g,beta", [(-300.0, 1.0), (-1e6, 0.5), (0.0, 0.0), (0.0, 1.0)])
def test_gates_at_their_ends(case, g, beta):
    """Decays beside which all before is nothing, no decay, no write, a whole one; between others that are mild."""
    gates = case["g"].clone(), case["beta"].clone()
    for gate, value in zip(gates, (g, beta)):
        gate[::3] = value
    check(case.change(g=gates[0], beta=gates[1]))


@pytest.mark.parametrize("lengths", [(0, 5), (70, 64)])
@each(OPS, [(2, 70, 1, 2, 8, 12)])
def test_lengths(case, lengths):
    check(case.change(lengths=torch.tensor(lengths, dtype=torch.int32)))


@each(OPS, SIZES[2:4])
def test_threads_change_no_bit(case):
    same_bits_at_any_threads(case)


@each(OPS, [(5, 70, 2, 4, 20, 12)])
def test_streams_batched_equal_streams_alone(case):
    streams_stand_alone(case)


@each(OPS, [(3, 50, 2, 2, 20, 12)])
def test_a_bad_stream_stays_alone(case):
    a_bad_stream_stays_alone(case)


@pytest.mark.parametrize("t", [0, 11, 63, 64, 127, 128])
@each(delta_rule_forward, [(1, 150, 1, 2, 20, 12)])
def test_later_tokens_change_no_bit(case, t):
    later_tokens_change_no_bit(case, t)


def test_errors_name_the_argument():
    good = make_case(delta_rule_forward, (2, 6, 2, 4, 8, 5)).arguments
    call = lambda **change: _C.delta_rule_forward(**{**good, **change})  # noqa: E731
    call()
    with pytest.raises(ValueError, match=r"delta_rule_forward: hv is 3, accepted is a multiple of hk, 2"):
        call(hv=3)
    with pytest.raises(ValueError, match=r"dk is 0, accepted is 1 to"):
        call(dk=0)
    with pytest.raises(ValueError, match=r"qkv has shape \[12, 50\], accepted is \[any, 52\]"):
        call(qkv=torch.zeros(12, 50))
    with pytest.raises(ValueError, match=r"lengths\[1\] is 7, accepted is 0 to 6"):
        call(lengths=torch.tensor([6, 7], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"slots\[1\] is 4, accepted is 0 to 3"):
        call(slots=torch.tensor([0, 4], dtype=torch.int32))
    with pytest.raises(ValueError, match=r"slots has 5 entries for 12 rows"):
        call(slots=torch.zeros(5, dtype=torch.int32))
