"""RMSNorm of every head, times SiLU of a gate: the output of the gated delta rule (Yang et al. 2024, arXiv 2412.06464).

y_h = x_h / sqrt(mean(x_h^2) + eps) * weight * gate_h sigmoid(gate_h)        over the head dimension d
"""

from __future__ import annotations

import torch


def _heads(x, d, dtype):
    return x.unflatten(1, (-1, d)).to(dtype)


def gated_norm_forward(x, gate, weight, eps, d, y, rstd) -> None:
    """x, gate, y [N, H d], weight [d]; rstd float32 [N, H] for backward."""
    wide = rstd.dtype
    heads, gates = _heads(x, d, wide), _heads(gate, d, wide)
    rstd.copy_(torch.rsqrt(heads.square().mean(2) + eps))
    y.copy_((heads * rstd[..., None] * weight.to(wide) * gates * torch.sigmoid(gates)).flatten(1))


def gated_norm_backward(dy, x, gate, weight, rstd, d, dx, dgate, dweight) -> None:
    """dx, dgate like x; dweight float32 [d] is added to when given."""
    wide = rstd.dtype
    g, gates, xhat = _heads(dy, d, wide), _heads(gate, d, wide), _heads(x, d, wide) * rstd[..., None]
    sigma = torch.sigmoid(gates)
    gw = g * gates * sigma * weight.to(wide)
    dx.copy_(((gw - xhat * (gw * xhat).mean(2, keepdim=True)) * rstd[..., None]).flatten(1))
    dgate.copy_((g * xhat * weight.to(wide) * sigma * (1 + gates * (1 - sigma))).flatten(1))
    if dweight is not None:
        dweight += (g * xhat * gates * sigma).sum((0, 1))
