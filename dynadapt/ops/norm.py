"""RMSNorm and LayerNorm with the residual add that precedes them.

    res = x + delta
    rms:    y = res / sqrt(mean(res^2) + eps) * weight                (Zhang and Sennrich 2019, arXiv 1910.07467)
    layer:  y = (res - mean) / sqrt(var + eps) * weight + bias        (Ba et al. 2016, arXiv 1607.06450)

Statistics are float32 or wider; ``stat`` [N, 2] keeps (mean, 1 / sqrt(...)) for backward, mean 0 for rms.
"""

from __future__ import annotations

import torch

KINDS = ("rms", "layer")


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")


def norm_forward(x, delta, weight, bias, eps, kind, res, y, stat) -> None:
    """x, delta, res, y [N, H]; delta None: no add, and res may be None; weight [H] of their dtype or in float32, bias [H]."""
    _check_kind(kind)
    total = x if delta is None else x + delta
    if res is not None:
        res.copy_(total)
    wide = total.to(stat.dtype)
    mean = wide.mean(1, keepdim=True) if kind == "layer" else torch.zeros_like(wide[:, :1])
    centred = wide - mean
    rstd = torch.rsqrt(centred.square().mean(1, keepdim=True) + eps)
    stat.copy_(torch.cat([mean, rstd], 1))
    out = centred * rstd * weight.to(wide.dtype)
    y.copy_(out if bias is None else out + bias.to(wide.dtype))


def norm_backward(dy, res, weight, stat, kind, dres, dx, dweight, dbias, bias=None, y=None) -> None:
    """dx [N, H] = gradient through the norm + dres (the gradient that reaches res past the norm).

    dweight, dbias [H] are added to when given. y [N, H], when given, becomes the forward's output again, bit for bit, so
    that it need not be kept; ``bias`` [H] is read for that alone. dx may be dres's memory.
    """
    _check_kind(kind)
    wide = stat.dtype
    mean, rstd = stat[:, :1], stat[:, 1:]
    g = dy.to(wide)
    xhat = (res.to(wide) - mean) * rstd
    if y is not None:
        out = xhat * weight.to(wide)
        y.copy_(out if bias is None else out + bias.to(wide))
    gw = g * weight.to(wide)
    d = gw - xhat * (gw * xhat).mean(1, keepdim=True)
    if kind == "layer":
        d = d - gw.mean(1, keepdim=True)
    d = d * rstd
    dx.copy_(d if dres is None else d + dres.to(wide))
    if dweight is not None:
        dweight += (g * xhat).sum(0)
    if dbias is not None:
        dbias += g.sum(0)
