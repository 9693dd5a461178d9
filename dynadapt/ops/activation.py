"""Feed-forward activations: SwiGLU and GEGLU (Shazeer 2020, arXiv 2002.05202), GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415),
and the gate of an attention's output: GLU (Dauphin et al. 2016, arXiv 1612.08083).

swiglu:     y = silu(h[:, :F]) * h[:, F:]
gelu:       y = h Phi(h)
gelu_tanh:  y = h/2 (1 + tanh(sqrt(2/pi) (h + 0.044715 h^3)))
geglu_tanh: y = gelu_tanh(h[:, :F]) * h[:, F:]
glu:        y = sigmoid(h[:, :F]) * h[:, F:]
"""

from __future__ import annotations

import math

import torch

from .precision import widen

KINDS = ("swiglu", "gelu_tanh", "gelu", "geglu_tanh", "glu")  # numbered as in dynadapt.h
GATED = ("swiglu", "geglu_tanh", "glu")  # h is gate and up side by side


def _check_kind(kind):
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")


def activation_forward(h, kind, y) -> None:
    """y [N, F] from h [N, 2 F] (GATED) or [N, F]."""
    _check_kind(kind)
    x, up = widen(h).chunk(2, 1) if kind in GATED else (widen(h), None)
    y.copy_(_value(x, kind) if up is None else _value(x, kind) * up)


def activation_backward(dy, h, kind, dh, y=None) -> None:
    """dh like h from dy [N, F]; y [N, F], when given, becomes the forward's output again, bit for bit, so that it need not
    be kept. dh may be h's memory."""
    _check_kind(kind)
    if y is not None:
        activation_forward(h, kind, y)
    x, up = widen(h).chunk(2, 1) if kind in GATED else (widen(h), None)
    g, slope = widen(dy), _slope(x, kind)
    dh.copy_(g * slope if up is None else torch.cat([g * up * slope, g * _value(x, kind)], 1))


def _value(x, kind):
    if kind == "swiglu":
        return torch.nn.functional.silu(x)
    if kind == "glu":
        return torch.sigmoid(x)
    return torch.nn.functional.gelu(x, approximate="none" if kind == "gelu" else "tanh")


def _slope(x, kind):
    """The derivative of _value."""
    if kind == "swiglu":
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))
    if kind == "glu":
        s = torch.sigmoid(x)
        return s * (1 - s)
    if kind == "gelu":
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    c = math.sqrt(2 / math.pi)
    t = torch.tanh(c * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)
