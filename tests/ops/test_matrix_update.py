"""Muon's steps: against torch.optim.Muon, against float64, on every backend's update, with streams that rest or are skipped."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dynadapt import AdamW, Muon
from dynadapt.ops import resolve
from dynadapt.ops import update as reference
from dynadapt.ops.matrix_update import Matrix, Parts, matrix_update, orthogonal, product_flops
from dynadapt.ops.update import UpdateState

F64 = torch.float64
# A tall, a wide and a square matrix; two that lie side by side in rows of 12 elements; a span that is none; gaps.
MATRICES = (Matrix(0, 9, 4, 4), Matrix(40, 3, 17, 17), Matrix(96, 5, 5, 5), Matrix(128, 3, 7, 12), Matrix(135, 2, 5, 12))
PARTS = Parts(MATRICES, ((170, 181),))
P = 192


def rand(*shape, seed=0, dtype=F64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def used() -> torch.Tensor:
    """bool [P]: what belongs to a part."""
    mask = torch.zeros(P, dtype=torch.bool)
    for matrix in MATRICES:
        matrix.of(mask).fill_(True)
    mask[170:181] = True
    return mask


def state(slots=1, dtype=F64, seed=0, working=None) -> UpdateState:
    """As it is after some steps: zero where nothing is."""
    inside = used().to(F64)
    make = lambda i: (rand(slots, P, seed=10 * seed + i) * inside).to(dtype)  # noqa: E731
    made = UpdateState(
        make(0),
        grad=make(1),
        first=0.3 * make(2),
        second=make(3).square(),
        prior=make(4)[0],
        working=None if working is None else make(0).to(working),
        step=torch.arange(slots, dtype=torch.int32),
    )
    made.parts = PARTS
    return made


def run(s: UpdateState, optimizer, slots, backend="reference", lr=0.1):
    """(norms, skipped) of a step by the backend's update, on ``s``; backend None: by the definition, ``update`` itself."""
    slots, rates = torch.tensor(slots, dtype=torch.int32), torch.full((len(s.master),), lr, dtype=s.master.dtype)
    norms, skipped = torch.empty(len(slots)), torch.empty(len(slots), dtype=torch.int32)
    if backend is None:
        reference.update(s, optimizer.rule(), slots, rates, norms, skipped)
    else:
        op = resolve("update", backend, F64 if backend == "reference" else torch.float32).function
        matrix_update(op, s, optimizer.rule(), slots, rates, norms, skipped)
    return norms, skipped


def by_polynomial(grad, coefficients, steps, eps):
    """X <- (a I + b G + c G²) X in float64, in place of torch's, which rounds to bf16."""
    (a, b, c), x = coefficients, grad / grad.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x.T @ x  # the other side's: the same polynomial of the singular values
        x = x @ (a * torch.eye(len(gram), dtype=x.dtype) + b * gram + c * gram @ gram)
    return x


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("momentum", [0.95, 0.0])
def test_it_is_torchs_muon(backend, momentum, exact, monkeypatch):
    """To float64's rounding where torch's own products are in float64, too, else to bf16's."""
    if exact:
        monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", by_polynomial)
    s = state()
    s.first.zero_(), s.step.zero_()
    start = s.master.clone()
    parameters = [torch.nn.Parameter(matrix.of(s.master[0]).clone()) for matrix in MATRICES]
    theirs = torch.optim.Muon(parameters, lr=0.1, momentum=momentum, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for i in range(4):
        s.grad = state(seed=i + 1).grad
        for parameter, matrix in zip(parameters, MATRICES):
            parameter.grad = matrix.of(s.grad[0]).clone()
        theirs.step()
        run(s, Muon(momentum=momentum, weight_decay=0.3, clip=0.0), [0], backend)
    for parameter, matrix in zip(parameters, MATRICES):
        ours, moved = matrix.of(s.master[0]), (parameter.data - matrix.of(start[0])).norm()
        assert (ours - parameter.data).norm() < (1e-12 if exact else 0.05) * moved
    assert int(s.step[0]) == 4 and not s.grad.any()


@pytest.mark.parametrize("shape", [(6, 6), (4, 90), (90, 4), (1, 30), (30, 1)])
def test_singular_values_become_about_one(shape):
    u = rand(3, *shape, seed=1) * torch.tensor([1.0, 1e-4, 1e20])[:, None, None]
    turned = orthogonal(u)
    U, S, V = torch.linalg.svd(u, full_matrices=False)
    within = torch.linalg.svdvals(turned)[S / S.amax(-1, keepdim=True) > 0.05]
    assert within.min() > 0.6 and within.max() < 1.3
    rotated = U.mT @ turned @ V.mT
    assert (rotated - torch.diag_embed(rotated.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-10  # the same singular vectors
    assert torch.allclose(orthogonal(u.mT), turned.mT, atol=1e-10)
    assert (orthogonal(u.float()) - turned).abs().max() < 1e-4 and not orthogonal(torch.zeros(1, *shape)).any()


@pytest.mark.parametrize("options", [{}, {"decay": 0.2, "clip": 0.5}, {"weight_decay": 0.3, "momentum": 0.0}], ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("working", [None, torch.bfloat16])
def test_no_further_from_float64_than_the_definition_in_float32(options, backend, working):
    optimizer, slots = Muon(**{"clip": 0.0, **options}), [2, 0]
    ours, plain, truth = state(4, torch.float32, working=working), state(4, torch.float32, working=working), state(4)
    results = [run(ours, optimizer, slots, backend), run(plain, optimizer, slots, None), run(truth, optimizer, slots, None)]
    for name in ("master", "first", "second"):
        o, p, t = (getattr(each, name)[slots].double() for each in (ours, plain, truth))
        assert (o - t).abs().max() <= (p - t).abs().max() + 1e-5 * t.abs().max(), name
    assert torch.allclose(results[0][0].double(), results[2][0].double(), rtol=1e-6) and results[0][1].tolist() == [0, 0]
    assert ours.step.tolist() == truth.step.tolist() and not ours.grad[slots].any()
    if working is not None:
        assert torch.equal(ours.working[slots], ours.master[slots].to(working))
    untouched = state(4, torch.float32, working=working)
    for name in ("master", "grad", "first", "second", "working"):
        if getattr(ours, name) is not None:
            assert torch.equal(getattr(ours, name)[[1, 3]], getattr(untouched, name)[[1, 3]]), name
    assert not ours.master[:, ~used()].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("place", [3, 175])
def test_a_bad_gradient_is_skipped_and_resting_streams_keep_theirs(backend, bad, place):
    s, before, alone = (state(4, torch.float32) for _ in range(3))
    s.grad[1, place] = bad
    norms, skipped = run(s, Muon(clip=0.7, decay=0.1), [3, 1, -1], backend)
    own, _ = run(alone, Muon(clip=0.7, decay=0.1), [3], backend)
    assert skipped.tolist() == [0, 1, 0] and not torch.isfinite(norms[1]) and norms[2] == 0 and norms[0] == own[0]
    for name in ("master", "first", "second", "step"):
        assert torch.equal(getattr(s, name)[:3], getattr(before, name)[:3]), name
        assert torch.equal(getattr(s, name)[3], getattr(alone, name)[3]), name  # whoever shares its batch
    assert not s.grad[1].any() and torch.equal(s.grad[[0, 2]], before.grad[[0, 2]])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_stream_alone_in_its_buffers_moves_the_same(backend):
    """One slot is worked on where it lies, several are copied."""
    one, many = state(1, torch.float32), state(4, torch.float32)
    for name in ("master", "grad", "first", "second"):
        getattr(many, name)[2] = getattr(one, name)[0]
    many.step[2], many.prior = one.step[0], one.prior
    run(one, Muon(decay=0.1), [0], backend), run(many, Muon(decay=0.1), [2], backend)
    for name in ("master", "grad", "first", "second", "step"):
        assert torch.equal(getattr(one, name)[0], getattr(many, name)[2]), name


def test_what_is_no_matrix_moves_by_adamw():
    s, plain = state(2), state(2)
    settings = dict(betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3, clip=0.0)
    for _ in range(3):
        for each in (s, plain):
            each.grad = state(2, seed=5).grad
        run(s, Muon(**settings), [0, 1])
        run(plain, AdamW(**settings), [0, 1], None)
    assert torch.allclose(s.master[:, 170:181], plain.master[:, 170:181], rtol=1e-12)
    assert not torch.allclose(s.master[:, :36], plain.master[:, :36])


def test_a_huge_gradient_moves_as_much_as_a_small_one():
    moves = []
    for scale in (1.0, 1e30):
        s = state(1, torch.float32)
        s.first.zero_()
        before = s.master.clone()
        s.grad.mul_(scale)
        norms, skipped = run(s, Muon(clip=0.0), [0], "cpu")
        assert skipped.tolist() == [0] and torch.isfinite(norms).all()
        moves.append((s.master - before)[:, :170])
    assert torch.allclose(*moves, atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5), (1, 7)])
def test_flops_are_those_that_torch_counts(shape):
    with FlopCounterMode(display=False) as counter:
        orthogonal(rand(3, *shape))
    assert counter.get_total_flops() == 3 * product_flops([Matrix(0, *shape, shape[1])])
    one = Parts((Matrix(0, *shape, shape[1]),))
    assert reference.flops(10, Muon().rule(), one) == 10 * (2 + 1 + 13 + 1) + product_flops(one.matrices)
    assert reference.flops(10, AdamW().rule(), one) == reference.flops(10, AdamW().rule())


def test_without_places_it_is_refused():
    s = state()
    s.parts = None
    with pytest.raises(ValueError, match="update: kind='muon' moves matrices as wholes"):
        run(s, Muon(), [0], None)
