"""Linear layers with adapters, linear cross-entropy and the read-out with squared error for jax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .call import Frozen, call, check_dtype, f32, like, varied


def _check_weights(op, x, weights) -> None:
    for p, weight in enumerate(weights):
        check_dtype(op, x, **{f"weight {p}": weight})


def linear(x, weights, bias=None, A=None, Bt=None, slots=None, scale: float = 1.0):
    """y [..., O] = x W^T + bias + scale (x A^T) Bt, differentiable in everything but ``slots``.

    Args:
        x: [..., K], float32 or bfloat16. weights: [O, K], or a list of P weights [O_p, K] that read the same input; each an array
            (packed at every call) or what ``freeze`` gives (no gradient).
        bias: [O] or None. A, Bt: [slots, P R, K] and [slots, R, O], or without the first dimension for one slot.
        slots: int32 [S]: of N rows, i N/S .. (i+1) N/S - 1 belong to slots[i]; each slot once. None: all to slot 0.

    Raises:
        ValueError: naming an argument of another dtype. Shapes are checked where the function runs.

    Source: Hu et al. 2021, LoRA (arXiv 2106.09685), eq. 3; ``dynadapt.ops.linear``.
    """
    weights = tuple(weights) if isinstance(weights, (list, tuple)) else (weights,)
    if (A is None) != (Bt is None):
        raise ValueError("A and Bt: expected both or neither")
    check_dtype("linear", x, bias=bias, A=A, Bt=Bt)
    _check_weights("linear", x, weights)
    if A is not None and A.ndim == 2:
        A, Bt = A[None], Bt[None]
    if A is not None and slots is None:
        slots = jnp.zeros(1, jnp.int32)
    y = _linear(float(scale), *varied((x.reshape(-1, x.shape[-1]), weights, bias, A, Bt, slots)))
    return y.reshape(*x.shape[:-1], y.shape[1])


def _linear_forward(scale, x, weights, bias, A, Bt, slots):
    outputs = sum(w.shape[0] for w in weights)
    results = [None if A is None else like(x, x.shape[0], A.shape[1]), like(x, x.shape[0], outputs)]
    return call("linear_forward", results, [x, bias, A, Bt, slots], weights, scale=np.float32(scale))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear(scale, x, weights, bias, A, Bt, slots):
    return _linear_forward(scale, x, weights, bias, A, Bt, slots)[1]


def _linear_kept(scale, x, weights, bias, A, Bt, slots):
    u, y = _linear_forward(scale, x, weights, bias, A, Bt, slots)
    return y, (x, weights, bias, A, Bt, slots, u)


def _linear_gradient(scale, kept, dy):
    x, weights, bias, A, Bt, slots, u = kept
    results = [None if A is None else like(u), like(x)]
    dU, dx = call("linear_backward", results, [dy, A, Bt, slots], weights, scale=np.float32(scale))
    sizes = [w.shape[0] for w in weights]
    dA = dBt = dbias = None
    if A is not None:
        dA, dBt = call(
            "lora_gradient",
            [f32(*A.shape), f32(*Bt.shape)],
            [dy, x, u, dU, slots],
            scale=np.float32(scale),
            part_sizes=np.array(sizes, np.int64),
        )
        dA, dBt = dA.astype(A.dtype), dBt.astype(Bt.dtype)
    if bias is not None:
        dbias = call("bias_gradient", [f32(*bias.shape)], [dy])[0].astype(bias.dtype)
    parts = jnp.split(dy, np.cumsum(sizes)[:-1], 1)
    dweights = tuple(
        w if isinstance(w, Frozen) else call("weight_gradient", [f32(*w.shape)], [part, x])[0].astype(w.dtype)
        for w, part in zip(weights, parts)
    )
    return dx, dweights, dbias, dA, dBt, None


_linear.defvjp(_linear_kept, _linear_gradient)


def cross_entropy(h, head, targets):
    """nll [...], float32 in nats, of integer ``targets`` [...] under logits h [..., H] head^T, which never exist as a whole.

    ``head`` [V, H] is an array or what ``freeze`` gives. Differentiable in h and an array head, token by token. A negative target
    is not scored: nll 0, gradient 0; one that is not below V is an error.

    Source: ``dynadapt.ops.cross_entropy``.
    """
    if targets.shape != h.shape[:-1]:
        raise ValueError(f"targets has shape {targets.shape}: expected {h.shape[:-1]}, one for each row of h")
    check_dtype("cross_entropy", h, head=head)
    return _cross_entropy(*varied((h.reshape(-1, h.shape[-1]), head, targets.reshape(-1)))).reshape(targets.shape)


def _scored(h, head, targets, gradient):
    results = [f32(h.shape[0]), f32(h.shape[0]), like(h) if gradient else None]
    return call("cross_entropy", results, [h, targets], [head])


@jax.custom_vjp
def _cross_entropy(h, head, targets):
    return _scored(h, head, targets, False)[0]


def _cross_entropy_kept(h, head, targets):
    nll, lse, dh = _scored(h, head, targets, True)
    return nll, (h, head, targets, lse, dh)


def _cross_entropy_gradient(kept, g):
    h, head, targets, lse, dh = kept
    dhead = head
    if not isinstance(head, Frozen):
        (dhead,) = call("cross_entropy_weight_gradient", [f32(*head.shape)], [h, targets, g, lse], [head])
        dhead = dhead.astype(head.dtype)
    return (dh * g[:, None]).astype(h.dtype), dhead, None


_cross_entropy.defvjp(_cross_entropy_kept, _cross_entropy_gradient)


def linear_mse(h, weight, target, bias=None):
    """loss [N], float32: (h . weight + bias - target)^2 of h [N, H], weight [H], target float32 [N], bias float32 [1] or None.

    Source: ``dynadapt.ops.linear_mse``.
    """
    check_dtype("linear_mse", h, weight=weight)
    return _linear_mse(*varied((h, weight, bias, target)))[0]


@jax.custom_vjp
def _linear_mse(h, weight, bias, target):
    pred, loss = call("linear_mse", [f32(h.shape[0]), f32(h.shape[0])], [h, weight, bias, target])
    return loss, pred


def _linear_mse_kept(h, weight, bias, target):
    loss, pred = _linear_mse(h, weight, bias, target)
    return (loss, pred), (h, weight, bias, target, pred)


def _linear_mse_gradient(kept, gradients):
    h, weight, bias, target, pred = kept
    g, _ = gradients  # the prediction is not a result of linear_mse
    results = [f32(h.shape[0]), f32(h.shape[0]), like(h), f32(*weight.shape), None if bias is None else f32(1)]
    _, _, dh, dweight, dbias = call("linear_mse", results, [h, weight, bias, target, g])
    return dh, dweight.astype(weight.dtype), dbias, -2 * g * (pred - target)


_linear_mse.defvjp(_linear_mse_kept, _linear_mse_gradient)
