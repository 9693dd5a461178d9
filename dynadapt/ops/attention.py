"""Causal attention over [sinks; memory; segment] with rotary positions counted inside the window.

A stream's memory holds keys **before** rotation and values: entry j sits at window position j, segment token t at
position mem_len + t. Query t sees every memory entry and segment tokens 0..t. Query heads share key and value heads
in groups (Ainslie et al. 2023, arXiv 2305.13245). No gradient flows into memory (Dai et al. 2019, arXiv 1901.02860);
sinks are the document's first entries, kept in front (Xiao et al. 2023, arXiv 2309.17453).

    o = softmax(scale rot(q) rot([k_mem; k])^T + causal) [v_mem; v]

With a ``window`` W (Beltagy et al. 2020, arXiv 2004.05150) the query at position p sees the keys at positions p - W + 1 to p
alone, of memory and segment alike: sinks where the positions that they have here are among those. Memory entries before the
first query's window are seen by none, and count nowhere.

With a ``softcap`` c the scores are c tanh(s / c) (Gemma Team 2024, arXiv 2408.00118, section 2), before the mask.

Rotation (Su et al. 2021, arXiv 2104.09864) is the half-split form: (x1 cos - x2 sin, x2 cos + x1 sin).
"""

from __future__ import annotations

import torch

from .cross_entropy import capped
from .precision import widen


def rotate(x, cos, sin):
    """x [..., L, d] rotated by cos, sin [L, d/2]."""
    x1, x2 = x.chunk(2, -1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)


def _split(qkv, hq, hkv, d):
    """[T, (hq + 2 hkv) d] -> q [hq, T, d], k [hkv, T, d], v [hkv, T, d]."""
    heads = qkv.view(qkv.shape[0], hq + 2 * hkv, d).transpose(0, 1)
    return heads[:hq], heads[hq : hq + hkv], heads[hq + hkv :]


def seen_memory(memory: int, window: int | None) -> int:
    """How many of ``memory`` entries some query sees: all, or those within the window of the segment's first."""
    return memory if window is None else min(memory, window - 1)


def _check_window(window):
    if window is not None and window < 2:
        raise ValueError(f"window={window!r}: expected None or at least 2")


def _window(qkv, mem_k, mem_v, length, cos, sin, hq, hkv, d, seen):
    """Rotated q [hq, T, d], rotated keys and values [hq, seen + T, d] of one stream, in the working dtype."""
    q, k, v = _split(qkv, hq, hkv, d)
    first, total = length - seen, length + k.shape[1]
    if seen:
        k = torch.cat([mem_k[first:length].view(seen, hkv, d).transpose(0, 1), k], 1)
        v = torch.cat([mem_v[first:length].view(seen, hkv, d).transpose(0, 1), v], 1)
    if cos is not None:
        k = rotate(widen(k), cos[first:total], sin[first:total]).to(qkv.dtype)
        q = rotate(widen(q), cos[length:total], sin[length:total]).to(qkv.dtype)
    group = hq // hkv
    return q, k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)


def _scores(q, k, scale, seen, window, softcap):
    """Masked scores [hq, T, seen + T], float32 or wider."""
    s = capped(widen(torch.bmm(q, k.transpose(1, 2))) * scale, softcap)
    every = torch.ones(s.shape[1:], dtype=torch.bool, device=s.device)
    hidden = every.triu(seen + 1)
    if window is not None:
        hidden |= every.tril(seen - window)
    return s.masked_fill_(hidden, float("-inf"))


def _streams(qkv, slots, mem_len):
    segment = qkv.shape[0] // len(slots)
    for i, slot in enumerate(slots.tolist()):
        yield i, slot, slice(i * segment, (i + 1) * segment), 0 if mem_len is None else int(mem_len[slot])


def attention_forward(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, out, lse, window=None, softcap=None) -> None:
    """out [N, hq d] and lse [S, hq, T] from qkv [N, (hq + 2 hkv) d].

    mem_k, mem_v [slots, C, hkv d] or None; mem_len int32 [slots]; slots int32 [S]; cos, sin float32 [P, d/2] or None;
    scale: a number above 0; window: None, or at least 2; softcap: None, or a number above 0.
    """
    _check_window(window)
    for i, slot, rows, length in _streams(qkv, slots, mem_len):
        mk, mv = (None, None) if mem_k is None else (mem_k[slot], mem_v[slot])
        seen = seen_memory(length, window)
        q, k, v = _window(qkv[rows], mk, mv, length, cos, sin, hq, hkv, d, seen)
        s = _scores(q, k, scale, seen, window, softcap)
        l = torch.logsumexp(s, 2)
        lse[i] = l
        p = torch.exp(s - l[..., None]).to(qkv.dtype)
        out[rows] = torch.bmm(p, v).transpose(0, 1).reshape(-1, hq * d)


def attention_backward(
    dout, qkv, out, lse, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, dqkv, window=None, softcap=None
) -> None:
    """dqkv [N, (hq + 2 hkv) d]; probabilities are recomputed from lse, memory gets no gradient."""
    _check_window(window)
    group = hq // hkv
    for i, slot, rows, length in _streams(qkv, slots, mem_len):
        mk, mv = (None, None) if mem_k is None else (mem_k[slot], mem_v[slot])
        seen = seen_memory(length, window)
        q, k, v = _window(qkv[rows], mk, mv, length, cos, sin, hq, hkv, d, seen)
        s = _scores(q, k, scale, seen, window, softcap)
        p = torch.exp(s - lse[i][..., None].to(widen(q).dtype))  # [hq, T, seen + T]
        do = dout[rows].view(-1, hq, d).transpose(0, 1)  # [hq, T, d]
        o = out[rows].view(-1, hq, d).transpose(0, 1)
        delta = (widen(do) * widen(o)).sum(2, keepdim=True)
        dp = widen(torch.bmm(do, v.transpose(1, 2)))
        slope = scale if softcap is None else scale * (1 - (s.masked_fill(s.isneginf(), 0.0) / softcap) ** 2)
        ds = (p * (dp - delta) * slope).to(q.dtype)
        if length == 0:
            ds[:, 0] *= 0  # one key: its probability is 1 whatever q and k are, and dp - delta only rounding
        dq = widen(torch.bmm(ds, k))
        dk = widen(torch.bmm(ds[:, :, seen:].transpose(1, 2), q))
        dv = widen(torch.bmm(p[:, :, seen:].to(q.dtype).transpose(1, 2), do))
        t = dq.shape[1]
        if cos is not None:
            back = cos[length : length + t], -sin[length : length + t]
            dq, dk = rotate(dq, *back), rotate(dk, *back)
        dk, dv = (g.view(hkv, group, t, d).sum(1) for g in (dk, dv))
        dqkv[rows] = torch.cat([dq, dk, dv]).transpose(0, 1).reshape(t, -1).to(dqkv.dtype)


def forward_flops(segment: int, memory: int, heads: int, d: int) -> int:
    """One stream: scores and values over the whole T x (M + T) rectangle, the causal half included.

    ``memory``, here and below: what ``seen_memory`` makes of it.
    """
    return 4 * segment * (memory + segment) * heads * d


def masked_flops(segment: int, heads: int, d: int, memory: int = 0, window: int | None = None) -> tuple[int, int]:
    """(forward, recompute and backward): the part of forward_flops and backward_flops that the masks throw away, which a
    kernel may skip. The segment's own block above its diagonal and before the window, in 2 products forward and 5 backward; of
    memory what is before the window, in 2 and 3."""
    own = segment * (segment - 1)
    before = 0
    if window is not None:
        left = max(0, segment - window)  # the last query misses so many of the segment, the one before it one less
        own += left * (left + 1)
        missed = max(0, segment + memory - window)  # of memory and segment
        before = missed * (missed + 1) - left * (left + 1)
    return 2 * (own + before) * heads * d, (5 * own + 3 * before) * heads * d


def memory_flops(segment: int, memory: int, heads: int, d: int) -> dict[str, int]:
    """What ``memory`` entries add to a stream's attention, by phase; forward_flops and backward_flops are linear in them."""
    again, back = (a - b for a, b in zip(backward_flops(segment, memory, heads, d), backward_flops(segment, 0, heads, d)))
    return {"forward": forward_flops(segment, memory, heads, d) - forward_flops(segment, 0, heads, d), "recompute": again, "backward": back}


def backward_flops(segment: int, memory: int, heads: int, d: int) -> tuple[int, int]:
    """(recompute, backward) of one stream: scores again; dP and dQ over the window, dK and dV over the segment only."""
    window = 2 * segment * (memory + segment) * heads * d
    return window, 2 * window + 4 * segment * segment * heads * d
