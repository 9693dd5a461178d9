"""The gated delta rule: attention whose memory is one matrix for each head (Yang et al. 2024, "Gated Delta Networks", arXiv 2412.06464).

    S_t = exp(g_t) S_{t-1} + k_t (beta_t (v_t - exp(g_t) S_{t-1}ᵀ k_t))ᵀ        the state S [d_k, d_v]
    o_t = S_tᵀ q_t

which is the paper's S_t = S_{t-1} (alpha_t (I - beta_t k_t k_tᵀ)) + beta_t v_t k_tᵀ transposed, alpha = exp(g). Queries and keys are
divided by their length first: k = k_raw / sqrt(|k_raw|^2 + eps), and q likewise, then times ``scale``. A key head serves
hv / hk value heads, each of which has its own gate, beta and state.

The state is what a stream remembers: it comes in as the slot's, goes out as ``final`` after the segment, and like the memory of attention
it is detached: no gradient flows through it to earlier segments.

The reference is the recurrence, token by token. The kernels work in chunks of 64 tokens (on a GPU 32): within one, the writes
u_t = beta_t (v_t - exp(g_t) S_{t-1}ᵀ k_t) solve a triangular system (the WY form of Yang et al. 2024, arXiv 2406.06484), and all else is
products of matrices.
"""

from __future__ import annotations

import torch

from .precision import wide_dtype


def _unit(x, eps):
    """x [..., d] divided by its length, and 1 / length [..., 1]."""
    inverse = torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)
    return x * inverse, inverse


def _unit_backward(dy, y, inverse):
    return (dy - y * (y * dy).sum(-1, keepdim=True)) * inverse


class _Stream:
    """One stream's tokens up to its length, in the wide dtype, head by head: q, k [T, hv, dk], v [T, hv, dv], g, beta [T, hv]."""

    def __init__(self, qkv, g, beta, rows, hk, hv, dk, dv, scale, eps):
        wide = wide_dtype(qkv.dtype)
        q, k, v = qkv[rows].to(wide).split([hk * dk, hk * dk, hv * dv], 1)
        (q, self.q_inverse), (k, self.k_inverse) = (_unit(t.view(-1, hk, dk), eps) for t in (q, k))
        self.unit_q, self.unit_k = q, k  # [T, hk, dk]
        self.q, self.k = (q * scale).repeat_interleave(hv // hk, 1), k.repeat_interleave(hv // hk, 1)
        self.v = v.view(-1, hv, dv)
        self.alpha, self.beta = g[rows].to(wide).exp(), beta[rows].to(wide)

    def states(self, state):
        """The state [hv, dk, dv] before each token and behind the last; per token what the decayed one lacks, v - Sᵀ k [hv, dv]."""
        states, lacks = [state], []
        for t in range(len(self.v)):
            decayed = states[-1] * self.alpha[t, :, None, None]
            lacks.append(self.v[t] - torch.bmm(self.k[t, :, None], decayed)[:, 0])
            written = torch.bmm(self.k[t, :, :, None], (self.beta[t, :, None] * lacks[-1])[:, None])
            states.append(decayed + written)
        return states, lacks


def _streams(qkv, state, slots, lengths, hv, dk, dv):
    """(its number, its rows that count, the rows behind them, its first state) of each stream."""
    segment = qkv.shape[0] // len(slots)
    for i, slot in enumerate(slots.tolist()):
        first, length = i * segment, segment if lengths is None else int(lengths[i])
        wide = wide_dtype(qkv.dtype)
        start = torch.zeros(hv, dk, dv, dtype=wide, device=qkv.device) if state is None else state[slot].to(wide)
        yield i, slice(first, first + length), slice(first + length, first + segment), start


def delta_rule_forward(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, out, final) -> None:
    """out [N, hv dv] and final [S, hv, dk, dv] from qkv [N, 2 hk dk + hv dv], N = S T rows.

    g, beta float32 [N, hv]: the logarithm of the decay, at most 0, and the rate of the write; state float32 [slots, hv, dk, dv] or
    None: zero; slots int32 [S]; lengths int32 [S] or None: T each. Rows from a stream's length on do not count: their out is 0 and
    the state does not see them. ``final`` float32 or None. hv is a multiple of hk.
    """
    sizes = hk, hv, dk, dv, scale, eps
    for i, rows, rest, start in _streams(qkv, state, slots, lengths, hv, dk, dv):
        stream = _Stream(qkv, g, beta, rows, *sizes)
        states, _ = stream.states(start)
        for t, after in enumerate(states[1:]):
            out[rows.start + t] = torch.bmm(stream.q[t, :, None], after).reshape(-1).to(out.dtype)
        out[rest] = 0
        if final is not None:
            final[i] = states[-1]


def delta_rule_backward(dout, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, dqkv, dg, dbeta) -> None:
    """dqkv like qkv, dg, dbeta float32 [N, hv]; none for the state that came in, and none from the one that went out.

    The states are recomputed. The gradient is 0 in rows that do not count.
    """
    sizes = hk, hv, dk, dv, scale, eps
    for _, rows, rest, start in _streams(qkv, state, slots, lengths, hv, dk, dv):
        s = _Stream(qkv, g, beta, rows, *sizes)
        states, lacks = s.states(start)
        dstate = torch.zeros_like(start)  # of the state behind token t
        dq, dk_, dv_ = torch.empty_like(s.q), torch.empty_like(s.k), torch.empty_like(s.v)
        for t in reversed(range(len(s.v))):
            do = dout[rows.start + t].view(hv, 1, dv).to(s.q.dtype)
            decayed = states[t] * s.alpha[t, :, None, None]
            dstate = dstate + torch.bmm(s.q[t, :, :, None], do)
            dq[t] = torch.bmm(states[t + 1], do.transpose(1, 2))[..., 0]
            dwrite = torch.bmm(s.k[t, :, None], dstate)  # [hv, 1, dv]
            dlack = s.beta[t, :, None, None] * dwrite
            dk_[t] = torch.bmm(dstate, (s.beta[t, :, None] * lacks[t])[..., None])[..., 0]
            dk_[t] -= torch.bmm(decayed, dlack.transpose(1, 2))[..., 0]
            dv_[t] = dlack[:, 0]
            dbeta[rows.start + t] = (dwrite[:, 0] * lacks[t]).sum(1)
            dstate = dstate - torch.bmm(s.k[t, :, :, None], dlack)
            dg[rows.start + t] = (dstate * decayed).sum((1, 2))
            dstate = dstate * s.alpha[t, :, None, None]
        of_heads = lambda t: t.view(-1, hk, hv // hk, dk).sum(2)  # noqa: E731
        dq = _unit_backward(of_heads(dq) * scale, s.unit_q, s.q_inverse)
        dk_ = _unit_backward(of_heads(dk_), s.unit_k, s.k_inverse)
        dqkv[rows] = torch.cat([t.flatten(1) for t in (dq, dk_, dv_)], 1).to(dqkv.dtype)
        for gradient in (dqkv, dg, dbeta):
            gradient[rest] = 0


def forward_flops(tokens: int, heads: int, dk: int, dv: int) -> int:
    """Of the recurrence: each token and value head reads the state by its key, writes to it, and reads it by its query."""
    return 6 * tokens * heads * dk * dv


def backward_flops(tokens: int, heads: int, dk: int, dv: int) -> tuple[int, int]:
    """(recompute, backward) of the recurrence: the states again without queries; six products of a vector and the state or its gradient."""
    return 4 * tokens * heads * dk * dv, 12 * tokens * heads * dk * dv
