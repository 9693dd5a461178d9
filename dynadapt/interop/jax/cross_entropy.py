"""Linear cross-entropy for jax."""

from __future__ import annotations

import functools

import jax
import numpy as np

from .call import Frozen, call, check_dtype, f32, like, varied


def cross_entropy(h, head, targets, *, softcap: float | None = None):
    """nll [...], float32 in nats, of integer ``targets`` [...] under logits h [..., H] head^T, which never exist as a whole.

    ``head`` [V, H] is an array or what ``freeze`` gives. Differentiable in h and an array head, token by token. A negative target
    is not scored: nll 0, gradient 0; one that is not below V is an error.
    softcap: logits are softcap tanh(logit / softcap); None: as they are.

    Source: ``dynadapt.ops.cross_entropy``.
    """
    if targets.shape != h.shape[:-1]:
        raise ValueError(f"targets has shape {targets.shape}: expected {h.shape[:-1]}, one for each row of h")
    check_dtype("cross_entropy", h, head=head)
    return _cross_entropy(softcap or 0.0, *varied((h.reshape(-1, h.shape[-1]), head, targets.reshape(-1)))).reshape(targets.shape)


def _scored(softcap, h, head, targets, gradient):
    results = [f32(h.shape[0]), f32(h.shape[0]), like(h) if gradient else None]
    return call("cross_entropy", results, [h, targets], [head], softcap=np.float32(softcap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(softcap, h, head, targets):
    return _scored(softcap, h, head, targets, False)[0]


def _cross_entropy_kept(softcap, h, head, targets):
    nll, lse, dh = _scored(softcap, h, head, targets, True)
    return nll, (h, head, targets, lse, dh)


def _cross_entropy_gradient(softcap, kept, g):
    h, head, targets, lse, dh = kept
    dhead = head
    if not isinstance(head, Frozen):
        results, given = [f32(*head.shape)], [h, targets, g, lse]
        (dhead,) = call("cross_entropy_weight_gradient", results, given, [head], softcap=np.float32(softcap))
        dhead = dhead.astype(head.dtype)
    return (dh * g[:, None]).astype(h.dtype), dhead, None


_cross_entropy.defvjp(_cross_entropy_kept, _cross_entropy_gradient)
