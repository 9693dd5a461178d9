"""Linear read-out with squared error, for regression in context.

pred = h . weight + bias,  loss = (pred - target)^2,  dh = 2 w (pred - target) weight
"""

from __future__ import annotations


def linear_mse(h, weight, bias, target, weights, pred, loss, dh, dweight, dbias) -> None:
    """pred, loss [N] from h [N, H], weight [H], bias [1] or None, target [N]; weights [N] scale the gradients.

    dh [N, H], dweight [H], dbias [1] may be None; the last two are added to.
    """
    wide = pred.dtype
    value = (h.to(wide) @ weight.to(wide)) + (0 if bias is None else bias.to(wide))
    error = value - target
    pred.copy_(value)
    loss.copy_(error.square())
    d = 2 * error if weights is None else 2 * error * weights
    if dh is not None:
        dh.copy_(d[:, None] * weight.to(wide))
    if dweight is not None:
        dweight += d @ h.to(wide)
    if dbias is not None:
        dbias += d.sum()


def flops(rows: int, hidden: int, weight_gradient: bool) -> int:
    """2 N H for the prediction, as much for dweight; dh is an outer product without additions."""
    return 2 * rows * hidden * (2 if weight_gradient else 1)
