"""Linear read-out with squared error for jax."""

from __future__ import annotations

import jax

from .call import call, check_dtype, f32, like, varied


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
