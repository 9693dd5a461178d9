"""The reference of every op with a backward passes float64 gradcheck (invariant 4)."""

import pytest
import torch
from torch.autograd import gradcheck

from dynadapt import Lion
from dynadapt.interop import torch_ops
from dynadapt.ops import DenseMatrix, resolve
from dynadapt.ops.update import UpdateRule, UpdateState

F64 = torch.float64


def op(name):
    return resolve(name, "reference", F64).function


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def function(forward, backward):
    """An autograd function from an op's explicit passes: forward(*x) -> (y, saved), backward(dy, saved, *x) -> gradients."""

    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *x):
            y, ctx.rest = forward(*x)
            ctx.save_for_backward(*x)
            return y

        @staticmethod
        def backward(ctx, dy):
            return backward(dy.contiguous(), ctx.rest, *ctx.saved_tensors)

    return Op.apply


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm(kind):
    x, delta, weight, bias = rand(5, 7), rand(5, 7, seed=1), rand(7), rand(7, seed=2)

    def forward(x, delta, weight, bias):
        res, y, stat = torch.empty_like(x), torch.empty_like(x), torch.empty(5, 2, dtype=F64)
        op("norm_forward")(x, delta, weight, bias, 1e-5, kind, res, y, stat)
        return torch.cat([y, res], 1), (res, stat)  # both leave the op

    def backward(d, rest, x, delta, weight, bias):
        res, stat = rest
        dx, dw, db = torch.full_like(x, float("nan")), torch.zeros_like(weight), torch.zeros_like(weight)
        again = torch.full_like(x, float("nan"))
        op("norm_backward")(d[:, :7].contiguous(), res, weight, stat, kind, d[:, 7:].contiguous(), dx, dw, db, bias, again)
        y = torch.empty_like(x)
        op("norm_forward")(x, delta, weight, bias, 1e-5, kind, res, y, stat)
        assert torch.equal(again, y)
        return dx, dx, dw, db

    leaves = [t.requires_grad_() for t in (x, delta, weight, bias)]
    assert gradcheck(function(forward, backward), leaves)


@pytest.mark.parametrize("streams", [1, 2])
def test_linear(streams):
    x, sizes, rank = rand(6, 5), (4, 3), 2
    A, Bt, bias = rand(3, 2 * rank, 5), rand(3, rank, 7, seed=3), rand(7)
    parts = [DenseMatrix(rand(n, 5, seed=9)) for n in sizes]
    slots = torch.tensor([2, 0][:streams], dtype=torch.int32)

    def forward(x, A, Bt):
        u, y = torch.empty(6, 4, dtype=F64), torch.empty(6, 7, dtype=F64)
        op("linear_forward")(x, parts, bias, A, Bt, slots, 1.5, u, y)
        return y, u

    def backward(dy, u, x, A, Bt):
        dU, dx = torch.full_like(u, float("nan")), torch.full_like(x, float("nan"))
        dA, dBt = torch.zeros_like(A), torch.zeros_like(Bt)
        op("linear_backward")(dy, parts, A, Bt, slots, 1.5, dU, dx)
        op("lora_gradient")(dy, x, u, dU, list(sizes), 1.5, slots, dA, dBt, False)
        return dx, dA, dBt

    assert gradcheck(function(forward, backward), [t.requires_grad_() for t in (x, A, Bt)])


def test_linear_backward_without_dx_still_gives_dU():
    dy, A, Bt = rand(4, 6), rand(1, 2, 5), rand(1, 2, 6)
    slots, parts = torch.zeros(1, dtype=torch.int32), [DenseMatrix(rand(6, 5))]
    with_dx, without = torch.empty(4, 2, dtype=F64), torch.empty(4, 2, dtype=F64)
    op("linear_backward")(dy, parts, A, Bt, slots, 2.0, with_dx, torch.empty(4, 5, dtype=F64))
    op("linear_backward")(dy, parts, A, Bt, slots, 2.0, without, None)
    assert torch.equal(with_dx, without)


def test_weight_gradient_and_row_scores():
    W, x = rand(6, 4).requires_grad_(), rand(5, 4)
    dy = rand(5, 6)
    (x @ W.t()).backward(dy)
    dW, chosen = torch.empty(6, 4, dtype=F64), torch.ones(2, 4, dtype=F64)
    op("weight_gradient")(dy, x, None, dW, False)
    assert torch.allclose(dW, W.grad)
    rows = torch.tensor([4, 1], dtype=torch.int32)
    op("weight_gradient")(dy, x, rows, chosen, True)
    assert torch.allclose(chosen, W.grad[[4, 1]] + 1)
    one, scores = torch.empty(6, 4, dtype=F64), torch.empty(6, dtype=F64)
    op("weight_gradient")(dy[:1], x[:1], None, one, False)
    op("row_scores")(dy[:1], x[:1], scores)
    assert torch.allclose(scores, one.norm(dim=1))  # exact for one token


def test_cross_entropy():
    h, head = rand(6, 5), DenseMatrix(rand(11, 5))
    targets = torch.tensor([3, -1, 0, 10, 7, -1])
    weights = rand(6).abs()

    rest = torch.empty(6, dtype=F64), torch.empty(6, dtype=F64)
    logits = h.requires_grad_() @ head.weight.t()
    losses = torch.where(targets >= 0, torch.nn.functional.cross_entropy(logits, targets.clamp(min=0), reduction="none"), 0.0)
    (losses * weights).sum().backward()
    dh = torch.full_like(h, float("nan"))
    op("cross_entropy")(h.detach(), head, targets, weights, *rest, dh)
    assert torch.allclose(dh, h.grad)
    nll, lse = rest
    assert torch.allclose(nll, losses) and torch.allclose(lse, torch.logsumexp(logits, 1))
    nll.fill_(float("nan"))
    op("cross_entropy")(h.detach(), head, targets, None, nll, lse, None)
    assert torch.allclose(nll, losses)


def test_cross_entropy_weight_gradient():
    h, W, targets, weights = rand(6, 5), rand(11, 5).requires_grad_(), torch.tensor([3, -1, 0, 10, 7, 2]), rand(6)
    loss = torch.nn.functional.cross_entropy(h @ W.t(), targets.clamp(min=0), reduction="none")
    (loss * weights * (targets >= 0)).sum().backward()
    lse = torch.logsumexp(h @ W.detach().t(), 1)
    dW = torch.ones(11, 5, dtype=F64)
    op("cross_entropy_weight_gradient")(h, DenseMatrix(W.detach()), targets, weights, lse, dW, True)
    assert torch.allclose(dW, W.grad + 1)


@pytest.mark.parametrize("kind", ["swiglu", "gelu_tanh", "gelu"])
def test_activation(kind):
    def forward(h):
        y = torch.empty(3, 4, dtype=F64)
        op("activation_forward")(h, kind, y)
        return y, None

    def backward(dy, _, h):
        dh = torch.full_like(h, float("nan"))
        again, y = torch.full_like(dy, float("nan")), torch.empty_like(dy)
        op("activation_backward")(dy, h, kind, dh, again)
        op("activation_forward")(h, kind, y)
        assert torch.equal(again, y)
        return dh

    assert gradcheck(function(forward, backward), [rand(3, 8 if kind == "swiglu" else 4).requires_grad_()])


@pytest.mark.parametrize("memory", [None, (3, 0), (4, 2)])
@pytest.mark.parametrize("rotary", [True, False])
def test_attention(memory, rotary):
    hq, hkv, d, T, C = 4, 2, 4, 3, 5
    qkv = rand(2 * T, (hq + 2 * hkv) * d).requires_grad_()
    slots = torch.tensor([1, 0], dtype=torch.int32)
    mem = (
        (None, None, None)
        if memory is None
        else (rand(2, C, hkv * d), rand(2, C, hkv * d, seed=5), torch.tensor(memory, dtype=torch.int32))
    )
    angles = torch.arange(C + T, dtype=F64)[:, None] * torch.tensor([1.0, 0.3], dtype=F64)
    rope = (angles.cos(), angles.sin()) if rotary else (None, None)
    common = (slots, *rope, hq, hkv, d, d**-0.5)

    def forward(qkv):
        out, lse = torch.empty(2 * T, hq * d, dtype=F64), torch.empty(2, hq, T, dtype=F64)
        op("attention_forward")(qkv, *mem, *common, out, lse)
        return out, lse

    def backward(dout, lse, qkv):
        out, _ = forward(qkv)
        dqkv = torch.full_like(qkv, float("nan"))
        op("attention_backward")(dout, qkv, out, lse, *mem, *common, dqkv)
        return dqkv

    assert gradcheck(function(forward, backward), [qkv])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, F64], ids=str)
@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("hq,hkv,d", [(1, 1, 4), (4, 2, 6), (3, 1, 64)])
def test_attention_to_one_key_has_no_gradient_in_query_and_key(hq, hkv, d, backend, dtype):
    for tokens in (1, 3):
        qkv = rand(tokens, (hq + 2 * hkv) * d, seed=tokens).to(dtype).requires_grad_()
        dout, slots = rand(tokens, hq * d, seed=7).to(dtype), torch.zeros(1, dtype=torch.int32)
        if backend == "torch":
            (gradient,) = torch.autograd.grad(torch_ops.attention(qkv, hq, hkv, d), qkv, dout)
        else:
            wide = torch.promote_types(dtype, torch.float32)
            out, lse, gradient = torch.empty_like(dout), torch.empty(1, hq, tokens, dtype=wide), torch.empty_like(qkv)
            common = (None, None, None, slots, None, None, hq, hkv, d, d**-0.5)
            op("attention_forward")(qkv.detach(), *common, out, lse)
            op("attention_backward")(dout, qkv.detach(), out, lse, *common, gradient)
        query, key, value = gradient.split([hq * d, hkv * d, hkv * d], 1)
        assert not query[0].any() and value[0].any() and bool(key.any()) == (tokens > 1)


def test_head_norm():
    hq, hkv, d = 3, 2, 4
    qkv, qw, kw = rand(3, 7 * d), rand(d), rand(d, seed=4)

    def forward(qkv, qw, kw):
        out, rstd = torch.empty_like(qkv), torch.empty(3, 5, dtype=F64)
        op("head_norm_forward")(qkv, qw, kw, 1e-6, hq, hkv, d, out, rstd)
        return out, rstd

    def backward(dout, rstd, qkv, qw, kw):
        dqkv, dqw, dkw = torch.full_like(qkv, float("nan")), torch.zeros_like(qw), torch.zeros_like(kw)
        op("head_norm_backward")(dout, qkv, qw, kw, rstd, hq, hkv, d, dqkv, dqw, dkw)
        return dqkv, dqw, dkw

    assert gradcheck(function(forward, backward), [t.requires_grad_() for t in (qkv, qw, kw)])


def test_embedding():
    table, positions = rand(5, 3).requires_grad_(), rand(4, 3)
    tokens, place = torch.tensor([1, 4, 1]), torch.tensor([0, 1, 2])

    def forward(table):
        out = torch.empty(3, 3, dtype=F64)
        op("embedding_forward")(tokens, table, positions, place, out)
        return out, None

    def backward(dout, _, table):
        d = torch.zeros_like(table)
        op("embedding_backward")(tokens, dout, d)
        return d

    assert gradcheck(function(forward, backward), [table])


def test_bias():
    x, bias = rand(5, 3), rand(3).requires_grad_()

    def backward(dy, _, bias):
        db = torch.zeros_like(bias)
        op("bias_gradient")(dy, db)
        return db

    assert gradcheck(function(lambda bias: (x + bias, None), backward), [bias])


def test_linear_mse():
    h, w, b, target, weights = rand(4, 3).requires_grad_(), rand(3).requires_grad_(), rand(1).requires_grad_(), rand(4), rand(4, seed=8)
    (((h @ w + b - target) ** 2) * weights).sum().backward()
    pred, loss = torch.empty(4, dtype=F64), torch.empty(4, dtype=F64)
    dh, dw, db = torch.empty(4, 3, dtype=F64), torch.zeros(3, dtype=F64), torch.zeros(1, dtype=F64)
    op("linear_mse")(h.detach(), w.detach(), b.detach(), target, weights, pred, loss, dh, dw, db)
    assert torch.allclose(loss, (h @ w + b - target).detach() ** 2)
    for ours, theirs in ((dh, h.grad), (dw, w.grad), (db, b.grad)):
        assert torch.allclose(ours, theirs)


@pytest.mark.parametrize(
    "kind,theirs",
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-8)),
        ("adamw", lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.8, 0.95), eps=1e-8, weight_decay=0.3)),
    ],
)
def test_update_equals_torch_optim(kind, theirs):
    start = rand(7)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = theirs([parameter])
    rule = UpdateRule(kind, clip=1.5, beta1=0.8, beta2=0.95, eps=1e-8, weight_decay=0.3, momentum=0.9)
    master, first, second = start[None].clone(), torch.zeros(1, 7, dtype=F64), torch.zeros(1, 7, dtype=F64)
    slots, lr, step = torch.zeros(1, dtype=torch.int32), torch.tensor([0.1]), torch.zeros(1, dtype=torch.int32)
    for i in range(4):
        g = rand(7, seed=20 + i)
        parameter.grad = g.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 1.5)
        optimizer.step()
        grad, norms, skipped = g[None].clone(), torch.empty(1), torch.empty(1, dtype=torch.int32)
        op("update")(UpdateState(master, grad=grad, first=first, second=second, step=step), rule, slots, lr, norms, skipped)
        assert torch.allclose(master[0], parameter.data, atol=1e-7) and not grad.any() and not skipped[0]
    assert int(step[0]) == 4


def test_update_decays_to_the_prior_and_skips_what_is_not_finite():
    master, prior = rand(2, 3), rand(3, seed=6)
    grad = torch.zeros(2, 3, dtype=F64)
    grad[1, 1] = float("nan")
    before, step = master.clone(), torch.zeros(2, dtype=torch.int32)
    norms, skipped = torch.empty(2), torch.empty(2, dtype=torch.int32)
    state = UpdateState(master, grad=grad, prior=prior, step=step)
    op("update")(state, UpdateRule("sgd", decay=0.25), torch.tensor([1, 0], dtype=torch.int32), torch.ones(2), norms, skipped)
    assert torch.allclose(master[0], before[0] + 0.25 * (prior - before[0]))
    assert torch.equal(master[1], before[1]) and skipped.tolist() == [1, 0] and step.tolist() == [1, 0] and not grad.any()


def test_rms_is_krauses_rule():
    theta, prior, g, stat = rand(5), rand(5, seed=1), rand(5, seed=2), rand(5, seed=3).abs()
    lr, lamb, eps = 5e-3, 2e-1, 2e-5
    rate = (stat / stat.mean()).clamp(max=1 / lamb)
    expected = theta + lamb * rate * (prior - theta) - lr * g / (stat + eps)
    master = theta[None].clone()
    step, slots = (torch.zeros(1, dtype=torch.int32) for _ in range(2))
    state = UpdateState(master, grad=g[None].clone(), prior=prior, stat=stat, prior_rate=rate, step=step)
    norms, skipped = torch.empty(1), torch.empty(1, dtype=torch.int32)
    op("update")(state, UpdateRule("rms", decay=lamb, eps=eps), slots, torch.tensor([lr], dtype=F64), norms, skipped)
    assert torch.allclose(master[0], expected)


@pytest.mark.parametrize("beta1", [0.9, 0.0])
def test_lion_is_chens_algorithm(beta1):
    """Algorithm 2 of arXiv 2302.06675, element by element."""
    optimizer = Lion(betas=(beta1, 0.99), weight_decay=0.3, clip=0.0)
    theta, m, lr = rand(6).tolist(), [0.0] * 6, 0.05
    state = UpdateState(rand(6)[None].clone(), first=torch.zeros(1, 6, dtype=F64), step=torch.zeros(1, dtype=torch.int32))
    for t in range(4):
        gradient = rand(6, seed=t)
        gradient[t] = 0.0  # in the first step c is 0 here: the sign of nothing is 0
        for i, g in enumerate(gradient.tolist()):
            c = beta1 * m[i] + (1 - beta1) * g
            theta[i] -= lr * ((c > 0) - (c < 0) + 0.3 * theta[i])
            m[i] = 0.99 * m[i] + 0.01 * g if beta1 else 0.0
        state.grad = gradient[None].clone()
        slots, norms, skipped = torch.zeros(1, dtype=torch.int32), torch.empty(1), torch.empty(1, dtype=torch.int32)
        op("update")(state, optimizer.rule(), slots, torch.tensor([lr], dtype=F64), norms, skipped)
    assert torch.allclose(state.master[0], torch.tensor(theta, dtype=F64)) and torch.allclose(state.first[0], torch.tensor(m, dtype=F64))
