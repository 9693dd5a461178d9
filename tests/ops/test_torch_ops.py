"""Every op of torch.library: opcheck, gradients in float64, torch.compile without graph breaks, export, FLOPs, refusals."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torch_calls import I32, KEYWORDS, TARGETS, adapter, calls, rand

from dynadapt.interop import torch_ops
from dynadapt.interop.torch_ops import registry
from dynadapt.ops import attention as op_attention
from dynadapt.ops import cross_entropy as op_entropy
from dynadapt.ops import linear as op_linear
from dynadapt.ops import lora_gradient as op_lora
from dynadapt.ops.table import OPS

DECODER = ("linear", "cross_entropy", "linear_mse", "norm", "add_norm", "head_norm", "activation", "embedding", "attention")
DELTA_LAYER = ("short_convolution", "delta_gates", "delta_rule", "gated_norm")
DIFFERENTIABLE = DECODER + DELTA_LAYER


def op(name):
    return getattr(torch.ops.dynadapt, name).default


def test_every_op_is_registered_and_has_a_call_here():
    assert set(torch_ops.SCHEMAS) == set(calls(torch.float32, False))
    from dynadapt.ops.dispatch import defined_ops

    plain = {name.removesuffix("_forward") for name in defined_ops()}
    assert plain <= set(torch_ops.SCHEMAS), plain - set(torch_ops.SCHEMAS)


@pytest.mark.parametrize("name", list(torch_ops.SCHEMAS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(name, dtype):
    arguments = calls(dtype, name in DIFFERENTIABLE)[name]
    # Autograd and tracing do not look at the dtype; what the fake says about it does.
    checks = {} if dtype == torch.float32 else {"test_utils": ("test_schema", "test_faketensor")}
    torch.library.opcheck(op(name), arguments, KEYWORDS.get(name), **checks)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_in_float64(name):
    arguments = calls(torch.float64, True)[name]
    leaves = [a for a in arguments if isinstance(a, torch.Tensor) and a.requires_grad]
    weights = [w for a in arguments if isinstance(a, list) for w in a if isinstance(w, torch.Tensor)]
    assert leaves

    def scored(*_):
        result = op(name)(*arguments)
        return tuple(r for r in (result if isinstance(result, tuple) else (result,)) if r.requires_grad)

    assert torch.autograd.gradcheck(scored, leaves + weights)


def test_heads_that_are_normalised_together():
    qkv, q_weight, k_weight = (rand(*shape, seed=i, dtype=torch.float64, grad=True) for i, shape in enumerate(((6, 16), (8,), (4,))))
    torch.library.opcheck(op("head_norm"), (qkv, q_weight, k_weight, 1e-6, 2, 1, 4))
    assert torch.autograd.gradcheck(lambda *a: torch_ops.head_norm(*a, 2, 1, 4), (qkv, q_weight, k_weight))
    q, k = (torch.nn.functional.rms_norm(x, w.shape, w, 1e-6) for x, w in ((qkv[:, :8], q_weight), (qkv[:, 8:12], k_weight)))
    assert torch.allclose(torch_ops.head_norm(qkv, q_weight, k_weight, 2, 1, 4), torch.cat([q, k, qkv[:, 12:]], 1))


def test_a_gradient_that_was_not_foreseen_is_computed_in_backward():
    h, head = rand(6, 5, dtype=torch.float64, grad=True), rand(11, 5, dtype=torch.float64)
    nll, lse, dh = op("cross_entropy")(h, head, TARGETS, False)
    assert dh.shape == (0, 5) and torch.allclose(lse, torch.logsumexp(h @ head.t(), 1))
    weights = rand(6, seed=3, dtype=torch.float64)
    (nll * weights).sum().backward()
    expected = torch.autograd.grad((torch_ops.cross_entropy(h, head, TARGETS) * weights).sum(), h)[0]
    assert torch.equal(h.grad, expected) and not h.grad[1].any() and h.grad[0].any()


def test_second_derivatives_are_refused():
    h = rand(3, 4, grad=True)
    (grad,) = torch.autograd.grad(torch_ops.activation(h, "gelu").sum(), h, create_graph=True)
    with pytest.raises(NotImplementedError, match="activation_backward is a gradient itself"):
        grad.sum().backward()


def one_argument(name, dtype=torch.float32):
    """(an op as a function of its first floating-point argument, which gives the first that it computes or changes, that argument)."""
    leaves, spec = torch.utils._pytree.tree_flatten(calls(dtype, False)[name])
    at = next(i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor) and x.is_floating_point())
    floats = lambda ts: [t for t in ts if isinstance(t, torch.Tensor) and t.is_floating_point()]  # noqa: E731

    def function(x):
        given = [t.clone() if isinstance(t, torch.Tensor) else t for t in leaves]
        given[at] = x
        out = op(name)(*torch.utils._pytree.tree_unflatten(given, spec), **KEYWORDS.get(name, {}))
        return (floats(torch.utils._pytree.tree_leaves(out)) or floats(given[:at] + given[at + 1 :]))[0]

    return function, leaves[at].clone()


WITH_NUMBERS = [name for name in torch_ops.SCHEMAS if name not in ("memory_fill", "scored_targets")]


@pytest.mark.parametrize("name", WITH_NUMBERS)
def test_forward_mode_and_functional_transforms_are_refused_by_name(name):
    """Where torch itself lets the tangent fall, and the derivative comes out as 0."""
    function, x = one_argument(name)
    loss = lambda x: function(x).sum()  # noqa: E731
    for transform, why in (
        (lambda: torch.func.jvp(function, (x,), (x,)), "has no forward-mode derivative"),
        (lambda: torch.func.jacfwd(loss)(x), "has no forward-mode derivative"),
        (lambda: torch.func.grad(loss)(x.clone()), "takes no part in the transforms of torch.func"),
        (lambda: torch.func.jacrev(loss)(x.clone()), "takes no part in the transforms of torch.func"),
        (lambda: torch.func.hessian(loss)(x.clone()), "takes no part in the transforms of torch.func"),
        (lambda: torch.func.vmap(torch.func.grad(loss))(torch.stack([x, x])), f"{name}"),
    ):
        with pytest.raises(NotImplementedError, match=f"dynadapt::{name}.*{why}" if why != name else name):
            transform()
    for learns in (False, True):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x.clone().requires_grad_(learns), torch.ones_like(x))
            with pytest.raises(NotImplementedError, match=f"dynadapt::{name} has no forward-mode derivative"):
                function(dual)


@pytest.mark.parametrize("name", WITH_NUMBERS)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_is_right_or_refused(name):
    function, x = one_argument(name)
    both = torch.stack([x, x.flip(0)])
    try:
        batched = torch.func.vmap(function)(both)
    except RuntimeError as error:
        assert f"dynadapt::{name}" in str(error)
        return
    assert torch.equal(batched, torch.stack([function(both[0]), function(both[1])]))


@pytest.mark.parametrize("name", [n for n, schema in torch_ops.SCHEMAS.items() if schema.endswith("-> ()") and n != "memory_fill"])
def test_in_place_ops_refuse_what_would_need_a_gradient(name):
    function, x = one_argument(name)
    with pytest.raises(NotImplementedError, match=f"dynadapt::{name} changes its arguments in place"):
        function(x.requires_grad_())
    with torch.no_grad():
        function(x)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_second_derivatives_are_refused_wherever_a_gradient_depends_on_its_sources(name):
    """In each differentiable argument, of each gradient: also those that were computed before backward ran."""
    arguments = calls(torch.float64, True)[name]
    leaves = [t for t in torch.utils._pytree.tree_leaves(arguments) if isinstance(t, torch.Tensor) and t.requires_grad]
    out = op(name)(*arguments)
    loss = sum(t.square().sum() for t in (out if isinstance(out, tuple) else (out,)) if t.requires_grad)
    for gradient in torch.autograd.grad(loss, leaves, create_graph=True):
        assert gradient.requires_grad
        with pytest.raises(NotImplementedError, match="differentiate once only"):
            torch.autograd.grad(gradient.square().sum(), leaves, retain_graph=True, allow_unused=True)


def test_a_gradient_penalty_on_cross_entropy_is_refused():
    h = rand(6, 5, grad=True)
    (gradient,) = torch.autograd.grad(torch_ops.cross_entropy(h, rand(11, 5), TARGETS).sum(), h, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradient of dynadapt::cross_entropy has no derivative"):
        gradient.norm().backward()


class Everything(torch.nn.Module):
    """Each op of DECODER once, in the order of a small one."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        names = {
            "table": (11, 8),
            "n1": (8,),
            "qkv": (16, 8),
            "qn": (4,),
            "kn": (4,),
            "A": (2, 8),
            "Bt": (2, 16),
            "o": (8, 8),
            "n2": (8,),
            "gate": (6, 8),
            "up": (6, 8),
            "down": (8, 6),
            "bias": (8,),
            "head": (11, 8),
            "readout": (8,),
        }
        for i, (name, shape) in enumerate(names.items()):
            self.register_parameter(name, torch.nn.Parameter(rand(*shape, seed=i, dtype=dtype) / shape[-1] ** 0.5))
        angles = torch.arange(64)[:, None] * torch.tensor([1.0, 0.3])
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens, targets):
        x = torch_ops.embedding(tokens, self.table)
        qkv = torch_ops.linear(torch_ops.norm(x, self.n1), [self.qkv], None, self.A, self.Bt, scale=0.5)
        qkv = torch_ops.head_norm(qkv, self.qn, self.kn, 2, 1, 4)
        out = torch_ops.attention(qkv, 2, 1, 4, cos=self.cos, sin=self.sin)
        x, y = torch_ops.add_norm(x, torch_ops.linear(out, self.o), self.n2)
        y = torch_ops.activation(torch_ops.linear(y, [self.gate, self.up]), "swiglu")
        h = x + torch_ops.linear(y, self.down, self.bias)
        nll = torch_ops.cross_entropy(h, self.head, targets)
        _, loss = torch_ops.linear_mse(h, self.readout, targets.float())
        return nll, loss

    def plain(self, tokens, targets):
        """The same in torch's own ops."""
        F = torch.nn.functional
        x = self.table[tokens]
        y = F.rms_norm(x, (8,), self.n1, 1e-5)
        qkv = y @ self.qkv.t() + 0.5 * (y @ self.A.t()) @ self.Bt
        heads = qkv.view(len(tokens), 4, 4).transpose(0, 1)
        q, k = F.rms_norm(heads[:2], (4,), self.qn, 1e-6), F.rms_norm(heads[2:3], (4,), self.kn, 1e-6)
        q, k = (op_attention.rotate(t, self.cos[: len(tokens)], self.sin[: len(tokens)]) for t in (q, k))
        out = F.scaled_dot_product_attention(q, k.expand(2, -1, -1), heads[3:].expand(2, -1, -1), is_causal=True)
        x = x + out.transpose(0, 1).reshape(len(tokens), 8) @ self.o.t()
        y = F.rms_norm(x, (8,), self.n2, 1e-5)
        h = x + (F.silu(y @ self.gate.t()) * (y @ self.up.t())) @ self.down.t() + self.bias
        return F.cross_entropy(h @ self.head.t(), targets, reduction="none"), (h @ self.readout - targets) ** 2


TOKENS, NEXT = torch.tensor([1, 4, 10, 0, 7]), torch.tensor([4, 10, 0, 7, 2])


def loss_and_gradients(model, forward, tokens=TOKENS, targets=NEXT):
    nll, loss = forward(tokens, targets)
    weights = torch.arange(len(tokens)) + 1.0
    grads = torch.autograd.grad((nll * weights).sum() + (loss * weights.flip(0)).sum(), list(model.parameters()))
    return [nll, loss, *grads]


def test_a_decoder_of_these_ops_equals_torchs_own():
    model = Everything()
    for ours, theirs in zip(loss_and_gradients(model, model), loss_and_gradients(model, model.plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_without_graph_breaks_and_for_any_length(backend):
    model = Everything()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for tokens, targets in ((TOKENS, NEXT), (TOKENS.repeat(3), NEXT.repeat(3))):
        ours = loss_and_gradients(model, compiled, tokens, targets)
        for a, b in zip(ours, loss_and_gradients(model, model, tokens, targets), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_exported_program_holds_the_ops_and_runs_at_another_length():
    model, length = Everything(), torch.export.Dim("length", min=2, max=60)
    program = torch.export.export(model, (TOKENS, NEXT), dynamic_shapes=({0: length}, {0: length}))
    inside = {str(node.target).split(".")[1] for node in program.graph.nodes if "dynadapt" in str(node.target)}
    assert inside == set(DECODER)
    tokens, targets = TOKENS.repeat(4), NEXT.repeat(4)
    for a, b in zip(program.module()(tokens, targets), model(tokens, targets), strict=True):
        assert torch.equal(a, b)


def test_mutating_op_compiled():
    def step(master, grad, first, second):
        slots, lr, count = torch.zeros(1, **I32), torch.full((1,), 0.1), torch.zeros(1, **I32)
        norms, skipped = torch.empty(1), torch.empty(1, **I32)
        op("update")("adam", master, grad, first, second, None, None, None, slots, lr, count, norms, skipped, clip=1.0)
        return norms, count

    state = [rand(1, 5), rand(1, 5, seed=1), torch.zeros(1, 5), torch.zeros(1, 5)]
    eager, compiled = [[t.clone() for t in state] for _ in range(2)]
    results = step(*eager), torch.compile(step, fullgraph=True, backend="aot_eager")(*compiled)
    for a, b in zip([*eager, *results[0]], [*compiled, *results[1]], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(eager[0], state[0]) and not eager[1].any()


@pytest.mark.parametrize("name", [n for n, schema in torch_ops.SCHEMAS.items() if schema.endswith("-> ()")])
def test_mutated_arguments_get_a_new_version(name):
    """Autograd's check of saved tensors and frozen weights rest on it."""
    arguments = calls(torch.float32, False)[name]
    flat = [t for a in arguments for t in (a if isinstance(a, list) else [a]) if isinstance(t, torch.Tensor)]
    versions, before = [t._version for t in flat], [t.clone() for t in flat]
    op(name)(*arguments, **KEYWORDS.get(name, {}))
    changed = [not torch.equal(a, b) for a, b in zip(flat, before)]
    assert any(changed)
    assert all(t._version > v for t, v, c in zip(flat, versions, changed) if c)
    with torch.inference_mode():
        op(name)(*calls(torch.float32, False)[name], **KEYWORDS.get(name, {}))


def test_a_frozen_weight_follows_an_optimizer_step_on_it():
    weight, x = rand(2, 5), rand(3, 5, seed=7)
    torch_ops.linear(x, torch_ops.freeze(weight))
    one = torch.zeros(1, **I32)
    op("update")(
        "sgd",
        weight.clone(),
        rand(2, 5, seed=1),
        None,
        None,
        None,
        None,
        weight,
        torch.tensor([0, 1], **I32),
        torch.ones(2),
        torch.zeros(2, **I32),
        torch.empty(2),
        one.repeat(2),
    )
    assert not torch.equal(weight, rand(2, 5))
    torch.testing.assert_close(torch_ops.linear(x, weight), x @ weight.t())


def test_flop_counter_uses_the_ops_formulas():
    x, weights, bias, A, Bt, slots, scale = adapter(torch.float32, True)
    with FlopCounterMode(display=False) as counter:
        torch_ops.linear(x, weights, bias, A, Bt, slots, scale).sum().backward()
    size = 6, 5, (4, 3), 2
    expected = op_linear.forward_flops(*size) + op_linear.backward_flops(*size) + op_lora.flops(*size)
    assert counter.get_total_flops() == expected + 2 * 6 * 5 * 7  # and both weights' gradients
    h, head = rand(6, 5, grad=True), rand(11, 5)
    with FlopCounterMode(display=False) as counter:
        torch_ops.cross_entropy(h, head, TARGETS).sum().backward()
    assert counter.get_total_flops() == op_entropy.flops(6, 5, 11, True)
    qkv = rand(6, 16, grad=True)
    with FlopCounterMode(display=False) as counter:
        torch_ops.attention(qkv, 2, 1, 4).sum().backward()
    assert counter.get_total_flops() == op_attention.forward_flops(6, 0, 2, 4) + sum(op_attention.backward_flops(6, 0, 2, 4))


@pytest.mark.parametrize("name", [name for row in OPS.values() if row.triton for name in row.torch_names])
def test_triton_serves_the_same_ops(name, monkeypatch):
    """What runs for CUDA tensors, here in Triton's interpreter, against the reference."""
    results = []
    for backend in ("reference", "triton"):
        monkeypatch.setattr(registry, "backend_of", lambda *_: backend)
        arguments = calls(torch.float32, False)[name]
        returned = op(name)(*arguments, **KEYWORDS.get(name, {}))
        leaves = torch.utils._pytree.tree_leaves(arguments if returned is None else returned)
        results.append([t for t in leaves if isinstance(t, torch.Tensor)])
    assert len(results[0]) >= 1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4, equal_nan=True)


def test_refusals_name_the_argument():
    x, weights, bias, A, Bt, slots, scale = adapter(torch.float32, False)
    with pytest.raises(ValueError, match="weight 1 is torch.bfloat16"):
        torch_ops.linear(x, [weights[0], weights[1].bfloat16()])
    with pytest.raises(ValueError, match="expected both or neither"):
        torch_ops.linear(x, weights, bias, A)
    with pytest.raises(ValueError, match=r"A has shape \[4, 4, 5\]"):
        torch_ops.linear(x, weights[0], None, A, Bt[:, :, :4], slots)
    with pytest.raises(ValueError, match=r"slots\[0\] is 5|slots"):
        torch_ops.linear(x, weights, bias, A, Bt, torch.tensor([5, 0], **I32), scale)
    with pytest.raises(ValueError, match=r"targets has shape \(6, 1\)"):
        torch_ops.cross_entropy(x, weights[0], TARGETS[:, None])
    with pytest.raises(ValueError, match="kind='batch'"):
        torch_ops.norm(x, x[0], kind="batch")
    with pytest.raises(RuntimeError, match="float16: its kernels serve float32 and bfloat16"):
        torch_ops.activation(x.half(), "gelu")
    with pytest.raises(ValueError, match="expected an even last dimension"):
        torch_ops.activation(x, "swiglu")
