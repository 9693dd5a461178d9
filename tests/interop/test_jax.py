"""dynadapt.jax: values and gradients against jax.numpy inside jit and grad, bits of the torch ops, in-place state, refusals."""

import gc
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import dynadapt.interop.jax as dj
import dynadapt.interop.numpy as dn
from dynadapt import Adam
from dynadapt.bench.cases import Draw
from dynadapt.bench.cases.activation import activation_forward
from dynadapt.bench.cases.attention import attention_forward
from dynadapt.bench.cases.cross_entropy import cross_entropy
from dynadapt.bench.cases.embedding import embedding_forward
from dynadapt.bench.cases.head_norm import head_norm_forward
from dynadapt.bench.cases.linear import linear_forward
from dynadapt.bench.cases.linear_mse import linear_mse
from dynadapt.bench.cases.norm import norm_forward
from dynadapt.interop.jax import build
from dynadapt.ops.activation import GATED
from dynadapt.ops.dispatch import UnsupportedOp
from dynadapt.ops.update import UpdateRule

DTYPES = [jnp.float32, jnp.bfloat16]
TOLERANCE = {jnp.float32: 3e-5, jnp.bfloat16: 4e-2}  # of the largest value


def rand(*shape, seed=0, dtype=jnp.float32):
    """By numpy: jax would compile a program for each shape."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype))


def arrays(dtype, make, sizes, names):
    """These arguments of an op's case."""
    case = make(Draw(torch.bfloat16 if dtype == jnp.bfloat16 else torch.float32), *sizes)
    narrow = lambda t: jnp.asarray(t.float().numpy()).astype(dtype) if t.dtype == torch.bfloat16 else jnp.asarray(t.numpy())  # noqa: E731
    return [tuple(map(narrow, v)) if isinstance(v := case[name], list) else narrow(v) for name in names.split()]


def close(ours, theirs, dtype):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        error, largest = np.abs(a - b).max(), np.abs(b).max()
        assert error <= TOLERANCE[dtype] * largest, (error, largest)


def agree(ours, theirs, arguments, dtype, seed=9):
    """Both functions' values and gradients for the same random weighting of their outputs, ours compiled."""

    def weighted(function):
        def value(*arguments):
            outputs = jax.tree.leaves(function(*arguments))
            weights = [rand(*o.shape, seed=seed + i) for i, o in enumerate(outputs)]
            return sum(jnp.sum(o.astype(jnp.float32) * w) for o, w in zip(outputs, weights)), outputs

        return jax.value_and_grad(value, tuple(range(len(arguments))), has_aux=True)

    both = jax.jit(lambda *a: (weighted(ours)(*a), weighted(theirs)(*a)))  # one program: most of the time is compilation
    ((_, ours_out), ours_grads), ((_, theirs_out), theirs_grads) = both(*arguments)
    for a, b in zip(jax.tree.leaves((ours_out, ours_grads)), jax.tree.leaves((theirs_out, theirs_grads)), strict=True):
        close(a, b, dtype)
    for a, b in zip(jax.tree.leaves(ours_grads), jax.tree.leaves(arguments), strict=True):
        assert a.dtype == b.dtype


def bits(array):
    array = np.asarray(array)
    return array.view({2: np.int16, 4: np.int32}[array.dtype.itemsize])


def same_bits(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (bits(a) == bits(b)).all()


def plain_linear(x, weights, bias, A, Bt, slots, scale):
    """Two streams, row blocks of equal length."""
    y, low = jnp.concatenate([x @ w.T for w in weights], 1) + bias, 0
    rank, rows = Bt.shape[1], x.shape[0] // len(slots)
    streams = []
    for i, slot in enumerate(slots):
        u, low, parts = x[i * rows : (i + 1) * rows] @ A[slot].T, 0, []
        for p, w in enumerate(weights):
            parts.append(u[:, p * rank : (p + 1) * rank] @ Bt[slot][:, low : low + w.shape[0]])
            low += w.shape[0]
        streams.append(jnp.concatenate(parts, 1))
    return y + scale * jnp.concatenate(streams)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_with_two_parts_and_two_streams(dtype):
    *arguments, slots = arrays(dtype, linear_forward, (6, 8, (4, 3), 2, 2), "x parts bias A Bt slots")
    ours = lambda *a: dj.linear(*a, slots=slots, scale=0.7)  # noqa: E731
    agree(ours, lambda *a: plain_linear(*a, slots.tolist(), 0.7), tuple(arguments), dtype)
    numpy = [np.asarray(a) if not isinstance(a, tuple) else [np.asarray(w) for w in a] for a in arguments]
    same_bits(ours(*arguments), dn.linear(*numpy, slots=np.asarray(slots), scale=0.7))


def test_linear_alone_and_over_more_dimensions():
    x, w = rand(2, 3, 8), rand(5, 8, seed=1)
    agree(dj.linear, lambda x, w: x @ w.T, (x, w), jnp.float32)
    batched = jax.vmap(dj.linear, (0, None))(x, w)
    same_bits(batched, dj.linear(x, w))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy(dtype):
    h, head, targets = arrays(dtype, cross_entropy, (7, 16, 33), "h head targets")

    def plain(h, head):
        logits = (h @ head.T).astype(jnp.float32)
        nll = jax.nn.logsumexp(logits, 1) - jnp.take_along_axis(logits, jnp.maximum(targets, 0)[:, None], 1)[:, 0]
        return jnp.where(targets >= 0, nll, 0.0)

    agree(lambda h, head: dj.cross_entropy(h, head, targets), plain, (h, head), dtype)
    same_bits(dj.cross_entropy(h, head, targets), dn.cross_entropy(np.asarray(h), np.asarray(head), np.asarray(targets, np.int64)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms(kind, dtype):
    x, delta, weight, bias = arrays(dtype, norm_forward, (6, 16, "layer"), "x delta weight bias")
    x, delta = x.reshape(2, 3, 16), delta.reshape(2, 3, 16)

    def plain(x, weight, bias):
        wide = x.astype(jnp.float32)
        wide = wide - (wide.mean(-1, keepdims=True) if kind == "layer" else 0)
        out = wide * jax.lax.rsqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
        return (out * weight.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)

    agree(lambda *a: dj.norm(*a, kind=kind), plain, (x, weight, bias), dtype)
    agree(lambda *a: dj.add_norm(*a, kind=kind), lambda x, d, w, b: (x + d, plain(x + d, w, b)), (x, delta, weight, bias), dtype)
    same_bits(dj.norm(x, weight, kind=kind), dn.norm(np.asarray(x), np.asarray(weight), kind=kind))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["swiglu", "gelu_tanh", "gelu", "geglu_tanh", "glu"])
def test_activations(kind, dtype):
    def plain(h):
        wide = h.astype(jnp.float32)
        if kind == "swiglu":
            return (jax.nn.silu(wide[..., :8]) * wide[..., 8:]).astype(h.dtype)
        if kind == "glu":
            return (jax.nn.sigmoid(wide[..., :8]) * wide[..., 8:]).astype(h.dtype)
        if kind == "geglu_tanh":
            return (jax.nn.gelu(wide[..., :8], approximate=True) * wide[..., 8:]).astype(h.dtype)
        return jax.nn.gelu(wide, approximate=kind == "gelu_tanh").astype(h.dtype)

    h = arrays(dtype, activation_forward, (6, 8 if kind in GATED else 16, kind), "h")[0].reshape(2, 3, 16)
    agree(lambda h: dj.activation(h, kind), plain, (h,), dtype)
    same_bits(dj.activation(h, kind), dn.activation(np.asarray(h), kind))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_norm_embedding_and_read_out(dtype):
    qkv, q_weight, k_weight = arrays(dtype, head_norm_forward, (6, 2, 1, 4), "qkv q_weight k_weight")

    def plain_heads(qkv, q_weight, k_weight):
        heads = qkv.reshape(6, 4, 4).astype(jnp.float32)
        normed = heads * jax.lax.rsqrt((heads**2).mean(-1, keepdims=True) + 1e-6)
        weights = jnp.stack([q_weight, q_weight, k_weight]).astype(jnp.float32)
        return jnp.concatenate([normed[:, :3] * weights, heads[:, 3:]], 1).reshape(6, 16).astype(dtype)

    agree(lambda *a: dj.head_norm(*a, 2, 1, 4), plain_heads, (qkv, q_weight, k_weight), dtype)

    def plain_together(qkv, q_weight, k_weight):
        parts = []
        for x, weight in ((qkv[:, :8], q_weight), (qkv[:, 8:12], k_weight)):
            x = x.astype(jnp.float32)
            parts.append(x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight.astype(jnp.float32))
        return jnp.concatenate([*parts, qkv[:, 12:].astype(jnp.float32)], 1).astype(dtype)

    given = arrays(dtype, head_norm_forward, (6, 2, 1, 4, True), "qkv q_weight k_weight")
    agree(lambda *a: dj.head_norm(*a, 2, 1, 4), plain_together, given, dtype)

    tokens, table, positions = arrays(dtype, embedding_forward, (6, 8, 5, 4), "tokens table position_table")
    tokens, places = tokens.reshape(2, 3), jnp.array([0, 1, 2])
    agree(lambda t, p: dj.embedding(tokens, t, p, places), lambda t, p: t[tokens] + p[places], (table, positions), dtype)

    h, weight, target, bias = arrays(dtype, linear_mse, (6, 8), "h weight target bias")
    plain = lambda h, w, t, b: (h.astype(jnp.float32) @ w.astype(jnp.float32) + b - t) ** 2  # noqa: E731
    agree(dj.linear_mse, plain, (h, weight, target, bias), dtype)
    same_bits(dj.linear_mse(h, weight, target), dn.linear_mse(np.asarray(h), np.asarray(weight), np.asarray(target))[1])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_over_a_memory(dtype, window):
    hq, hkv, d, T = 4, 2, 8, 5
    qkv, mem_k, mem_v, cos, sin = arrays(dtype, attention_forward, (1, T, 6, hq, hkv, d), "qkv mem_k mem_v cos sin")
    mem_k, mem_v = mem_k[:1], mem_v[:1]
    memory = mem_k, mem_v, jnp.array([4], jnp.int32)

    def plain(qkv):
        heads = qkv.reshape(T, -1, d).swapaxes(0, 1)
        old_k, old_v = (m[0, :4].reshape(4, hkv, d).swapaxes(0, 1) for m in (mem_k, mem_v))
        k, v = jnp.concatenate([old_k, heads[hq : hq + hkv]], 1), jnp.concatenate([old_v, heads[hq + hkv :]], 1)

        def rotate(x, first):
            a, b = jnp.split(x.astype(jnp.float32), 2, -1)
            c, s = cos[first : first + x.shape[1]], sin[first : first + x.shape[1]]
            return jnp.concatenate([a * c - b * s, b * c + a * s], -1).astype(dtype)

        q, k = rotate(heads[:hq], 4), rotate(k, 0)
        scores = jnp.einsum("htd,hld->htl", q, k.repeat(2, 0)).astype(jnp.float32) * d**-0.5
        key, query = jnp.arange(9)[None], jnp.arange(T)[:, None] + 4
        scores = jnp.where((key <= query) & (key > query - (window or 9)), scores, -jnp.inf)
        return jnp.einsum("htl,hld->thd", jax.nn.softmax(scores).astype(dtype), v.repeat(2, 0)).reshape(T, hq * d)

    ours = lambda qkv: dj.attention(qkv, hq, hkv, d, memory=memory, cos=cos, sin=sin, window=window)  # noqa: E731
    agree(ours, plain, (qkv,), dtype)
    # Gradients reach nothing but qkv, also where the memory is what is asked about.
    zero = jax.grad(lambda m: jnp.sum(dj.attention(qkv, hq, hkv, d, memory=(m, mem_v, memory[2]), cos=cos, sin=sin)))(mem_k)
    assert not zero.any()


def test_a_small_model_learns_inside_jit():
    parts = {"A": rand(2, 8, seed=1) / 8, "Bt": jnp.zeros((2, 16)), "norm": jnp.ones(16)}
    base, down, head = dj.freeze(rand(16, 8, seed=2) / 3), rand(8, 8, seed=3) / 3, dj.freeze(rand(20, 8, seed=4))
    x, targets = rand(9, 8, seed=5), jnp.arange(9) * 2

    def loss(parts, base, head):
        y = dj.norm(dj.linear(x, base, None, parts["A"], parts["Bt"], scale=2.0), parts["norm"])
        return dj.cross_entropy(dj.linear(dj.activation(y), down), head, targets).mean()

    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(20):
        value, grads = step(parts, base, head)
        parts = jax.tree.map(lambda p, g: p - 0.3 * g, parts, grads)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.3 and np.isfinite(losses).all()


def test_frozen_weights_give_the_same_bits_and_no_gradient():
    x, w = rand(6, 8), rand(5, 8, seed=1)
    frozen = dj.freeze(w)
    assert repr(frozen) == "Frozen((5, 8), float32)" and not jax.tree.leaves(frozen)
    same_bits(jax.jit(dj.linear)(x, frozen), dj.linear(x, w))
    same_bits(jax.grad(lambda x: dj.linear(x, [w, frozen]).sum())(x), jax.grad(lambda x: dj.linear(x, [w, w]).sum())(x))
    other = dj.freeze(2 * w)
    same_bits(jax.jit(dj.linear)(x, other), 2 * dj.linear(x, w))  # compiled anew, not the first one's result
    with pytest.raises(ValueError, match=r"weight is int32 \(3,\): expected float32 or bfloat16"):
        dj.freeze(jnp.arange(3))


def test_a_compiled_function_whose_weight_is_gone_says_so():
    weights = [dj.freeze(rand(5, 8))]
    program = jax.jit(lambda x: dj.linear(x, weights[0])).lower(rand(6, 8)).compile()
    assert program(rand(6, 8)).shape == (6, 5)
    weights.clear()
    jax.clear_caches()
    gc.collect()
    with pytest.raises(jax.errors.JaxRuntimeError, match="the frozen weight of this compiled function was deleted"):
        program(rand(6, 8)).block_until_ready()


def state(dtype=None):
    return dj.State(
        rand(2, 5),
        rand(2, 5, seed=1),
        jnp.zeros((2, 5)),
        jnp.zeros((2, 5)),
        None if dtype is None else rand(2, 5).astype(dtype),
        jnp.zeros(2, jnp.int32),
    )


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_update_is_the_torch_ops_and_leaves_the_old_state_alone(dtype):
    slots, lr, prior = jnp.array([1], jnp.int32), jnp.full(2, 0.1), rand(5, seed=4)
    before, kept = state(dtype), [None if t is None else np.array(t) for t in state(dtype)]
    new, norms, skipped = jax.jit(lambda s: dj.update(s, UpdateRule("adam", clip=1.0, decay=0.1), slots, lr, prior=prior))(before)
    same_bits([t for t in before if t is not None], [t for t in kept if t is not None])
    master, grad, first, second, working, step = kept
    theirs = np.zeros(1, np.float32), np.zeros(1, np.int32)
    dn.update(
        "adam",
        master,
        grad,
        first,
        second,
        np.asarray(prior),
        None,
        working,
        np.asarray(slots),
        np.asarray(lr),
        step,
        *theirs,
        clip=1.0,
        decay=0.1,
    )
    same_bits([t for t in new if t is not None], [t for t in kept if t is not None])
    same_bits([norms, skipped], list(theirs))
    assert not new.grad[1].any() and (new.grad[0] == before.grad[0]).all() and new.step.tolist() == [0, 1]


def test_update_by_a_kind_and_its_numbers_is_update_by_their_rule():
    slots, lr, prior = jnp.array([1], jnp.int32), jnp.full(2, 0.1), rand(5, seed=4)
    expected = dj.update(state(), UpdateRule("adam", clip=1.0, beta1=0.5), slots, lr, prior=prior)
    for call in (
        lambda: dj.update("adam", state(), slots, lr, prior=prior, clip=1.0, beta1=0.5),
        lambda: dj.update(lr=lr, kind="adam", slots=slots, state=state(), clip=1.0, beta1=0.5, prior=prior),
        lambda: dj.update("adam", state(), slots, lr=lr, prior=prior, clip=1.0, beta1=0.5),
    ):
        with pytest.warns(
            DeprecationWarning, match=r"update\(state, UpdateRule\('adam', ...\), slots, lr\).*adam with beta1 0.5, clip 1"
        ) as caught:
            found = call()
        assert caught[0].filename == __file__
        same_bits([t for t in (*found[0], *found[1:]) if t is not None], [t for t in (*expected[0], *expected[1:]) if t is not None])
    for wrong in ("adam", Adam(), None):
        with pytest.raises(ValueError, match=rf"rule={re.escape(repr(wrong))}: expected an UpdateRule, which is what an optimizer's rule"):
            dj.update(state(), wrong, slots, lr)
    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match="multiple values for argument 'rule'"):
        dj.update("adam", state(), slots, lr, rule=UpdateRule("sgd"))
    with pytest.warns(DeprecationWarning), pytest.raises(TypeError, match="unexpected keyword argument 'betas'"):
        dj.update("adam", state(), slots, lr, betas=(0.9, 0.99))


def test_a_donated_state_is_changed_in_place():
    slots, lr = jnp.array([0, 1], jnp.int32), jnp.full(2, 0.1)
    step = jax.jit(lambda s: dj.update(s._replace(grad=s.grad + 1), UpdateRule("sgd", momentum=0.9), slots, lr)[0], donate_argnums=0)
    old = dj.State(rand(2, 5000), rand(2, 5000, seed=1), jnp.zeros((2, 5000)), None, None, jnp.zeros(2, jnp.int32))
    master, first = np.array(old.master), np.array(old.grad) + 1
    addresses = [t.unsafe_buffer_pointer() for t in (old.master, old.first)]
    new = step(old)
    assert [t.unsafe_buffer_pointer() for t in (new.master, new.first)] == addresses and old.master.is_deleted()
    np.testing.assert_allclose(new.master, master - 0.1 * first, rtol=1e-5, atol=1e-6)


ON_TWO_DEVICES = """
import sys
import jax, jax.numpy as jnp, numpy as np
import dynadapt.interop.jax as dj
from jax.sharding import Mesh, PartitionSpec as P

mesh = Mesh(np.array(jax.devices()[:2]), ("d",))
rand = lambda *s: jnp.asarray(np.random.default_rng(sum(s)).standard_normal(s, np.float32))
x, w, A, Bt = rand(6, 8), rand(5, 8), rand(2, 8), rand(2, 5)
targets = jnp.array([0, 4, -1, 2, 2, 3])
cases = {
    "linear": (lambda x, w, A, Bt: dj.linear(x, w, None, A, Bt, scale=0.5), x, w, A, Bt),
    "cross_entropy": (lambda x, w: dj.cross_entropy(x, w, jnp.argmax(x, 1) % 5), x, w),
    "linear_mse": (lambda x, w, b: dj.linear_mse(x, w, x[:, 0], b), x, w[0], rand(1)),
    "norm": (lambda x, w: dj.norm(x, w), x, w[0]),
    "add_norm": (lambda x, w: dj.add_norm(x, 2 * x, w)[1], x, w[0]),
    "head_norm": (lambda x, w: dj.head_norm(x, w, w, 2, 1, 2), x, rand(2)),
    "activation": (lambda x, w: dj.activation(x + w, "gelu"), x, w[0]),
    "embedding": (lambda x, w: dj.embedding(jnp.argmax(x, 1) % 5, w), x, w),
    "attention": (lambda x, w: dj.attention(x * w, 2, 1, 2, slots=jnp.zeros(3, jnp.int32)), x, w[0]),
}
for name in sys.argv[1:] or cases:
    function, x, *rest = cases[name]
    split = jax.shard_map(function, mesh=mesh, in_specs=(P("d"),) + (P(),) * len(rest), out_specs=P("d"))
    whole = function
    if name == "attention":  # three rows, and one stream each, on a device
        whole = lambda x, w: dj.attention(x * w, 2, 1, 2, slots=jnp.zeros(6, jnp.int32))
    ours, theirs = (jax.value_and_grad(lambda *a, f=f: (f(*a) ** 2).sum(), tuple(range(1 + len(rest))))(x, *rest) for f in (split, whole))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5, err_msg=name)
    try:
        jax.shard_map(function, mesh=mesh, in_specs=(P("d"),) + (P(),) * len(rest), out_specs=P())(x, *rest)
    except ValueError:
        print(name)
"""


@pytest.mark.parametrize("names", [["linear"], pytest.param([], marks=pytest.mark.slow)], ids=["linear", "all"])
def test_gradients_through_shard_map_under_its_default_check(names):
    """Two devices, weights on both: values and gradients of the whole, and no result that passes for the same on both."""
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", ON_TWO_DEVICES, *names], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == (len(names) or 9), done.stdout


def test_forward_mode_and_second_derivatives_are_refused():
    x, w, targets = rand(6, 8), rand(5, 8), jnp.arange(6) % 5
    functions = {
        "linear": lambda x: dj.linear(x, w),
        "cross_entropy": lambda x: dj.cross_entropy(x, w, targets),
        "linear_mse": lambda x: dj.linear_mse(x, w[0], x[:, 0]),
        "norm": lambda x: dj.norm(x, w[0]),
        "add_norm": lambda x: dj.add_norm(x, x, w[0])[1],
        "head_norm": lambda x: dj.head_norm(x, w[0, :2], w[0, :2], 2, 1, 2),
        "activation": lambda x: dj.activation(x, "gelu"),
        "embedding": lambda x: dj.embedding(targets, x),
        "attention": lambda x: dj.attention(x, 2, 1, 2),
    }
    for function in functions.values():
        value = lambda x: (function(x) ** 2).sum()  # noqa: B023, E731
        forward, reverse = (TypeError, "custom_vjp"), (ValueError, "dynadapt_.* cannot be differentiated")
        for transform, refusals in (
            (lambda f: jax.jvp(f, (x,), (x,)), [forward]),
            (lambda f: jax.jacfwd(f)(x), [forward]),
            (lambda f: jax.hessian(f)(x), [forward, reverse]),  # forward over reverse: by whether the gradient is differentiable in turn
            (lambda f: jax.grad(lambda y: (jax.grad(f)(y) ** 2).sum())(x), [reverse]),
        ):
            with pytest.raises(tuple(error for error, _ in refusals), match="|".join(why for _, why in refusals)):
                transform(value)
        same_bits(jax.vmap(function)(jnp.stack([x, 2 * x])), jnp.stack([function(x), function(2 * x)]))
    with pytest.raises(ValueError, match="dynadapt_update. cannot be differentiated"):
        jax.grad(
            lambda m: dj.update(dj.State(m, m, step=jnp.zeros(1, jnp.int32)), UpdateRule("sgd"), jnp.zeros(1, jnp.int32), jnp.ones(1))[
                0
            ].master.sum()
        )(rand(1, 5))


def test_refusals_name_the_argument():
    x, w = rand(6, 8), rand(5, 8)
    for wrong, why in (
        (lambda: dj.linear(x, w.astype(jnp.bfloat16)), "linear: weight 0 has dtype bfloat16, accepted is float32"),
        (lambda: dj.linear(x.astype(jnp.float16), w), "linear: dtype float16"),
        (lambda: dj.linear(x, w, None, x[:2]), "A and Bt: expected both or neither"),
        (lambda: dj.norm(x, x[0], kind="batch"), "kind='batch'"),
        (lambda: dj.activation(x[:, :7]), "expected an even last dimension"),
        (lambda: dj.cross_entropy(x, w, jnp.zeros((6, 1), jnp.int32)), r"targets has shape \(6, 1\)"),
        (lambda: dj.update(state(), UpdateRule("adagrad"), jnp.zeros(1, jnp.int32), jnp.ones(2)), "kind='adagrad'"),
        (lambda: dj.update(dj.State(x, x), UpdateRule("sgd"), jnp.zeros(1, jnp.int32), jnp.ones(2)), "state.step is None"),
    ):
        with pytest.raises(ValueError, match=why):
            wrong()
    for wrong, why in (  # what only the kernel can see
        (lambda: dj.linear(x, rand(5, 7)), r"linear_forward: parts\[0\] has shape \[5, 7\]"),
        (lambda: dj.cross_entropy(x, w, jnp.full(6, 5)), r"cross_entropy: targets\[0\] is 5"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=why):
            jax.block_until_ready(wrong())


def test_gpu_and_missing_compiler_are_said(monkeypatch, tmp_path):
    jax.ffi.register_ffi_target("dynadapt_test_no_gpu", jax.ffi.pycapsule(build.library().dynadapt_xla_no_gpu), platform="cpu")
    with pytest.raises(jax.errors.JaxRuntimeError, match="serves arrays on the CPU only"):
        jax.ffi.ffi_call("dynadapt_test_no_gpu", jax.ShapeDtypeStruct((1,), jnp.float32))().block_until_ready()
    monkeypatch.setenv("DYNADAPT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UnsupportedOp, match="found no compiler 'no-such-compiler'"):
        build._built()
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(UnsupportedOp, match="did not compile against jaxlib"):
        build._built()
    assert list((tmp_path / "xla").iterdir()) == []
