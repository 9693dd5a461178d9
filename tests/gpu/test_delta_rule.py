"""The gated delta rule against its reference, the recurrence: odd sizes, shared key heads, states, lengths, groups of streams, causality."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, later_tokens_change_no_bit, make_case, same_bits, streams_stand_alone

from dynadapt.bench.cases.delta_rule import delta_rule_backward, delta_rule_forward
from dynadapt.kernels import delta_rule as kernels
from dynadapt.kernels.common import Scratch, scratch_of
from dynadapt.ops import delta_scratch

from .compare import check, each, real_sizes, run

OPS = [delta_rule_forward, delta_rule_backward]
# streams, segment, key heads, value heads, key size, value size, whether streams go on from a state
SIZES = [(1, 1, 1, 1, 4, 4), (2, 63, 2, 2, 16, 8), (2, 100, 1, 2, 20, 17), (1, 130, 1, 1, 33, 65, False)]


@each(OPS, SIZES)
def test_against_reference(case):
    check(case)


@each(OPS, [(1, 70, 1, 2, 8, 8)], [torch.float32])
@pytest.mark.parametrize("g,beta", [(-300.0, 1.0), (-1e6, 0.5), (0.0, 0.0), (0.0, 1.0)])
def test_gates_at_their_ends(case, g, beta):
    """Decays beside which all before is nothing, no decay, no write, a whole one; between others that are mild."""
    gates = case["g"].clone(), case["beta"].clone()
    for gate, value in zip(gates, (g, beta)):
        gate[::3] = value
    check(case.change(g=gates[0], beta=gates[1]))


@each(OPS, [(1, 64, 1, 1, 4, 4)], [torch.float32])
def test_one_key_again_and_again(case):
    """All keys the same, written whole and never forgotten: the system in a chunk is as ill-conditioned as it can be."""
    qkv = case["qkv"].clone()
    qkv[:, 4:8] = qkv[:1, 4:8]
    check(case.change(qkv=qkv, g=torch.zeros_like(case["g"]), beta=torch.ones_like(case["beta"])))


@pytest.mark.parametrize("lengths", [(0, 5), (70, 64)])
@each(OPS, [(2, 70, 1, 2, 8, 12)], [torch.float32])
def test_lengths(case, lengths):
    check(case.change(lengths=torch.tensor(lengths, dtype=torch.int32)))


@each(OPS, [(3, 70, 1, 2, 20, 12)], [torch.float32])
def test_streams_alone_and_in_groups(case, monkeypatch):
    streams_stand_alone(case, run)
    together = run(case)
    monkeypatch.setattr(kernels, "BUDGET", 1)
    assert same_bits(together, run(case))


@pytest.mark.parametrize("budget", [1 << 30, 40_000])
def test_a_plan_knows_the_scratch_memory(budget, monkeypatch):
    """Of one stream at a time, and of all; forward with a place for the state and without."""
    monkeypatch.setattr(kernels, "BUDGET", budget)
    monkeypatch.setattr(delta_scratch.groups, "__defaults__", (budget,))
    owner, planned = Scratch(), {}
    for op in (delta_rule_forward, delta_rule_backward):
        case = make_case(op, (3, 70, 1, 2, 20, 12))
        for final in (False, True) if op is delta_rule_forward else (False,):
            given = case if final or op is delta_rule_backward else case.change(final=None)
            with scratch_of(owner):
                run(given)
            planned |= delta_scratch.buffers(op.__name__, case["qkv"], case["slots"], 1, 2, 20, 12, final)
    assert sum(buffer.nbytes for buffer in owner.buffers.values()) == sum(planned.values())


@each(OPS, [(3, 50, 1, 1, 20, 12)], [torch.float32])
def test_a_bad_stream_stays_alone(case):
    a_bad_stream_stays_alone(case, run)


@pytest.mark.parametrize("t", [11, 31, 32, 64])
@each(delta_rule_forward, [(1, 100, 1, 1, 20, 12)])
def test_later_tokens_change_no_bit(case, t):
    later_tokens_change_no_bit(case, t, run)


def test_errors_name_the_argument():
    case = make_case(delta_rule_forward, (2, 6, 2, 4, 8, 5))
    with pytest.raises(ValueError, match=r"delta_rule_forward: hv is 3, accepted is a multiple of hk, 2"):
        run(case.change(hv=3))
    with pytest.raises(ValueError, match=r"dk is 300, accepted is 1 to 256"):
        run(case.change(dk=300))
    with pytest.raises(ValueError, match=r"qkv has shape \[12, 50\], accepted is \[any, 52\]"):
        run(case.change(qkv=torch.zeros(12, 50)))


@real_sizes(OPS, [(4, 512, 16, 32, 128, 128), (1, 1000, 2, 2, 64, 64)], (torch.bfloat16, torch.float32))
def test_real_sizes(case):
    check(case)
