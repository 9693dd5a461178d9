"""Causal attention over [memory; segment]: two launches forward, three backward.

The kernels are in attention_keys.py, attention_forward.py and attention_backward.py. The first of each direction puts the keys, rotated, and the
values of memory and segment side by side in scratch; the others walk over these.

With a window, tiles that lie before it are not visited: a program's walk starts at the first key that its first query sees, and
dk and dv end at the last query that sees their last key. A soft-cap is three lines in registers, in each of the three walks.

Traffic: qkv and out once each per block that reads them, almost all from L2; nothing of size T x L is in memory.
"""

from __future__ import annotations

import torch
import triton

from .attention_backward import dynadapt_attention_dkv, dynadapt_attention_dq
from .attention_forward import dynadapt_attention_forward
from .attention_keys import ROWS, dynadapt_attention_keys
from .attention_parts import MAX_HEAD, block_sizes, geometry, sums_by_head
from .common import launch, room, scratch
from .tiles import generation

SMALLEST = torch.finfo(torch.float32).tiny
SMS = 132  # blocks are halved when larger ones would leave multiprocessors without work


def _check(op, qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, *contiguous):
    if not SMALLEST <= scale <= 1 / SMALLEST:  # the exponents' factor in float32: masked scores of -inf times 0 would be no number
        raise ValueError(f"{op}: scale is {scale}, accepted is {SMALLEST:.3g} to {1 / SMALLEST:.3g}")
    if window is not None and window < 2:
        raise ValueError(f"{op}: window is {window}, accepted is None or at least 2")
    if d > MAX_HEAD:
        raise ValueError(f"{op}: d is {d}, accepted is up to {MAX_HEAD}")
    if hq % hkv:
        raise ValueError(f"{op}: hq is {hq}, accepted is a multiple of hkv, {hkv}")
    if qkv.shape[1] != (hq + 2 * hkv) * d:
        raise ValueError(f"{op}: qkv has {qkv.shape[1]} columns, accepted is (hq + 2 hkv) d = {(hq + 2 * hkv) * d}")
    if qkv.shape[0] % len(slots):
        raise ValueError(f"{op}: slots has {len(slots)} entries for {qkv.shape[0]} rows")
    if len({mem_k is None, mem_v is None, mem_len is None}) > 1:
        raise ValueError(f"{op}: mem_k, mem_v, mem_len are only partly given")
    if mem_k is not None and (mem_k.stride() != mem_v.stride() or mem_k.stride(2) != 1):
        raise ValueError(
            f"{op}: mem_k and mem_v have strides {mem_k.stride()} and {mem_v.stride()}, accepted are equal ones with contiguous rows"
        )
    if (cos is None) != (sin is None):
        raise ValueError(f"{op}: cos is given without sin, or sin without cos")
    if cos is not None and d % 2:
        raise ValueError(f"{op}: d is {d}, accepted is an even number where rotation is asked for")
    if not all(t.is_contiguous() for t in (qkv, *contiguous, *(t for t in (cos, sin) if t is not None))):
        raise ValueError(f"{op}: expected contiguous tensors (only mem_k and mem_v may have strides)")


def _family(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, softcap) -> dict:
    """What the launches of a call take, by name; keys and values have been put side by side."""
    mem_slot, mem_row = (0, 0) if mem_k is None else mem_k.stride()[:2]
    memory = 0 if mem_k is None else mem_k.shape[1]
    segment = qkv.shape[0] // len(slots)
    if window is not None:
        window = min(window, memory + segment)  # of which it sees all: positions added to a longer one may pass 2^31
    given = dict(qkv=qkv, mem_k=mem_k, mem_v=mem_v, mem_len=mem_len, slots=slots, cos=cos, sin=sin, scale=scale, window=window)
    given |= dict(softcap=softcap, segment=segment, memory=memory, mem_slot=mem_slot, mem_row=mem_row, **geometry(hq, hkv, d))
    for name, width in (("keys", 2 * given["HP"]), ("values", given["DP"])):
        given[name] = room(qkv.device, f"attention_{name}", len(slots) * hkv, memory + segment, width, dtype=qkv.dtype)
    blocks = triton.cdiv(memory, ROWS) + triton.cdiv(segment, ROWS)
    launch(dynadapt_attention_keys, (len(slots) * hkv, blocks), given, BR=ROWS, num_warps=4)
    return given


def _launch(name: str, kernel, heads: int, given: dict, **more) -> None:
    """``heads``: of all streams; a program owns a block of one's queries."""
    qkv, segment = given["qkv"], given["segment"]
    sizes, options = block_sizes(name, qkv.dtype, given["D"], heads * triton.cdiv(segment, 128) >= SMS, generation(qkv.device))
    launch(kernel, (heads, triton.cdiv(segment, sizes["BM"])), given, **more, **sizes, **options)


def _launch_dkv(streams: int, given: dict) -> None:
    """A program owns a block of one head's keys, or where these would leave multiprocessors idle, what one of the group's query heads adds
    to them: the same bits."""
    qkv, segment, hq, hkv, d = (given[name] for name in ("qkv", "segment", "HQ", "HKV", "D"))
    arch, heads = generation(qkv.device), streams * hkv
    by_head = sums_by_head(hq, hkv, d, arch)
    sizes, options = block_sizes("dkv", qkv.dtype, d, heads * triton.cdiv(segment, 128) >= SMS, arch)
    blocks, shares, done = triton.cdiv(segment, sizes["BN"]), None, None
    split = by_head and heads * blocks < SMS
    if split:
        shares = room(qkv.device, "attention_shares", streams * hq, segment, 2 * given["HP"] + given["DP"])
        done = scratch(qkv.device, "programs done", heads * blocks, dtype=torch.int32)
    grid = (heads, blocks, hq // hkv if split else 1)
    launch(dynadapt_attention_dkv, grid, given, shares=shares, done=done, BY_HEAD=by_head, SPLIT=split, **sizes, **options)


def attention_forward(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, out, lse, window=None, softcap=None) -> None:
    """out [N, hq d] and lse [S, hq, T]; see ``dynadapt.ops.attention``."""
    _check("attention_forward", qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, out, lse)
    given = _family(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, softcap)
    _launch("forward", dynadapt_attention_forward, len(slots) * hq, given, out=out, lse=lse)


def attention_backward(
    dout, qkv, out, lse, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, dqkv, window=None, softcap=None
) -> None:
    """dqkv [N, (hq + 2 hkv) d]; see ``dynadapt.ops.attention``."""
    _check("attention_backward", qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, dout, out, lse, dqkv)
    given = _family(qkv, mem_k, mem_v, mem_len, slots, cos, sin, hq, hkv, d, scale, window, softcap)
    streams, segment = len(slots), given["segment"]
    given |= dict(dout=dout, out=out, lse=lse, dqkv=dqkv, statistics=room(qkv.device, "attention_statistics", streams * hq, segment, 2))
    given["rotated_q"] = room(qkv.device, "attention_rotated_q", streams * hq, segment, 2 * given["HP"], dtype=qkv.dtype)
    _launch("dq", dynadapt_attention_dq, streams * hq, given)
    _launch_dkv(streams, given)


def reason(op: str) -> str:
    return "Triton, keys rotated once, memory skipped by its fill"
