"""The same model with memory as a teacher of the model without: the teacher is right, the loss is the sum of both, scores come first."""

import pytest
import torch
from helpers import linear_weights, to_transformers

from dynadapt import SGD, Adam, Engine, Full, LoRA, Overlap, SegmentMemory
from dynadapt.engine.teaching import likeliest, mixed_teacher
from dynadapt.experiments.memory_distillation import distil_memory
from dynadapt.model import hf_name, random_model, tiny_config

MODEL = random_model(tiny_config("llama"), seed=1, std=0.1)
V, T = MODEL.config.vocab_size, 8
REFERENCE = {"backend": "reference", "dtype": "fp64"}


def engine(**options):
    given = {"adapt": LoRA(2), "optimizer": Adam(lr=0.01), "segment": T, "memory": SegmentMemory(64, 0), "backend": "cpu", "dtype": "fp32"}
    return Engine(MODEL, **{**given, **options})


def text(count, seed=0):
    return torch.randint(V, (count + 1,), generator=torch.Generator().manual_seed(seed))


def masters(e):
    return torch.cat([learner.state.master for learner in e.learners]).clone()


def test_the_teacher_is_the_model_that_has_read_what_came_before():
    e, ids, live = engine(**REFERENCE), text(3 * T), to_transformers(MODEL, torch.float64)
    whole = torch.log_softmax(live(ids[None, :-1]).logits[0].detach(), 1)
    for k in range(3):
        there = whole[k * T : (k + 1) * T]
        found, logp, nll = likeliest(e, ids[None, k * T : (k + 1) * T + 1], 5)
        top = there.topk(5)
        assert torch.equal(found[0], top.indices)
        torch.testing.assert_close(logp[0], top.values, rtol=0, atol=1e-6)  # transformers rotates in float32
        torch.testing.assert_close(nll[0], -there.gather(1, ids[k * T + 1 : (k + 1) * T + 1, None])[:, 0], rtol=0, atol=1e-6)
    alone = torch.log_softmax(live(ids[None, 2 * T : -1]).logits[0].detach(), 1)
    assert (whole[2 * T :] - alone).abs().max() > 1e-3


@pytest.mark.parametrize("adapt", [LoRA(2), Full(targets="model")], ids=str)
@pytest.mark.parametrize("k", [1, 4, V])
def test_both_losses_are_one(adapt, k):
    """On its targets and beside them; with all of the vocabulary every target is among what the teacher names."""
    same = dict(adapt=adapt, optimizer=SGD(lr=0.5, clip=0.0), memory=None, **REFERENCE)
    one, two = engine(**same), engine(**same)
    row = text(T)[None]
    logp, ids = torch.randn(1, T, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64).log_softmax(-1).topk(k)
    if 1 < k < V:
        ids[0, 0, 1], ids[0, 1, 0] = -1, row[0, 2]
        ids[0, 1, 1:] = torch.tensor([t for t in range(k) if t != row[0, 2]][: k - 1])
    before = masters(one)
    one.forward_backward(row, loss="kl", inputs=mixed_teacher(row[:, 1:], ids, logp, 0.3))
    two.forward_backward(row, weights=[0.7])
    two.forward_backward(row, weights=[0.3], loss="kl", inputs={"ids": ids, "logp": logp})
    for e in (one, two):
        e.optim_step()
    assert (masters(one) - before).abs().max() > 1e-3
    torch.testing.assert_close(masters(one), masters(two), rtol=0, atol=1e-12)


def test_a_taught_segment_by_hand():
    """Two segments at a first rate of nought, the second taught: the loss written out with the live model that reads both."""
    e, ids, live = engine(adapt=Full(), optimizer=SGD(lr=0.5, clip=0.0), **REFERENCE), text(2 * T), to_transformers(MODEL, torch.float64)
    e.set_lr(0, 0.0)
    distil_memory(e, ids[: T + 1])
    e.set_lr(0, 0.5)
    teacher = torch.log_softmax(live(ids[None, :-1]).logits[0, T:].detach(), 1)
    student = torch.log_softmax(live(ids[None, T:-1]).logits[0], 1)
    loss = 0.7 * torch.nn.functional.nll_loss(student, ids[T + 1 :]) + 0.3 * (teacher.exp() * (teacher - student)).sum(1).mean()
    loss.backward()
    found = likeliest(e, ids[None, T:], V)
    with e.without_memory():
        e.forward_backward(ids[None, T:], loss="kl", inputs=mixed_teacher(ids[None, T + 1 :], found[0], found[1], 0.3))
        e.optim_step()
    parameters = dict(live.named_parameters())
    for name, weight in linear_weights(e.learners[0], e.config).items():
        expected = MODEL.tensor(name).double() - 0.5 * parameters[hf_name(e.config, name)].grad
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_without_a_teacher_it_is_learning_without_memory():
    ids = text(4 * T + 3)
    for options in ({"share": 0.0}, {"every": 100}):
        e, plain = engine(), engine(memory=None)
        found = distil_memory(e, ids, **options)
        scores = torch.cat([plain.step(ids[None, i : i + T + 1])[0] for i in range(0, len(ids) - 1, T)])
        assert torch.equal(found.nll, scores) and torch.equal(masters(e), masters(plain)) and found.teacher_nll.isnan().all()
        assert found.flops["backward"] == plain.flops["backward"] and found.flops["forward"] > plain.flops["forward"]


def test_the_teacher_changes_what_is_learned_and_is_asked_when_said():
    ids = text(5 * T)
    each, other = distil_memory(engine(), ids), distil_memory(engine(), ids, every=2)
    taught = lambda found: [bool(part.isfinite().all()) for part in found.teacher_nll.split(T)]  # noqa: E731
    assert taught(each) == [False, True, True, True, True] and taught(other) == [False, False, True, False, True]
    plain = distil_memory(engine(), ids, share=0.0)
    assert torch.equal(each.nll[: 2 * T], plain.nll[: 2 * T]) and not torch.equal(each.nll[2 * T :], plain.nll[2 * T :])
    assert sum(each.flops.values()) > sum(other.flops.values()) > sum(plain.flops.values())


def test_no_score_depends_on_later_tokens():
    ids, changed = text(4 * T), text(4 * T)
    changed[2 * T + 3 :] = text(4 * T, 5)[2 * T + 3 :]
    a, b = distil_memory(engine(), ids), distil_memory(engine(), changed)
    assert torch.equal(a.nll[: 2 * T + 2], b.nll[: 2 * T + 2]) and not torch.equal(a.nll[3 * T :], b.nll[3 * T :])


@pytest.mark.parametrize(
    "options,given,message",
    [
        ({"memory": Overlap(5)}, {}, r"engine has memory=Overlap\(context=5, begin=0\): expected SegmentMemory"),
        ({"adapt": None, "optimizer": None}, {}, "engine has adapt=None, every=1"),
        ({"every": 2}, {}, "engine has adapt=.*every=2"),
        ({"streams": 2}, {}, "engine has adapt=.*streams=2"),
        ({}, {"share": 1.0}, "share=1.0: expected a number, 0 <= share < 1"),
        ({}, {"candidates": V + 1}, f"candidates={V + 1}: expected an integer in 1..{V}"),
        ({}, {"every": 0}, "every=0: expected an integer of at least 1"),
        ({}, {"tokens": text(4)[:1]}, r"tokens has shape \(1,\): expected \[n \+ 1\] of a document"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(options, given, message):
    e = engine(**options)
    with pytest.raises(ValueError, match=message):
        distil_memory(e, **{"tokens": text(3 * T), **given})
    assert e.updates == 0


def test_a_segment_that_does_not_fit_is_refused_by_name():
    with pytest.raises(ValueError, match=r"tokens has shape \(1, 19\): expected \[1, 2..9\]"):
        likeliest(engine(), text(18)[None], 3)
    with pytest.raises(ValueError, match="share=0: expected a number, 0 < share < 1"):
        mixed_teacher(text(T)[None, 1:], torch.zeros(1, T, 1, dtype=torch.int64), torch.zeros(1, T, 1), 0)
    with pytest.raises(ValueError, match="ids=a tensor .*: expected tokens"):
        mixed_teacher(text(T)[None, 1:], torch.zeros(1, 3, 1, dtype=torch.int64), torch.zeros(1, 3, 1), 0.5)
