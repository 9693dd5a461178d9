"""Feed-forward activations: SwiGLU (Shazeer 2020, arXiv 2002.05202) and GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415).

swiglu:     y = silu(h[:, :F]) * h[:, F:]
gelu:       y = h Phi(h)
gelu_tanh:  y = h/2 (1 + tanh(sqrt(2/pi) (h + 0.044715 h^3)))
"""

from __future__ import annotations

import math

import torch

from .precision import widen

KINDS = ("swiglu", "gelu_tanh", "gelu")


def _check_kind(kind):
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")


def activation_forward(h, kind, y) -> None:
    """y [N, F] from h [N, 2 F] (swiglu) or [N, F]."""
    _check_kind(kind)
    x = widen(h)
    if kind == "swiglu":
        gate, up = x.chunk(2, 1)
        y.copy_(torch.nn.functional.silu(gate) * up)
    else:
        y.copy_(torch.nn.functional.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none"))


def activation_backward(dy, h, kind, dh, y=None) -> None:
    """dh like h from dy [N, F]; y [N, F], when given, becomes the forward's output again, bit for bit, so that it need not
    be kept. dh may be h's memory."""
    _check_kind(kind)
    if y is not None:
        activation_forward(h, kind, y)
    x, g = widen(h), widen(dy)
    if kind == "swiglu":
        gate, up = x.chunk(2, 1)
        s = torch.sigmoid(gate)
        dh.copy_(torch.cat([g * up * s * (1 + gate * (1 - s)), g * gate * s], 1))
    elif kind == "gelu":
        phi = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        dh.copy_(g * (0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * phi))
    else:
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (x + 0.044715 * x**3))
        dh.copy_(g * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x)))
