"""Losses by name: their gradients against autograd in float64, on every backend and both drivers, and what they refuse."""

import pytest
import torch
from engine_states import assert_equal, state_of
from helpers import descended, descent_error, linear_weights
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import SGD, Adam, Engine, Full, LoRA, Overlap, RowSparse, SegmentMemory
from dynadapt.model import random_model, tiny_config
from dynadapt.ops import UnsupportedOp

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2", "gemma2", "gemma3"]
MODELS = {family: random_model(tiny_config(family), seed=1, std=0.1) for family in FAMILIES}
T = 10
NAN, INF = float("nan"), float("inf")


def engine(family="llama", **options):
    options = {"adapt": LoRA(2), "optimizer": SGD(lr=0.5, clip=0.0), "segment": T, "backend": "reference", "dtype": "fp32", **options}
    return Engine(MODELS[family], **options)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def text(rows=1, seed=0, length=T):
    return torch.randint(90, (rows, length + 1), generator=seeded(seed))


def masters(e):
    return torch.cat([learner.state.master for learner in e.learners])


def samples(rows=1, seed=3):
    """What a policy said of tokens that it drew, near what a tiny model says of them."""
    logp = -4.5 - 0.3 * torch.rand(rows, T, generator=seeded(seed), dtype=torch.float64)
    return {"logp": logp, "advantages": torch.randn(rows, T, generator=seeded(seed + 1), dtype=torch.float64)}


def teacher(rows=1, k=4, seed=3, vocabulary=90):
    """Of k tokens each, the last of them missing in every other place; of a mass below 1."""
    ids = torch.stack([torch.randperm(vocabulary, generator=seeded(seed + i))[:k] for i in range(rows * T)]).view(rows, T, k)
    logp = torch.log_softmax(torch.randn(rows, T, k, generator=seeded(seed), dtype=torch.float64), -1) - 0.1
    if k > 1:
        ids[:, ::2, -1] = -1
    return {"ids": ids, "logp": logp}


def written_out(name, tokens, inputs, weights):
    """The loss of one row's logits [T, V] as the equations have it."""

    def loss(logits):
        log_q = torch.log_softmax(logits, 1)
        logp = log_q.gather(1, tokens[0, 1:, None])[:, 0]
        if name == "importance_sampling":
            each = -torch.exp(logp - inputs["logp"][0]) * inputs["advantages"][0]
        else:
            ids, log_p = inputs["ids"][0], inputs["logp"][0]
            each = torch.where(ids >= 0, log_p.exp() * (log_p - log_q.gather(1, ids.clamp(min=0))), 0.0).sum(1)
        return (each * weights).sum() / (weights != 0).sum()

    return loss


LOSSES = {"importance_sampling": samples, "kl": teacher}
BY_NAME = pytest.mark.parametrize("loss", LOSSES)


def drawn(rows=1):
    weights = torch.rand(rows, T, generator=seeded(5), dtype=torch.float64) + 0.5
    weights[:, ::3] = 0
    return weights


@BY_NAME
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("static", [False, True])
def test_what_is_learned_is_the_loss_as_written(family, loss, static):
    row, inputs, weights = text(), LOSSES[loss](), drawn()
    e = engine(family, adapt=Full(), dtype="fp64", static=static)
    e.forward_backward(row, weights=weights, loss=loss, inputs=inputs)
    e.optim_step()
    expected = descended(e.model, row, written_out(loss, row, inputs, weights[0]))
    for name, weight in linear_weights(e.learners[0], e.config).items():
        assert torch.allclose(weight, expected[name], rtol=0, atol=descent_error(e.config)), name


@BY_NAME
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])  # heads of their own and tied ones
def test_the_whole_model_learns_from_it_the_head_too(family, loss):
    row, inputs, weights = text(), LOSSES[loss](), drawn()
    e = engine(family, adapt=Full(targets="model"), dtype="fp64")
    e.forward_backward(row, weights=weights, loss=loss, inputs=inputs)
    e.optim_step()
    expected = descended(e.model, row, written_out(loss, row, inputs, weights[0]))
    for name, value in e.learners[0].parameters().items():
        assert torch.allclose(value, expected[name], rtol=0, atol=descent_error(e.config)), name


@BY_NAME
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype,tolerance", [("fp32", 2e-5), ("bf16", 5e-3)])
def test_kernels_learn_what_the_reference_learns(family, loss, dtype, tolerance):
    for adapt in (LoRA(2), Full(targets="model")):
        same = dict(adapt=adapt, streams=2, optimizer=SGD(lr=0.1, clip=0.0))
        truth, native = engine(family, dtype="fp64", **same), engine(family, backend="cpu", dtype=dtype, **same)
        before, given = masters(truth).clone(), {"weights": drawn(2), "loss": loss, "inputs": LOSSES[loss](2)}
        for e in (truth, native):
            for seed in (0, 1):
                e.forward_backward(text(2, seed), [T, 7], **given)
            e.optim_step()
        moved, ours = masters(truth) - before, masters(native).double() - before
        assert moved.abs().max() > 1e-4
        assert (moved - ours).abs().max() <= tolerance + (0.02 * moved.abs().max() if dtype == "bf16" else 0)


@pytest.mark.slow
@BY_NAME
@pytest.mark.parametrize("dtype,tolerance", [("fp32", 1e-5), ("bf16", 5e-3)])
def test_triton_learns_what_the_reference_learns(loss, dtype, tolerance):
    same = dict(streams=2, optimizer=Adam(lr=0.01), memory=SegmentMemory(4, 1))
    try:
        triton = engine(backend="triton", dtype=dtype, **same)
    except (ValueError, UnsupportedOp) as error:
        pytest.skip(str(error))
    truth = engine(dtype=dtype, static=True, **same)
    for e in (truth, triton):
        e.nll = e.forward_backward(text(2), [T, 6], weights=drawn(2), loss=loss, inputs=LOSSES[loss](2))
        e.optim_step(lr=0.0)
    torch.testing.assert_close(triton.nll, truth.nll, rtol=tolerance, atol=10 * tolerance)
    norms = torch.tensor([truth.last.grad_norm, triton.last.grad_norm])
    assert ((norms[0] - norms[1]).abs() <= 10 * tolerance * norms[0]).all()


@BY_NAME
@pytest.mark.parametrize(
    "options",
    [
        {"memory": SegmentMemory(7, 2), "optimizer": Adam(lr=0.01)},
        {"memory": Overlap(5)},
        {"shared": True, "adapt": Full(targets="model"), "recompute": True},
        {"adapt": RowSparse(0.3)},
        {"every": 2, "accumulate": True},
        {"optimizer": SGD(lr=0.1, clip=0.0)},
    ],
    ids=str,
)
def test_both_drivers_learn_the_same(options, loss):
    host, static = (engine(streams=3, static=static, **options) for static in (False, True))
    for step, lengths in enumerate([None, [T, 5, 2], [0, T, 3]]):
        given = dict(lengths=lengths, weights=drawn(3), loss=loss, inputs=LOSSES[loss](3, seed=step))
        for e in (host, static):
            e.scored = e.forward_backward(text(3, step), **given)
            e.loss = e.last.loss
            e.optim_step()
        torch.testing.assert_close(host.scored, static.scored, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masters(host), masters(static), rtol=1e-4, atol=1e-5)
        if loss == "kl":
            count = [T] * 3 if lengths is None else lengths
            for row, n in enumerate(count):
                torch.testing.assert_close(host.loss[row, :n], static.loss[row, :n], rtol=1e-4, atol=1e-5)


@BY_NAME
@pytest.mark.parametrize("backend,dtype", [("reference", "fp32"), ("cpu", "fp32"), ("cpu", "bf16")])
def test_the_score_is_that_of_a_step(loss, backend, dtype):
    options = dict(streams=2, backend=backend, dtype=dtype, memory=SegmentMemory(7, 2))
    e, plain = engine(**options), engine(**options)
    for step in range(2):
        plain.learn_no_more()
        nll = e.forward_backward(text(2, step), [T, 6], loss=loss, inputs=LOSSES[loss](2))
        assert torch.equal(nll, plain.step(text(2, step), [T, 6]))


# ---- what they are when it is known otherwise


def test_a_sample_that_is_as_likely_as_it_was_counts_its_advantage():
    sampled, weighted = engine(dtype="fp64", adapt=Full()), engine(dtype="fp64", adapt=Full())
    advantages = drawn().clamp(min=0.1)
    sampled.forward_backward(text(), loss="importance_sampling", inputs={"logp": -sampled.score(text()), "advantages": advantages})
    sampled.optim_step()
    weighted.step(text(), weights=advantages)
    assert torch.allclose(masters(sampled), masters(weighted), rtol=0, atol=1e-12)


def test_an_advantage_of_a_row_is_each_of_its_tokens():
    by_row, by_token = engine(streams=2), engine(streams=2)
    logp = samples(2)["logp"]
    by_row.forward_backward(text(2), loss="importance_sampling", inputs={"logp": logp, "advantages": [-1.0, 0.5]})
    by_token.forward_backward(text(2), loss="importance_sampling", inputs={"logp": logp, "advantages": [[-1.0] * T, [0.5] * T]})
    for e in (by_row, by_token):
        e.optim_step()
    assert torch.equal(masters(by_row), masters(by_token))


@pytest.mark.parametrize("backend,dtype,tolerance", [("reference", "fp64", 1e-12), ("cpu", "fp32", 1e-6), ("cpu", "bf16", 1e-3)])
@pytest.mark.parametrize("adapt", [LoRA(2), Full(targets="model")], ids=str)
def test_a_teacher_that_is_sure_of_the_text_is_cross_entropy(backend, dtype, tolerance, adapt):
    options = dict(backend=backend, dtype=dtype, adapt=adapt, optimizer=SGD(lr=0.1, clip=0.0))
    sure, plain = engine(**options), engine(**options)
    nll = sure.forward_backward(text(), loss="kl", inputs={"ids": text()[:, 1:, None], "logp": torch.zeros(1, T, 1)})
    torch.testing.assert_close(sure.last.loss, nll, rtol=0, atol=max(1e-6, tolerance))
    assert torch.equal(nll, plain.forward_backward(text()))
    assert plain.last.loss is None
    for e in (sure, plain):
        e.optim_step()
    torch.testing.assert_close(masters(sure), masters(plain), rtol=0, atol=tolerance)


def test_nothing_is_learned_from_a_teacher_that_says_what_the_model_says():
    e, vocabulary = engine(dtype="fp64"), MODELS["llama"].config.vocab_size
    before = masters(e).clone()
    ids = torch.arange(vocabulary).repeat(1, T, 1)
    every = ids[0, 0, :, None]  # as the next token, behind each beginning of the text
    logp = torch.stack([-e.score(torch.cat([text()[:, : t + 1].repeat(vocabulary, 1), every], 1))[:, t] for t in range(T)])[None]
    e.forward_backward(text(), loss="kl", inputs={"ids": ids, "logp": logp})
    assert e.last.loss.abs().max() < 1e-12
    e.optim_step()
    assert torch.allclose(masters(e), before, rtol=0, atol=1e-12)


def test_a_students_divergence_falls_and_ratios_move_with_their_advantage():
    student, inputs = engine(optimizer=Adam(lr=0.02)), teacher(k=8)
    found = []
    for _ in range(8):
        student.forward_backward(text(), loss="kl", inputs=inputs)
        found.append(float(student.last.loss.mean()))
        student.optim_step()
    assert found[-1] < found[0] - 0.1
    policy = engine(optimizer=Adam(lr=0.02))
    advantages = torch.tensor([[1.0] * 5 + [-1.0] * 5])
    logp = -policy.score(text())
    for _ in range(4):
        policy.forward_backward(text(), loss="importance_sampling", inputs={"logp": logp, "advantages": advantages})
        policy.optim_step()
    gained = -policy.score(text()) - logp
    assert gained[0, :5].mean() > 0.05 and gained[0, 5:].mean() < -0.05


@BY_NAME
@pytest.mark.parametrize("adapt", [LoRA(2), Full(targets="model")], ids=str)
def test_the_ledger_is_torchs_count(loss, adapt):
    e = engine(adapt=adapt, streams=2)
    with FlopCounterMode(display=False) as counter:
        e.forward_backward(text(2), loss=loss, inputs=LOSSES[loss](2))
    flops = e.flops
    assert flops["forward"] + flops["backward"] + flops["recompute"] == counter.get_total_flops()
    plain = engine(adapt=adapt, streams=2)
    plain.forward_backward(text(2))
    assert plain.flops == flops


# ---- refused by name


def changed(inputs, name, place, value):
    inputs = {key: t.clone() for key, t in inputs.items()}
    inputs[name][place] = value
    return inputs


@pytest.mark.parametrize(
    "loss,inputs,message",
    [
        ("hinge", None, "^loss='hinge': expected one of cross_entropy, importance_sampling, kl$"),
        ("cross_entropy", samples(), r"^inputs=\['advantages', 'logp'\]: expected None for loss='cross_entropy'$"),
        ("kl", None, r"^inputs=\[\]: expected a dictionary of ids, logp for loss='kl'$"),
        ("importance_sampling", {"logp": samples()["logp"]}, r"^inputs=\['logp'\]: expected a dictionary of logp, advantages for"),
        (
            "importance_sampling",
            {**samples(), "logp": samples(2)["logp"]},
            r"^inputs\['logp'\] has shape \(2, 10\): expected finite numbers \[1, 10\]$",
        ),
        ("importance_sampling", changed(samples(), "logp", (0, 3), NAN), r"^inputs\['logp'\]\[0, 3\]=nan: expected finite numbers$"),
        (
            "importance_sampling",
            changed(samples(), "logp", (0, 3), 2.5),
            r"^inputs\['logp'\]\[0, 3\]=2.5: expected logarithms of probabilities",
        ),
        ("importance_sampling", changed(samples(), "advantages", (0, 9), -INF), r"^inputs\['advantages'\]\[0, 9\]=-inf: expected finite"),
        (
            "importance_sampling",
            {**samples(), "advantages": [1.0, 2.0]},
            r"^inputs\['advantages'\] has shape \(2,\): expected finite numbers \[1\], or \[1, 10\]$",
        ),
        ("kl", {**teacher(), "ids": teacher()["ids"][:, :, 0]}, r"^inputs\['ids'\] has shape \(1, 10\): expected \[1, 10, K\]"),
        ("kl", {**teacher(), "ids": teacher()["ids"].float()}, r"^inputs\['ids'\] is of float32: expected token ids"),
        ("kl", changed(teacher(), "ids", (0, 1, 2), 4000), r"^inputs\['ids'\] hold -1..4000: expected 0..\d+, or -1 for no token$"),
        ("kl", changed(teacher(), "ids", (0, 1, 2), -2), r"^inputs\['ids'\] hold -2\.\."),
        ("kl", changed(teacher(), "ids", (0, 1, slice(0, 2)), 7), r"^inputs\['ids'\]\[0, 1\]=\[7, 7, .*: expected different tokens$"),
        (
            "kl",
            {**teacher(), "logp": teacher(k=3)["logp"]},
            r"^inputs\['logp'\] has shape \(1, 10, 3\): expected finite numbers \[1, 10, 4\]$",
        ),
        ("kl", changed(teacher(), "logp", (0, 1, 2), -INF), r"^inputs\['logp'\]\[0, 1, 2\]=-inf: expected finite numbers$"),
        (
            "kl",
            changed(teacher(), "logp", (0, 1, slice(0, 4)), 0.0),
            r"^inputs\['logp'\]\[0, 1\]: the probabilities sum to 4, expected at most 1$",
        ),
    ],
)
def test_what_does_not_fit_a_loss_is_refused_by_name_and_changes_nothing(loss, inputs, message):
    e = engine()
    before = state_of(e)
    with pytest.raises(ValueError, match=message):
        e.forward_backward(text(), loss=loss, inputs=inputs)
    assert_equal(before, state_of(e))


def test_a_ratio_that_overflows_is_skipped_and_said():
    e = engine(streams=2)
    inputs = samples(2)
    inputs["logp"][0, 2] = -200.0
    before = masters(e).clone()
    assert e.forward_backward(text(2), loss="importance_sampling", inputs=inputs).isfinite().all()
    assert e.optim_step().skipped == [True, False]
    assert torch.equal(masters(e)[0], before[0]) and not torch.equal(masters(e)[1], before[1])
