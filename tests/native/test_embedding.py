"""Token embedding and the scatter of its gradient against their references."""

import pytest
import torch
from op_cases import a_bad_stream_stays_alone, check, each, run, same_bits_at_any_threads, streams_stand_alone

from dynadapt import _C
from dynadapt.bench.cases.embedding import adapted_embedding_backward, adapted_embedding_forward, embedding_backward, embedding_forward


@each([embedding_forward, embedding_backward], [(1, 1, 50), (63, 20, 50), (100, 577, 50)])
def test_both_ways(case):
    check(case)


@each(embedding_forward, [(1, 1, 50, 9), (63, 20, 50, 9), (100, 577, 50, 9)])
def test_learned_positions(case):
    check(case)


@each([embedding_forward, embedding_backward], [(100, 200, 7)])
def test_threads_change_nothing(case):
    same_bits_at_any_threads(case)


def test_errors_name_the_token():
    table, out = torch.zeros(5, 4), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"embedding_forward: tokens\[1\] is 5, accepted is 0 to 4"):
        _C.embedding_forward(torch.tensor([0, 5]), table, None, None, out)
    with pytest.raises(ValueError, match=r"embedding_backward: tokens\[0\] is -1, accepted is 0 to 4"):
        _C.embedding_backward(torch.tensor([-1, 2]), out, table)
    with pytest.raises(ValueError, match=r"positions is given without position_table"):
        _C.embedding_forward(torch.tensor([0, 1]), table, None, torch.tensor([0, 1]), out)


ADAPTED = [(1, 1, 50, 1), (63, 20, 50, 3, 3), (100, 577, 50, 9, 2)]


@each(adapted_embedding_forward, ADAPTED)
def test_an_adapter_adds_its_tokens_column(case):
    check(case)


@each(adapted_embedding_backward, [(*size, accumulate) for size in [(1, 1, 50, 1, 1), *ADAPTED[1:]] for accumulate in (False, True)])
def test_an_adapters_gradient(case):
    """Slots that no stream has stay as they are."""
    others = torch.ones(len(case["A"]), dtype=torch.bool)
    others[case["slots"].long()] = False
    found = check(case)
    assert all(torch.equal(found[name][others], case[name][others]) for name in ("dA", "dBt"))


@each([adapted_embedding_forward, adapted_embedding_backward], [(100, 200, 7, 5, 2)])
def test_threads_and_other_streams_change_no_bit_of_an_adapter(case):
    same_bits_at_any_threads(case)
    streams_stand_alone(case)
    if case.op == "adapted_embedding_backward":
        a_bad_stream_stays_alone(case)


@each(adapted_embedding_forward, [(60, 70, 50, 5)])
def test_rows_of_an_adapter_stand_alone(case):
    """And a token's column that is not finite reaches the rows that have the token, and no others."""
    clean = run(case)["out"]
    for rows in (slice(0, 7), slice(7, 60), slice(59, 60)):
        assert torch.equal(run(case.cut(rows))["out"], clean[rows])
    token, slot = case["tokens"][9], case["slots"][0]
    spoilt = run(case.spoil("A", (slot, 2, token), float("nan")))["out"]
    others = case["tokens"] != token
    assert torch.equal(spoilt[others], clean[others]) and spoilt[~others].isnan().all()


def test_errors_of_an_adapter_name_the_argument():
    tokens, A, Bt, slots, out = (
        torch.tensor([0, 5]),
        torch.zeros(2, 3, 5),
        torch.zeros(2, 3, 4),
        torch.tensor([1, 1]).int(),
        torch.zeros(2, 4),
    )
    with pytest.raises(ValueError, match=r"adapted_embedding_forward: tokens\[1\] is 5, accepted is 0 to 4"):
        _C.adapted_embedding_forward(tokens, A, Bt, slots, 1.0, out)
    with pytest.raises(ValueError, match=r"adapted_embedding_forward: A has shape \[2, 2, 5\].*accepted is \[2, 3, "):
        _C.adapted_embedding_forward(tokens[:1], A[:, :2].contiguous(), Bt, slots[:1], 1.0, out[:1])
    with pytest.raises(ValueError, match="adapted_embedding_backward: slots has 1 more than once"):
        _C.adapted_embedding_backward(tokens.clamp(max=4), out, A, Bt, slots, 1.0, torch.zeros_like(A), torch.zeros_like(Bt), False)
