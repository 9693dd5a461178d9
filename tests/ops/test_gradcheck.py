"""The reference of every op with a backward passes float64 gradcheck (invariant 4)."""

import inspect

import pytest
import torch
from op_cases import each
from torch.autograd import gradcheck

from dynadapt import Lion
from dynadapt.bench.cases import (
    Op,
    activation,
    attention,
    bias_gradient,
    delta_gates,
    delta_rule,
    embedding,
    gated_norm,
    head_norm,
    linear,
    lora_gradient,
    materialise,
    norm,
    short_convolution,
)
from dynadapt.interop import torch_ops
from dynadapt.ops import DenseMatrix, resolve
from dynadapt.ops.update import UpdateRule, UpdateState

F64 = torch.float64
FAMILIES = (
    *(activation, attention, bias_gradient, delta_gates, delta_rule, embedding, gated_norm, head_norm, linear, lora_gradient),
    *(norm, short_convolution),
)
ABOUT = {about.name: about for family in FAMILIES for about in vars(family).values() if isinstance(about, Op)}


def op(name):
    return resolve(name, "reference", F64).function


def rand(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed + sum(shape)))


def backward_call(about, known, gradients):
    """The arguments of a backward op, by their names: what the forward pass and the ops before it left, and outputs to be written."""
    known = {**known, "accumulate": False, "part_sizes": [part.shape[0] for part in known.get("parts", ())]}
    of = {gradient: known[name] for name, gradient in gradients.items()} | {"dU": known.get("u")}
    again = {name: known[name] for name in about.outputs if name in known}  # what the forward pass wrote, written once more
    call = {}
    for name in inspect.signature(op(about.name)).parameters:
        if name not in about.outputs:
            call[name] = known[name]
        elif name in again:
            call[name] = torch.full_like(again[name], float("nan"))
        else:  # zero where the op adds, or writes the slots of its streams alone
            like = of.get(name)
            call[name] = None if like is None else torch.full_like(like, 0.0 if name in about.changed or "slots" in call else float("nan"))
    return call, again


def passes(case):
    """A forward case as an autograd function of its differentiable inputs, with its explicit backward ops; and these inputs."""
    learns = {name: gradient for name, gradient in case.about.gradients.items() if case[name] is not None}
    chain = [ABOUT[name] for name in case.about.backward]
    asked = {name for about in chain for name in inspect.signature(op(about.name)).parameters}
    outputs = [name for name in case.about.outputs if f"d{name}" in asked and case[name] is not None]

    class Passes(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            known = dict(zip(case.arguments, materialise(case, "reference"))) | dict(zip(learns, inputs))
            op(case.op)(*known.values())
            if known.get("delta", 0) is None:  # nothing was added: the sum is the input itself
                known["res"] = known["x"]
            ctx.known = known
            return tuple(known[name] for name in outputs)

        @staticmethod
        def backward(ctx, *upstream):
            known = {"dres": None, **ctx.known, **{f"d{name}": g.contiguous() for name, g in zip(outputs, upstream)}}
            for about in chain:
                call, again = backward_call(about, known, learns)
                op(about.name)(*call.values())
                assert all(torch.equal(call[name], t) for name, t in again.items())
                known |= {name: call[name] for name in about.outputs if name not in again}
            return tuple(known[gradient] for gradient in learns.values())

    return Passes.apply, [case[name].detach().clone().requires_grad_() for name in learns]


@each(norm.norm_forward, [(5, 7, kind, delta) for kind in ("rms", "layer") for delta in (True, False)], [F64])
def test_norm(case):
    assert gradcheck(*passes(case))


@each(linear.linear_forward, [(6, 5, (4, 3), 2, streams) for streams in (1, 2)] + [(6, 5, (4, 3, 2), (2, 0, 1), 2)], [F64])
def test_linear(case):
    assert gradcheck(*passes(case))


@each([head_norm.head_norm_forward], [(3, 3, 2, 4), (3, 3, 2, 4, True)], [F64])
def test_head_norm(case):
    assert gradcheck(*passes(case))


@each(activation.activation_forward, [(3, 4, kind) for kind in ("swiglu", "gelu_tanh", "gelu", "geglu_tanh", "glu")], [F64])
def test_activation(case):
    assert gradcheck(*passes(case))


@each(embedding.embedding_forward, [(3, 3, 5), (3, 3, 5, 4)], [F64])
def test_embedding(case):
    assert gradcheck(*passes(case))


@each(attention.attention_forward, [(2, 3, None, 4, 2, 4, rotary, "", window) for rotary in (True, False) for window in (None, 2)], [F64])
def test_attention(case):
    assert gradcheck(*passes(case))


@each(attention.attention_forward, [(2, 3, 5, 4, 2, 4, True, "", window, cap) for window, cap in ((None, 0.7), (3, 2.0))], [F64])
def test_capped_attention(case):
    assert gradcheck(*passes(case.change(mem_len=torch.tensor((0, 3, 0, 5), dtype=torch.int32))))


@pytest.mark.parametrize("filled", [(0, 3, 0, 5), (4, 2, 5, 1)])
@each(attention.attention_forward, [(2, 3, 5, 4, 2, 4, rotary, "", window) for rotary in (True, False) for window in (None, 4)], [F64])
def test_attention_over_memory(case, filled):
    assert gradcheck(*passes(case.change(mem_len=torch.tensor(filled, dtype=torch.int32))))


@each(delta_rule.delta_rule_forward, [(2, 4, 2, 4, 3, 2), (1, 5, 1, 1, 2, 3, False)], [F64])
def test_delta_rule(case):
    assert gradcheck(*passes(case))


@each(delta_gates.delta_gates_forward, [(4, 3)], [F64])
def test_delta_gates(case):
    assert gradcheck(*passes(case))


@each(short_convolution.short_convolution_forward, [(2, 4, 3), (2, 2, 3, 4), (1, 3, 2, 3, False), (1, 2, 2, 1)], [F64])
def test_short_convolution(case):
    assert gradcheck(*passes(case))


@each(gated_norm.gated_norm_forward, [(3, 2, 4)], [F64])
def test_gated_norm(case):
    assert gradcheck(*passes(case))


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


def test_distillation():
    h, head = rand(6, 5).requires_grad_(), DenseMatrix(rand(11, 5))
    targets, weights = torch.tensor([3, -1, 0, 10, 7, -1]), rand(6).abs()
    ids = torch.tensor([[3, 1, 0], [5, 2, 1], [0, 10, 9], [10, -1, -1], [1, 6, -1], [0, 1, 2]])
    logp = torch.log_softmax(rand(6, 3), 1) - 0.2
    scored, known = targets >= 0, ids >= 0
    log_q = torch.log_softmax(h @ head.weight.t(), 1)
    losses = (torch.where(known, logp.exp() * (logp - log_q.gather(1, ids.clamp(min=0))), 0.0).sum(1)) * scored
    (losses * weights).sum().backward()
    nll, lse, kl = (torch.full((6,), float("nan"), dtype=F64) for _ in range(3))
    dh = torch.full_like(h, float("nan"))
    op("distillation")(h.detach(), head, targets, ids, logp, weights, nll, lse, kl, dh)
    assert torch.allclose(dh, h.grad) and torch.allclose(kl, losses)
    score = torch.full((6,), float("nan"), dtype=F64), torch.full((6,), float("nan"), dtype=F64)
    op("cross_entropy")(h.detach(), head, targets, None, *score, None)
    assert torch.equal(nll, score[0]) and torch.equal(lse, score[1])
    whole = torch.log_softmax(rand(6, 11, seed=9), 1)  # of all tokens: torch's own divergence
    op("distillation")(h.detach(), head, targets, torch.arange(11).repeat(6, 1), whole, None, nll, lse, kl, dh)
    expected = torch.nn.functional.kl_div(log_q.detach(), whole, reduction="none", log_target=True).sum(1)
    assert torch.allclose(kl, expected * scored)


def test_cross_entropy_weight_gradient():
    h, W, targets, weights = rand(6, 5), rand(11, 5).requires_grad_(), torch.tensor([3, -1, 0, 10, 7, 2]), rand(6)
    loss = torch.nn.functional.cross_entropy(h @ W.t(), targets.clamp(min=0), reduction="none")
    (loss * weights * (targets >= 0)).sum().backward()
    lse = torch.logsumexp(h @ W.detach().t(), 1)
    dW = torch.ones(11, 5, dtype=F64)
    op("cross_entropy_weight_gradient")(h, DenseMatrix(W.detach()), targets, weights, lse, dW, True)
    assert torch.allclose(dW, W.grad + 1)


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_capped_and_adapted_cross_entropy(softcap):
    """As autograd has the loss and every gradient, of adapters of two streams of unequal lengths."""
    h, W, A, Bt = (t.requires_grad_() for t in (rand(6, 5), rand(11, 5, seed=1), rand(3, 2, 5), rand(3, 2, 11)))
    targets, weights, slots = torch.tensor([3, -1, 0, 10, 7, 2]), rand(6, seed=3).abs(), torch.tensor([2, 2, 0, 0, 0, 0]).int()
    logits = h @ W.t() + 0.5 * torch.einsum("nh,nrh,nrv->nv", h, A[slots.long()], Bt[slots.long()])
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    losses = torch.nn.functional.cross_entropy(logits, targets.clamp(min=0), reduction="none") * (targets >= 0)
    (losses * weights).sum().backward()
    h, W, A, Bt = ((t.detach(), t.grad) for t in (h, W, A, Bt))
    (u, dU), (nll, lse), dh = (
        torch.full((2, 6, 2), float("nan"), dtype=F64),
        torch.full((2, 6), float("nan"), dtype=F64),
        torch.empty(6, 5, dtype=F64),
    )
    head = DenseMatrix(W[0])
    given = h[0], head, A[0], Bt[0], slots, 0.5, targets
    op("adapted_cross_entropy")(*given, weights, u, nll, lse, dh, dU, softcap)
    assert torch.allclose(nll, losses) and torch.allclose(lse, torch.logsumexp(logits, 1)) and torch.allclose(dh, h[1])
    alone, known = torch.empty_like(dU), dU.clone()
    op("adapted_cross_entropy")(*given, weights, u, nll, lse, None, alone, softcap)
    assert torch.equal(alone, known)
    op("adapted_cross_entropy")(*given, None, u, nll, lse, None, None, softcap)
    assert torch.allclose(nll, losses)
    dA, dBt = torch.zeros_like(A[0]), torch.zeros_like(Bt[0])
    for accumulate in (False, True):
        op("adapted_cross_entropy_gradient")(h[0], head, Bt[0], slots, 0.5, targets, weights, lse, u, dU, dA, dBt, accumulate, softcap)
        assert torch.allclose(dA, A[1] * (1 + accumulate)) and torch.allclose(dBt, Bt[1] * (1 + accumulate))


def test_capped_cross_entropy():
    h, W, targets, weights = (
        rand(6, 5).requires_grad_(),
        rand(11, 5, seed=1).requires_grad_(),
        torch.tensor([3, -1, 0, 10, 7, 2]),
        rand(6).abs(),
    )
    logits = 1.5 * torch.tanh(h @ W.t() / 1.5)
    losses = torch.nn.functional.cross_entropy(logits, targets.clamp(min=0), reduction="none") * (targets >= 0)
    (losses * weights).sum().backward()
    (nll, lse), dh, dW, head = (
        torch.empty(2, 6, dtype=F64),
        torch.empty(6, 5, dtype=F64),
        torch.ones(11, 5, dtype=F64),
        DenseMatrix(W.detach()),
    )
    op("cross_entropy")(h.detach(), head, targets, weights, nll, lse, dh, 1.5)
    op("cross_entropy_weight_gradient")(h.detach(), head, targets, weights, lse, dW, True, 1.5)
    assert torch.allclose(nll, losses) and torch.allclose(dh, h.grad) and torch.allclose(dW, W.grad + 1)
    ids, logp = torch.arange(11).repeat(6, 1), torch.log_softmax(rand(6, 11, seed=9), 1)
    h.grad = None
    kl = torch.nn.functional.kl_div(torch.log_softmax(1.5 * torch.tanh(h @ W.t() / 1.5), 1), logp, reduction="none", log_target=True)
    kl = kl.sum(1) * (targets >= 0)
    (kl * weights).sum().backward()
    found = torch.empty(6, dtype=F64)
    op("distillation")(h.detach(), head, targets, ids, logp, weights, nll, lse, found, dh, 1.5)
    assert torch.allclose(found, kl) and torch.allclose(dh, h.grad)


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


def test_adapted_embedding():
    """As autograd has the gradients of A and Bt, of two streams, of which one has a token twice."""
    tokens, slots = torch.tensor([3, 0, 3, 1, 4, 2]), torch.tensor([2, 0]).int()
    A, Bt, dout = rand(3, 2, 5).requires_grad_(), rand(3, 2, 4, seed=1).requires_grad_(), rand(6, 4, seed=2)
    each = slots.long().repeat_interleave(3)
    added = 0.5 * torch.einsum("nr,nrh->nh", A[each, :, tokens], Bt[each])
    (added * dout).sum().backward()
    out = torch.ones(6, 4, dtype=F64)
    given = A.detach(), Bt.detach(), slots, 0.5
    op("adapted_embedding_forward")(tokens, *given, out)
    assert torch.allclose(out, added + 1)
    dA, dBt = torch.zeros_like(given[0]), torch.zeros_like(given[1])
    for accumulate in (False, True):
        op("adapted_embedding_backward")(tokens, dout, *given, dA, dBt, accumulate)
        assert torch.allclose(dA, A.grad * (1 + accumulate)) and torch.allclose(dBt, Bt.grad * (1 + accumulate))
