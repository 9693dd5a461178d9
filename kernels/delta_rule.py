"""The gated delta rule, chunk by chunk of 32 tokens: two launches forward, five backward, for a group of streams.

With G the sum of a chunk's g up to a token and D_ij = e^(G_i - G_j) from the diagonal down, S the state ahead of the chunk:

    A = beta D K K' below the diagonal      T = (I + A)^-1      P = scale D Q K' from the diagonal down
    W = T beta (V - e^G K S)                O = P W + scale e^G Q S
    S <- e^G_end S + (e^(G_end - G) K)' W

``inverse``  T of every chunk and value head, all at once: blocks of 16 on the diagonal row by row, the rest of products, exact because what
             is below one block of two vanishes in its square (of four, in its fourth power).
``forward``  walks over the chunks, value column by value column (delta_walks.py). Backward lets it keep all states and W instead of O.
``states``   walks back, with the gradient dS of the state behind a chunk, column by column as well:
             dW = P' dO + e^(G_end - G) K dS, dR = T' dW, X = -beta e^G dR, dV = beta dR, dS <- e^G_end dS + (scale e^G Q)' dO + K' X
``pairs``    all chunks at once: dA = -dR W', dP = dO W', the gradients of the gates, and what dQ and dK are along Q and K
``backward`` all chunks and some key columns at once, a program a key head with its value heads: dQ and dK (csrc/cpu/kernels/delta_rule.cpp
             has the equations).

Sums of g are float64, because decays of very different strength stand in one chunk and only their differences count; all else is
float32, its products three of TF32, which together are as exact. Streams are taken in groups whose states and writes fit BUDGET bytes of
scratch memory.
"""

from __future__ import annotations

import triton

from ..ops.delta_scratch import BUDGET, groups, rooms_backward, rooms_forward
from .common import launch, scratch
from .delta_chunks import BACKWARD, PAIRS, dynadapt_delta_rule_backward, dynadapt_delta_rule_inverse, dynadapt_delta_rule_pairs
from .delta_parts import CHUNK, WARPS, sizes, tiles
from .delta_walks import dynadapt_delta_rule_forward, dynadapt_delta_rule_states


def _check(op: str, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv) -> None:
    if hk < 1 or hv % hk or hv < 1:
        raise ValueError(f"{op}: hv is {hv}, accepted is a multiple of hk, {hk}")
    for name, size in (("dk", dk), ("dv", dv)):
        if not 1 <= size <= 256:
            raise ValueError(f"{op}: {name} is {size}, accepted is 1 to 256")
    n, streams = len(qkv), len(slots)
    if qkv.shape[1] != 2 * hk * dk + hv * dv:
        raise ValueError(f"{op}: qkv has shape {list(qkv.shape)}, accepted is [any, {2 * hk * dk + hv * dv}]")
    if not streams or n % streams:
        raise ValueError(f"{op}: slots has {streams} entries for {n} rows, accepted is a divisor of the rows")
    for name, t in (("g", g), ("beta", beta)):
        if t.shape != (n, hv) or not t.is_contiguous():
            raise ValueError(f"{op}: {name} has shape {list(t.shape)}, accepted is contiguous [{n}, {hv}]")
    if state is not None and (state.shape[1:] != (hv, dk, dv) or not state.is_contiguous()):
        raise ValueError(f"{op}: state has shape {list(state.shape)}, accepted is contiguous [any, {hv}, {dk}, {dv}]")
    if lengths is not None and len(lengths) != streams:
        raise ValueError(f"{op}: lengths has {len(lengths)} entries, accepted is one a slot, {streams}")


class _Call:
    """What the launches of one call take, for a group of streams at a time."""

    def __init__(self, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, rooms: dict):
        """``rooms``: scratch memory by name, numbers a stream (ops/delta_scratch.py)."""
        self.rows, self.streams = dict(qkv=qkv, g=g, beta=beta), dict(slots=slots, lengths=lengths)
        self.T, self.count, self.hv = len(qkv) // len(slots), len(slots), hv
        self.chunks = triton.cdiv(self.T, CHUNK)
        self.sizes = sizes(hk, hv, dk, dv)
        self.given = dict(state=state, scale=float(scale), eps=float(eps), T=self.T, chunks=self.chunks, stride=qkv.stride(0), **self.sizes)
        self.rooms = rooms

    def groups(self, rows: dict, streams: dict):
        """(arguments, number of streams) of each group; what has rows or streams is cut to the group's."""
        together = groups(self.count, self.rooms, BUDGET)
        most = max(hi - lo for lo, hi in together)
        device = self.rows["qkv"].device
        rooms = {name: scratch(device, f"delta rule {name}", most * size) for name, size in self.rooms.items()}
        for lo, hi in together:
            own = {n: None if t is None else t[lo * self.T : hi * self.T] for n, t in (self.rows | rows).items()}
            own |= {n: None if t is None else t[lo:hi] for n, t in (self.streams | streams).items()}
            yield self.given | rooms | own, hi - lo

    def by_columns(self, streams: int) -> tuple[int, int, int]:
        return triton.cdiv(self.sizes["DV"], self.sizes["BV"]), self.hv, streams


def delta_rule_forward(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, out, final) -> None:
    """out [N, hv dv] and final [S, hv, dk, dv] or None; see ``dynadapt.ops.delta_rule``.

    Raises:
        ValueError: a shape or stride that does not fit, or heads of more than 256.
    """
    _check("delta_rule_forward", qkv, g, beta, state, slots, lengths, hk, hv, dk, dv)
    rooms = rooms_forward(len(qkv) // len(slots), hk, hv, dk, dv, final is not None)
    call = _Call(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, rooms)
    for given, streams in call.groups(dict(out=out), {} if final is None else dict(states=final)):
        if call.chunks:
            launch(dynadapt_delta_rule_inverse, (call.chunks, hv, streams), given, num_warps=WARPS, num_stages=1)
        given |= dict(writes=None, out_stride=out.stride(0), entries=1, step=0)
        launch(dynadapt_delta_rule_forward, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)


def delta_rule_backward(dout, qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, dqkv, dg, dbeta) -> None:
    """dqkv like qkv, dg, dbeta float32 [N, hv]; see ``dynadapt.ops.delta_rule``.

    Raises:
        ValueError: as ``delta_rule_forward``.
    """
    _check("delta_rule_backward", qkv, g, beta, state, slots, lengths, hk, hv, dk, dv)
    rooms = rooms_backward(len(qkv) // len(slots), hk, hv, dk, dv)
    call = _Call(qkv, g, beta, state, slots, lengths, hk, hv, dk, dv, scale, eps, rooms)
    chunks = call.chunks
    if not chunks:
        return
    for given, streams in call.groups(dict(dout=dout, dqkv=dqkv, dg=dg, dbeta=dbeta), {}):
        given |= dict(out=None, out_stride=0, entries=chunks + 1, step=dk * dv, dout_stride=dout.stride(0), dstride=dqkv.stride(0))
        of_chunks = chunks, hv, streams
        launch(dynadapt_delta_rule_inverse, of_chunks, given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_forward, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_states, call.by_columns(streams), given, num_warps=WARPS, num_stages=1)
        launch(dynadapt_delta_rule_pairs, of_chunks, given | tiles(PAIRS, dk, dv), num_warps=WARPS, num_stages=1)
        own = tiles(BACKWARD, dk, dv)
        grid = chunks * triton.cdiv(dk, own["BK"]), hk, streams
        launch(dynadapt_delta_rule_backward, grid, given | own, num_warps=WARPS, num_stages=1)


def reason(op: str) -> str:
    return "Triton, chunks of 32 tokens in float32, the triangular inverse of all at once"
