"""Causal attention over [sinks; memory; segment] with rotary positions counted inside the window.

A stream's memory holds keys **before** rotation and values: entry j sits at window position j, segment token t at
position mem_len + t. Query t sees every memory entry and segment tokens 0..t. Query heads share key and value heads
in groups (Ainslie et al. 2023, arXiv 2305.13245). No gradient flows into memory (Dai et al. 2019, arXiv 1901.02860);
sinks are the document's first entries, kept in front (Xiao et al. 2023, arXiv 2309.17453).

    o = softmax(scale rot(q) rot([k_mem; k])^T + causal) [v_mem; v]

Rotation (Su et al. 2021, arXiv 2104.09864) is the half-split form: (x1 cos - x2 sin, x2 cos + x1 sin).
"""

from __future__ import annotations

import torch

from .precision import widen


def rotate(x, cos, sin):
    """x [..., L, d] rotated by cos, sin [L, d/2]."""
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def _split(qkv, hq, hkv, d):
    """[T, (hq + 2 hkv) d] -> q [hq, T, d], k [hkv, T, d], v [hkv, T, d]."""
    heads = qkv.view(qkv.shape[0], hq + 2 * hkv, d).transpose(0, 1)
    return heads[:hq], heads[hq : hq + hkv], heads[hq + hkv :]


def _window(qkv, mem_k, mem_v, length, cos, sin, hq, hkv, d):
    """Rotated q [hq, T, d], rotated keys and values [hq, L, d] of one stream, in the working dtype."""
    q, k, v = _split(qkv, hq, hkv, d)
    if length:
        k = torch.cat([mem_k[:length].view(length, hkv, d).transpose(0, 1), k], 1)
        v = torch.cat([mem_v[:length].view(length, hkv, d).transpose(0, 1), v], 1)
    if cos is not None:
        total = k.shape[1]
        k = rotate(widen(k), cos[:total], sin[:total]).to(qkv.dtype)
        q = rotate(widen(q), cos[length:total], sin[length:total]).to(qkv.dtype)
    group = hq // hkv
    return q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)


def _scores(q, k, scale, length):
    """Masked scores [hq, T, L], float32 or wider."""
    s = widen(torch.bmm(q, k.transpose(1, 2))) * scale
    t = s.shape[1]
    hidden = torch.ones(t, s.shape[2], dtype=torch.bool, device=s.device).triu(length + 1)
    return s.masked_fill_(hidden, float("-inf"))


def _streams(qkv, slots, mem_len):
    segment = qkv.shape[0] // len(slots)
    for i, slot in enumerate(slots.tolist()):
        yield i, slot, slice(i * segment, (i + 1) * segment), 0 if mem_len is None else int(mem_len[slot])


def attention_forward(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, out, lse) -> None:
    """out [N, hq d] and lse [S, hq, T] from qkv [N, (hq + 2 hkv) d].

    mem_k, mem_v [slots, C, hkv d] or None; mem_len int32 [slots]; slots int32 [S]; cos, sin float32 [P, d/2] or None.
    """
    for i, slot, rows, length in _streams(qkv, slots, mem_len):
        mk, mv = (None, None) if mem_k is None else (mem_k[slot], mem_v[slot])
        q, k, v = _window(qkv[rows], mk, mv, length, cos, sin, hq, hkv, d)
        s = _scores(q, k, scale, length)
        l = torch.logsumexp(s, 2)
        lse[i] = l
        p = torch.exp(s - l[..., None]).to(qkv.dtype)
        out[rows] = torch.bmm(p, v).transpose(0, 1).reshape(-1, hq * d)


def attention_backward(dout, qkv, out, lse, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, dqkv) -> None:
    """dqkv [N, (hq + 2 hkv) d]; probabilities are recomputed from lse, memory gets no gradient."""
    group = hq // hkv
    for i, slot, rows, length in _streams(qkv, slots, mem_len):
        mk, mv = (None, None) if mem_k is None else (mem_k[slot], mem_v[slot])
        q, k, v = _window(qkv[rows], mk, mv, length, cos, sin, hq, hkv, d)
        p = torch.exp(_scores(q, k, scale, length) - lse[i][..., None].to(widen(q).dtype))  # [hq, T, L]
        do = dout[rows].view(-1, hq, d).transpose(0, 1)  # [hq, T, d]
        o = out[rows].view(-1, hq, d).transpose(0, 1)
        delta = (widen(do) * widen(o)).sum(2, keepdim=True)
        dp = widen(torch.bmm(do, v.transpose(1, 2)))
        ds = (p * (dp - delta) * scale).to(q.dtype)
        if length == 0:
            ds[:, 0] *= 0  # one key: its probability is 1 whatever q and k are, and dp - delta only rounding
        dq = widen(torch.bmm(ds, k))
        dk = widen(torch.bmm(ds[:, :, length:].transpose(1, 2), q))
        dv = widen(torch.bmm(p[:, :, length:].to(q.dtype).transpose(1, 2), do))
        t = dq.shape[1]
        if cos is not None:
            back = cos[length : length + t], -sin[length : length + t]
            dq, dk = rotate(dq, *back), rotate(dk, *back)
        dk, dv = (g.view(hkv, group, t, d).sum(1) for g in (dk, dv))
        dqkv[rows] = torch.cat([dq, dk, dv]).transpose(0, 1).reshape(t, -1).to(dqkv.dtype)


def forward_flops(segment: int, memory: int, heads: int, d: int) -> int:
    """One stream: scores and values over the whole T x (M + T) rectangle, the causal half included."""
    return 4 * segment * (memory + segment) * heads * d


def masked_flops(segment: int, heads: int, d: int) -> tuple[int, int]:
    """(forward, recompute and backward): the part of forward_flops and backward_flops that the causal mask throws away, which a
    kernel may skip. The segment's own block above its diagonal, in 2 products forward and 5 backward."""
    above = segment * (segment - 1) * heads * d
    return 2 * above, 5 * above


def memory_flops(segment: int, memory: int, heads: int, d: int) -> dict[str, int]:
    """What ``memory`` entries add to a stream's attention, by phase; forward_flops and backward_flops are linear in them."""
    again, back = (a - b for a, b in zip(backward_flops(segment, memory, heads, d), backward_flops(segment, 0, heads, d)))
    return {"forward": forward_flops(segment, memory, heads, d) - forward_flops(segment, 0, heads, d), "recompute": again, "backward": back}


def backward_flops(segment: int, memory: int, heads: int, d: int) -> tuple[int, int]:
    """(recompute, backward) of one stream: scores again; dP and dQ over the window, dK and dV over the segment only."""
    window = 2 * segment * (memory + segment) * heads * d
    return window, 2 * window + 4 * segment * segment * heads * d
