"""The gates of the gated delta rule (Yang et al. 2024, arXiv 2412.06464; the decay is that of Gu and Dao 2023, "Mamba", arXiv 2312.00752).

    g = -exp(a_log) softplus(a + dt_bias)        the logarithm of the decay, at most 0
    beta = sigmoid(b)                            the rate of the write

of each value head, from two numbers that the layer projects for it. ``ops/delta_rule.py`` takes both in float32.
"""

from __future__ import annotations

import torch


def _step(a, dt_bias, wide):
    return a.to(wide) + dt_bias.to(wide)


def delta_gates_forward(a, b, a_log, dt_bias, g, beta) -> None:
    """g, beta float32 [N, hv] from a, b [N, hv] and a_log, dt_bias float32 [hv]."""
    g.copy_(-torch.exp(a_log) * torch.nn.functional.softplus(_step(a, dt_bias, g.dtype)))
    beta.copy_(torch.sigmoid(b.to(beta.dtype)))


def delta_gates_backward(dg, dbeta, a, b, a_log, dt_bias, da, db, da_log, ddt_bias) -> None:
    """da, db like a, b from dg, dbeta float32 [N, hv]; da_log, ddt_bias float32 [hv] are added to when given."""
    step, rate = _step(a, dt_bias, dg.dtype), torch.exp(a_log)
    dstep = -dg * rate * torch.sigmoid(step)
    sigma = torch.sigmoid(b.to(dg.dtype))
    da.copy_(dstep)
    db.copy_(dbeta * sigma * (1 - sigma))
    if da_log is not None:
        da_log -= (dg * rate * torch.nn.functional.softplus(step)).sum(0)
    if ddt_bias is not None:
        ddt_bias += dstep.sum(0)
