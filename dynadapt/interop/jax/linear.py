"""Linear layers with per-stream adapters for jax."""

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
