"""Feed-forward activations for jax."""

from __future__ import annotations

import functools

import jax
import numpy as np

from dynadapt.ops.activation import GATED, KINDS

from .call import call, check_dtype, like, number_of


def activation(h, kind: str = "swiglu"):
    """y [..., F] from h [..., 2 F] (swiglu: silu(h[..., :F]) h[..., F:]; geglu_tanh, glu: gelu_tanh, sigmoid in silu's place) or [..., F]
    (gelu, gelu_tanh).

    Source: ``dynadapt.ops.activation``.
    """
    check_dtype("activation", h)
    number = number_of(kind, KINDS)
    if kind in GATED and h.shape[-1] % 2:
        raise ValueError(f"h has shape {h.shape}: expected an even last dimension, gate and up side by side")
    y = _activation(number, h.reshape(-1, h.shape[-1]))
    return y.reshape(*h.shape[:-1], y.shape[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _activation(kind, h):
    width = h.shape[1] // 2 if KINDS[kind] in GATED else h.shape[1]
    return call("activation_forward", [like(h, h.shape[0], width)], [h], kind=np.int32(kind))[0]


_activation.defvjp(
    lambda kind, h: (_activation(kind, h), h), lambda kind, h, dy: call("activation_backward", [like(h)], [dy, h], kind=np.int32(kind))
)
