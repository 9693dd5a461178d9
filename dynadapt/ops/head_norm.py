"""RMSNorm of every query and key head before rotation (Qwen3's q_norm and k_norm); values pass through.

y_h = x_h / sqrt(mean(x_h^2) + eps) * weight        over the head dimension d
"""

from __future__ import annotations

import torch


def _heads(qkv, hq, hkv, d):
    return qkv.view(qkv.shape[0], hq + 2 * hkv, d)


def _weights(q_weight, k_weight, hq, hkv, dtype):
    return torch.cat([q_weight.to(dtype).expand(hq, -1), k_weight.to(dtype).expand(hkv, -1)])  # [hq + hkv, d]


def head_norm_forward(qkv, q_weight, k_weight, eps, hq, hkv, d, out, rstd) -> None:
    """qkv, out [N, (hq + 2 hkv) d]; q_weight, k_weight [d]; rstd [N, hq + hkv] for backward."""
    x = _heads(qkv, hq, hkv, d)
    qk = x[:, : hq + hkv].to(rstd.dtype)
    rstd.copy_(torch.rsqrt(qk.square().mean(2) + eps))
    y = _heads(out, hq, hkv, d)
    y[:, : hq + hkv] = (qk * rstd[..., None] * _weights(q_weight, k_weight, hq, hkv, qk.dtype)).to(out.dtype)
    y[:, hq + hkv :] = x[:, hq + hkv :]


def head_norm_backward(dout, qkv, q_weight, k_weight, rstd, hq, hkv, d, dqkv, dq_weight, dk_weight) -> None:
    """dqkv like qkv; dq_weight, dk_weight [d] are added to when given."""
    n = hq + hkv
    wide = rstd.dtype
    g = _heads(dout, hq, hkv, d)[:, :n].to(wide)
    xhat = _heads(qkv, hq, hkv, d)[:, :n].to(wide) * rstd[..., None]
    gw = g * _weights(q_weight, k_weight, hq, hkv, wide)
    dx = (gw - xhat * (gw * xhat).mean(2, keepdim=True)) * rstd[..., None]
    out = _heads(dqkv, hq, hkv, d)
    out[:, :n] = dx.to(dqkv.dtype)
    out[:, n:] = _heads(dout, hq, hkv, d)[:, n:]
    if dq_weight is not None:
        dq_weight += (g * xhat)[:, :hq].sum((0, 1))
    if dk_weight is not None:
        dk_weight += (g * xhat)[:, hq:].sum((0, 1))
