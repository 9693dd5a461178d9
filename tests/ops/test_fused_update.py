"""The fused updates' references: a gradient op and then the update op, except where a gradient is not finite."""

import pytest
import torch

from dynadapt import RMS, SGD
from dynadapt.ops import update
from dynadapt.ops.lora_gradient import lora_gradient, lora_gradient_update
from dynadapt.ops.update import UpdateRule, UpdateState
from dynadapt.ops.weight_gradient import weight_gradient, weight_gradient_update

RULES = [SGD(clip=0.0).rule(), SGD(decay=0.1, momentum=0.9, clip=0.0).rule(), RMS(decay=0.1, eps=1e-2).rule()]
SLOTS, STREAMS, T, K, SIZES, RANK = 4, 3, 5, 6, [4, 3], 2


def state(slots, *shape):
    lead = [slots] if slots else []
    own = dict(master=torch.randn(*lead, *shape), working=torch.randn(*lead, *shape).bfloat16(), first=torch.randn(*lead, *shape))
    return UpdateState(**own, prior=torch.randn(shape), stat=torch.rand(shape), prior_rate=torch.rand(shape))


def by_update_op(rule, tensors, gradient, slots, lr):
    """The same step by ops.update on flat copies; (master, first, working) [slots, P]."""
    flat = lambda t: t.reshape(gradient.shape[0], -1).clone()  # noqa: E731
    master, first, working, count = flat(tensors.master), flat(tensors.first), flat(tensors.working), len(slots)
    state = UpdateState(
        master,
        grad=flat(gradient),
        first=first if "first" in rule.uses else None,
        prior=tensors.prior.flatten(),
        stat=tensors.stat.flatten(),
        prior_rate=tensors.prior_rate.flatten(),
        working=working,
        step=torch.zeros(gradient.shape[0], dtype=torch.int32),
    )
    update.update(state, rule, slots, lr, torch.zeros(count), torch.zeros(count, dtype=torch.int32))
    return master, first, working


def expect(tensors, expected):
    for ours, theirs in zip((tensors.master, tensors.first, tensors.working), expected):
        assert torch.equal(ours.flatten(), theirs.flatten())


def lora_call():
    n, width = STREAMS * T, len(SIZES) * RANK
    return [
        torch.randn(n, sum(SIZES)),
        torch.randn(n, K),
        torch.randn(n, width),
        torch.randn(n, width),
        SIZES,
        0.5,
        torch.tensor([2, 0, 3], dtype=torch.int32),
    ]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_lora_is_gradient_then_update(rule):
    call, a, bt, lr = lora_call(), state(SLOTS, 4, K), state(SLOTS, RANK, 7), torch.rand(SLOTS)
    dA, dBt, skipped = torch.zeros_like(a.master), torch.zeros_like(bt.master), torch.tensor([0, 1, 0], dtype=torch.int32)
    lora_gradient(*call, dA, dBt, False)
    moves = torch.tensor([-1, -1, 3], dtype=torch.int32)  # the first does not move, the second is skipped
    expected = [by_update_op(rule, s, g, moves, lr) for s, g in ((a, dA), (bt, dBt))]
    lora_gradient_update(*call, torch.tensor([0, 1, 1], dtype=torch.int32), a, bt, rule, lr, skipped)
    expect(a, expected[0])
    expect(bt, expected[1])
    assert skipped.tolist() == [0, 1, 0]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_weight_is_gradient_then_update(rule):
    dy, x, rows = torch.randn(T, 9), torch.randn(T, K), torch.tensor([7, 2, 3], dtype=torch.int32)
    tensors, weight, lr = state(0, 3, K), torch.randn(9, K).bfloat16(), torch.rand(1)
    gradient, before = torch.zeros(3, K), weight.clone()
    weight_gradient(dy, x, rows, gradient, False)
    expected = by_update_op(rule, tensors, gradient[None], torch.zeros(1, dtype=torch.int32), lr)
    skipped = torch.zeros(1, dtype=torch.int32)
    weight_gradient_update(dy, x, rows, weight, tensors, rule, lr, skipped)
    expect(UpdateState(tensors.master, working=weight[rows.long()], first=tensors.first), expected)
    others = [o for o in range(9) if o not in rows]
    assert torch.equal(weight[others], before[others])
    skipped[0] = 1
    before = weight.clone()
    weight_gradient_update(dy, x, rows, weight, tensors, rule, lr, skipped)
    assert torch.equal(weight, before)


def test_an_element_without_a_finite_gradient_stays():
    rule, tensors, weight = RULES[1], state(0, 4, K), torch.randn(4, K).bfloat16()
    dy, x, skipped = torch.randn(T, 4), torch.randn(T, K), torch.zeros(1, dtype=torch.int32)
    dy[2, 1] = float("nan")
    before = [t.clone() for t in (tensors.master, tensors.first, weight)]
    weight_gradient_update(dy, x, None, weight, tensors, rule, torch.rand(1), skipped)
    for now, then in zip((tensors.master, tensors.first, weight), before):
        assert torch.equal(now[1], then[1])
        assert torch.isfinite(now).all()
        assert not torch.equal(now[0], then[0])
    assert skipped.tolist() == [1]


def test_errors():
    one = UpdateState(torch.zeros(1))
    for call in (
        lambda rule: lora_gradient_update(*[None] * 8, one, one, rule, None, None),
        lambda rule: weight_gradient_update(*[None] * 4, one, rule, None, None),
    ):
        with pytest.raises(
            ValueError, match=r"^(lora|weight)_gradient_update: kind='adam': a fused update serves .*(sgd and rms|rms and sgd)"
        ):
            call(UpdateRule("adam"))
    with pytest.raises(ValueError, match=r"weight_gradient_update: state.first is missing, a tensor is needed for sgd with momentum 0.9"):
        weight_gradient_update(None, None, None, None, UpdateState(torch.zeros(1)), UpdateRule("sgd", momentum=0.9), None, None)
    with pytest.raises(ValueError, match=r"lora_gradient_update: bt.stat is missing, a tensor is needed for rms"):
        lora_gradient_update(*[None] * 8, state(1, 2, 3), UpdateState(torch.zeros(1)), UpdateRule("rms"), None, None)
    factors = UpdateState(torch.zeros(1), rate_factor=torch.ones(1))
    with pytest.raises(ValueError, match="weight_gradient_update: state.rate_factor is given, and a fused update has one rate"):
        weight_gradient_update(None, None, None, None, factors, UpdateRule("sgd"), None, None)
    with pytest.raises(ValueError, match="lora_gradient_update: bt.rate_factor is given"):
        lora_gradient_update(*[None] * 8, one, factors, UpdateRule("sgd"), None, None)
