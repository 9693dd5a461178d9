"""Linear cross-entropy: score, log-sum-exp and the hidden state's gradient; the logits of all rows never exist at once.

Rows are taken in chunks, so that one buffer of a size (row_chunks.py) that does not grow with the number of tokens serves any segment. A frozen head costs 4 H V per row (2 H V for the score alone): nothing is recomputed.

This file holds the chunked form: cuBLAS writes the chunk's logits in the working dtype, one Triton kernel turns each row
into nll, lse and, in place, w (softmax - onehot), and cuBLAS multiplies that with the head. Three launches a chunk; four
when the chunk has too few rows to fill the GPU and the vocabulary is split over programs. Traffic beside the products:
the chunk's logits are read twice and written once. At 49,152 words the second time is from L2, as the 264 rows that an H100 works on
at a time are 26 MB of its 50; at 128,256 words they are 68 MB, and it is from memory. Not fused: the softmax into the
products. That is the other form, ``cross_entropy_fused``, which moves less but multiplies in Triton; which one serves is
looked up in the table of measurements (``choices``), for score and gradient alike, so that both give the same score.

The weight gradient recomputes a chunk's logits from lse in the same way; a Triton product sums over chunks in float32.

``distillation`` is the chunked form with three launches between the products: scores, loss and the gradient at the teacher's tokens from
the logits, then the gradient everywhere else over them, then those few on top. Nothing is subtracted from a rounded number.

``adapted_cross_entropy`` is the chunked form with the adapters' products (row_adapters.py) before those of cuBLAS, which adds the base's onto
them: 3 launches a chunk for the score, 7 with the gradient, 4 more for the adapters' own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from . import choices, row_adapters
from .common import FUSION, Variant, block, dot, hyperbolic_tangent, launch, scratch, variant, wait_for_previous
from .cross_entropy_fused import cross_entropy_fused
from .products import add_mm, mm
from .row_chunks import chunks, padded_rows

# One row's block: 16 values a thread in two 16-byte loads; 49,152 are 12 blocks, 128,256 are 31.3.
BLOCK, WARPS = 4096, 8
# Below two programs a multiprocessor the memory is not kept busy: the blocks of a row become programs of their own.
SPLIT_BELOW = 256


@triton.jit
def _load(logits, cols, mask, softcap):
    """Logits in float32, soft-capped."""
    x = tl.load(logits + cols, mask=mask, other=0.0).to(tl.float32)
    if softcap is not None:
        x = hyperbolic_tangent(x / softcap) * softcap
    return x


@triton.jit
def _slope(x, softcap):
    """The derivative of capped logits in those before the cap, from the former."""
    t = x / softcap
    return 1.0 - t * t


@triton.jit
def _block_sum(logits, cols, V, width, softcap):
    """Logits of one block in float32, their maximum and the sum of exp(logit - maximum)."""
    x = _load(logits, cols, cols < width, softcap)
    x = tl.where(cols < V, x, float("-inf"))
    m = tl.max(x, 0)
    return x, m, tl.sum(tl.exp(x - m), 0)


@triton.jit
def _join(m, s, block_max, block_sum):
    """Maximum and sum of two blocks; the same operations in the same order in both launch forms."""
    top = tl.maximum(m, block_max)
    return top, s * tl.exp(m - top) + block_sum * tl.exp(block_max - top)


@triton.jit
def _score(nll, lse, row, target, target_logit, total):
    tl.store(lse + row, total)
    tl.store(nll + row, tl.where(target >= 0, total - target_logit, 0.0))


@triton.jit
def _write_gradient(logits, x, cols, target, total, weights, row, V, width, softcap):
    """logits = w (exp(x - lse) - onehot), nought where the row is not scored, even if it is not finite."""
    d = tl.exp(x - total) - tl.where(cols == target, 1.0, 0.0)
    if weights is not None:
        d *= tl.load(weights + row)
    if softcap is not None:
        d *= _slope(x, softcap)
    d = tl.where((target >= 0) & (cols < V), d, 0.0)
    tl.store(logits + cols, d.to(logits.dtype.element_ty), mask=cols < width)


@triton.jit
def dynadapt_cross_entropy_rows(logits, targets, weights, nll, lse, softcap, V, width, BLOCK: tl.constexpr, GRADIENT: tl.constexpr):
    """One program a row of logits [rows, width]; columns from V on are padding."""
    wait_for_previous()
    row = tl.program_id(0)
    logits += row.to(tl.int64) * width
    target = tl.load(targets + row)
    target_logit = _load(logits, tl.maximum(target, 0), target < V, softcap)
    m, s = float("-inf"), 0.0
    for start in range(0, width, BLOCK):
        _, block_max, block_sum = _block_sum(logits, start + tl.arange(0, BLOCK), V, width, softcap)
        m, s = _join(m, s, block_max, block_sum)
    total = m + tl.log(s)
    _score(nll, lse, row, target, target_logit, total)
    if GRADIENT:
        for start in range(0, width, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            x = _load(logits, cols, cols < width, softcap)
            _write_gradient(logits, x, cols, target, total, weights, row, V, width, softcap)


@triton.jit
def dynadapt_cross_entropy_partials(logits, targets, maxima, sums, target_logits, softcap, V, width, blocks, BLOCK: tl.constexpr):
    """maxima, sums [rows, blocks] and the target's logit [rows], before the logits are overwritten."""
    wait_for_previous()
    row, b = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * width
    cols = b * BLOCK + tl.arange(0, BLOCK)
    x, m, s = _block_sum(logits, cols, V, width, softcap)
    tl.store(maxima + row * blocks + b, m)
    tl.store(sums + row * blocks + b, s)
    target = tl.maximum(tl.load(targets + row), 0)
    tl.store(target_logits + row, _load(logits, target, target < V, softcap), mask=target // BLOCK == b)


@triton.jit
def dynadapt_cross_entropy_apply(
    logits, targets, weights, maxima, sums, target_logits, nll, lse, softcap, V, width, blocks, BLOCK: tl.constexpr, GRADIENT: tl.constexpr
):
    """One program a row and block: the gradient from the partials, or from a given lse when there are none."""
    wait_for_previous()
    row, b = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * width
    target = tl.load(targets + row)
    if maxima is not None:
        m, s = float("-inf"), 0.0
        for i in range(blocks):
            m, s = _join(m, s, tl.load(maxima + row * blocks + i), tl.load(sums + row * blocks + i))
        total = m + tl.log(s)
        if b == 0:
            _score(nll, lse, row, target, tl.load(target_logits + row), total)
    else:
        total = tl.load(lse + row)
    if GRADIENT:
        cols = b * BLOCK + tl.arange(0, BLOCK)
        x = _load(logits, cols, cols < width, softcap)
        _write_gradient(logits, x, cols, target, total, weights, row, V, width, softcap)


@triton.jit
def dynadapt_distillation_score(
    logits,
    targets,
    ids,
    logp,
    weights,
    nll,
    lse,
    kl,
    scale,
    differences,
    softcap,
    V,
    width,
    K,
    BLOCK: tl.constexpr,
    TEACHER: tl.constexpr,
    GRADIENT: tl.constexpr,
):
    """One program a row of logits: nll, lse, kl; scale = w P and differences [TEACHER] = w (P softmax - p) at the teacher's tokens."""
    wait_for_previous()
    row = tl.program_id(0)
    logits += row.to(tl.int64) * width
    target = tl.load(targets + row)
    target_logit = _load(logits, tl.maximum(target, 0), target < V, softcap)
    m, s = float("-inf"), 0.0
    for start in range(0, width, BLOCK):
        _, block_max, block_sum = _block_sum(logits, start + tl.arange(0, BLOCK), V, width, softcap)
        m, s = _join(m, s, block_max, block_sum)
    total = m + tl.log(s)
    _score(nll, lse, row, target, target_logit, total)
    k = tl.arange(0, TEACHER)
    at = row.to(tl.int64) * K + k
    token = tl.load(ids + at, mask=k < K, other=-1)
    known = token >= 0
    log_p = tl.load(logp + at, mask=k < K, other=0.0)
    p = tl.where(known, tl.exp(log_p), 0.0)
    logit = _load(logits, token, known, softcap)
    chosen = logit - total
    loss = tl.sum(tl.where(known, p * (log_p - chosen), 0.0), 0)
    tl.store(kl + row, tl.where(target >= 0, loss, 0.0))
    if GRADIENT:
        weight = 1.0
        if weights is not None:
            weight = tl.load(weights + row)
        mass = tl.sum(p, 0)
        tl.store(scale + row, weight * mass)
        d = weight * (mass * tl.exp(chosen) - p)
        if softcap is not None:
            d *= _slope(logit, softcap)
        tl.store(differences + row.to(tl.int64) * TEACHER + k, d)


@triton.jit
def dynadapt_distillation_apply(logits, targets, lse, scale, softcap, V, width, BLOCK: tl.constexpr):
    """logits = scale softmax, nought where the row is not scored; one program a row and block."""
    wait_for_previous()
    row, b = tl.program_id(0), tl.program_id(1)
    logits += row.to(tl.int64) * width
    cols = b * BLOCK + tl.arange(0, BLOCK)
    x = _load(logits, cols, cols < width, softcap)
    d = tl.load(scale + row) * tl.exp(x - tl.load(lse + row))
    if softcap is not None:
        d *= _slope(x, softcap)
    d = tl.where((tl.load(targets + row) >= 0) & (cols < V), d, 0.0)
    tl.store(logits + cols, d.to(logits.dtype.element_ty), mask=cols < width)


@triton.jit
def dynadapt_distillation_teacher(logits, targets, ids, differences, width, K, TEACHER: tl.constexpr):
    """The gradient at a row's teacher's tokens; one program a row."""
    wait_for_previous()
    row = tl.program_id(0)
    k = tl.arange(0, TEACHER)
    token = tl.load(ids + row.to(tl.int64) * K + k, mask=k < K, other=-1)
    d = tl.load(differences + row.to(tl.int64) * TEACHER + k)
    token = tl.where(tl.load(targets + row) >= 0, token, -1)
    tl.store(logits + row.to(tl.int64) * width + token, d.to(logits.dtype.element_ty), mask=token >= 0)


@triton.jit(do_not_specialize=["rows"])
def dynadapt_cross_entropy_weight_gradient(
    d, h, dW, rows, V, width, stride_h, H: tl.constexpr, ACCUMULATE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr
):
    """dW (+)= d^T h: d [rows, width], h [rows, H], dW [V, H] float32; one tile of dW a program."""
    wait_for_previous()
    hidden = tl.program_id(0) * BN + tl.arange(0, BN)
    first = tl.program_id(1) * BM
    tokens = tl.arange(0, BM)  # of the vocabulary, from ``first`` on
    k = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for start in range(0, rows, BK):
        live = start + k < rows
        a = tl.load(
            d + (start + k)[:, None] * width + first + tokens[None, :], mask=live[:, None] & (first + tokens < width)[None, :], other=0.0
        )  # [BK, BM]
        b = tl.load(
            h + (start + k)[:, None] * stride_h + hidden[None, :], mask=live[:, None] & (hidden < H)[None, :], other=0.0
        )  # [BK, BN]
        acc = dot(tl.trans(a), b, acc)
    out = dW + first.to(tl.int64) * H + tokens[:, None] * H + hidden[None, :]
    mask = (first + tokens < V)[:, None] & (hidden < H)[None, :]
    if ACCUMULATE:
        acc += tl.load(out, mask=mask, other=0.0)
    tl.store(out, acc, mask=mask)


def reason(op: str) -> str:
    if op == "cross_entropy_weight_gradient":
        return "cuBLAS logits, Triton gradient of the logits, Triton product"
    if op.startswith("adapted_cross_entropy"):
        return "cuBLAS logits onto each row's adapter in Triton, Triton gradient of the logits"
    if op == "distillation":
        return "cuBLAS logits, Triton loss and gradient of the logits, cuBLAS product"
    return f"Triton, {choices.reason(op)}; split is cuBLAS, Triton softmax, cuBLAS"


def check_shapes(op: str, h, head, targets) -> None:
    if h.shape[1] != head.weight.shape[1]:
        raise ValueError(f"{op}: h has shape {list(h.shape)}, accepted is [any, {head.weight.shape[1]}]")
    if targets.shape != h.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"{op}: targets is {targets.dtype} {list(targets.shape)}, accepted is torch.int64 [{len(h)}]")


def cross_entropy(h, head, targets, weights, nll, lse, dh, softcap=None) -> None:
    """nll, lse [N] in nats; dh [N, H] scaled by weights [N], or None for the score alone.

    targets int64 [N]; a negative target is not scored: nll 0, dh 0. Soft-capped logits are served by the chunked form.
    """
    check_shapes("cross_entropy", h, head, targets)
    V, H = head.weight.shape
    if softcap is None and choices.choose("cross_entropy", len(h), H, V, 0, h.dtype) == "fused":
        cross_entropy_fused(h, head, targets, weights, nll, lse, dh)
    else:
        cross_entropy_chunked(h, head, targets, weights, nll, lse, dh, softcap)


def _logits(h, weight, most: int, adapted=None):
    """The chunk's logits [rows, width]: rows padded to whole 16-byte accesses, whatever the vocabulary. ``adapted``: (u, Bt, slots, scale)
    of the rows' adapters, whose part of the logits is there first."""
    V = weight.shape[0]
    buffer = scratch(h.device, "cross_entropy logits", most, triton.cdiv(V, 128) * 128, dtype=h.dtype)[: len(h)]
    if adapted is None:
        mm(h, weight.t(), buffer[:, :V])
    else:
        row_adapters.expand(*adapted, buffer[:, :V])
        add_mm(buffer[:, :V], h, weight.t())
    return buffer


def _family(logits, targets, weights, nll, lse, V: int, gradient: bool, softcap) -> dict:
    """What the launches over a chunk's logits take, by name."""
    width = logits.shape[1]
    given = dict(logits=logits, targets=targets, weights=weights, nll=nll, lse=lse, V=V, width=width, softcap=softcap)
    return dict(given, BLOCK=block(width, BLOCK), GRADIENT=gradient)


def _score_rows(logits, targets, weights, nll, lse, V: int, gradient: bool, most: int, softcap) -> None:
    given, rows = _family(logits, targets, weights, nll, lse, V, gradient, softcap), len(logits)
    blocks = triton.cdiv(given["width"], given["BLOCK"])
    if rows >= SPLIT_BELOW or blocks == 1:
        launch(dynadapt_cross_entropy_rows, (rows,), given, num_warps=WARPS)
        return
    given["maxima"], given["sums"] = scratch(logits.device, "cross_entropy partials", 2, most, blocks)
    given |= dict(target_logits=scratch(logits.device, "cross_entropy targets", most), blocks=blocks)
    launch(dynadapt_cross_entropy_partials, (rows, blocks), given, num_warps=WARPS)
    launch(dynadapt_cross_entropy_apply, (rows, blocks if gradient else 1), given, num_warps=WARPS)


def cross_entropy_chunked(h, head, targets, weights, nll, lse, dh, softcap=None) -> None:
    """``cross_entropy`` with cuBLAS products."""
    V = head.weight.shape[0]
    most = padded_rows(h, V)
    for lo, hi in chunks(h, V):
        logits = _logits(h[lo:hi], head.weight, most)
        given = targets[lo:hi], None if weights is None else weights[lo:hi], nll[lo:hi], lse[lo:hi]
        _score_rows(logits, *given, V, dh is not None, most, softcap)
        if dh is not None:
            mm(logits[:, :V], head.weight, dh[lo:hi])


def distillation(h, head, targets, ids, logp, weights, nll, lse, kl, dh, softcap=None) -> None:
    """nll, lse [N] as of ``cross_entropy``; kl [N] in nats from a teacher; dh [N, H] of kl scaled by weights [N], or None for the scores.

    ids int64 [N, K], different tokens in each row, negative where there is none; logp [N, K] float32: their log-probabilities.
    """
    check_shapes("distillation", h, head, targets)
    if ids.shape != logp.shape or ids.dim() != 2 or len(ids) != len(h) or not ids.shape[1] or ids.dtype != torch.int64:
        raise ValueError(
            f"distillation: ids is {ids.dtype} {list(ids.shape)} and logp {list(logp.shape)}, accepted are torch.int64 [{len(h)}, K] and "
            "log-probabilities of that shape"
        )
    V, K = head.weight.shape[0], ids.shape[1]
    most, teacher = padded_rows(h, V), triton.next_power_of_2(K)
    for lo, hi in chunks(h, V):
        rows = slice(lo, hi)
        logits = _logits(h[rows], head.weight, most)
        given = _family(logits, targets[rows], None if weights is None else weights[rows], nll[rows], lse[rows], V, dh is not None, softcap)
        given |= dict(ids=ids[rows], logp=logp[rows], kl=kl[rows], K=K, TEACHER=teacher, scale=None, differences=None)
        if dh is not None:
            given["scale"] = scratch(h.device, "distillation scale", most)
            given["differences"] = scratch(h.device, "distillation differences", most, teacher)
        launch(dynadapt_distillation_score, (hi - lo,), given, num_warps=WARPS)
        if dh is not None:
            blocks = triton.cdiv(given["width"], given["BLOCK"])
            launch(dynadapt_distillation_apply, (hi - lo, blocks), given, num_warps=WARPS)
            launch(dynadapt_distillation_teacher, (hi - lo,), given, num_warps=1)
            mm(logits[:, :V], head.weight, dh[rows])


def _product_config(dtype: torch.dtype) -> dict:
    """128 x 128 sums are 64 registers a thread; float32 does without tensor cores and keeps tiles small."""
    if dtype == torch.float32:
        return {"BM": 64, "BN": 64, "BK": 16, "num_warps": 4, "num_stages": 2}
    return {"BM": 128, "BN": 128, "BK": 64, "num_warps": 8, "num_stages": 3}


def _gradient_of_logits(logits, targets, weights, lse, V: int, softcap) -> None:
    """In place, from a chunk's logits and their lse."""
    given = _family(logits, targets, weights, None, lse, V, True, softcap)
    given |= dict.fromkeys(("maxima", "sums", "target_logits"), None) | {"blocks": 1}  # no partials: lse is given
    launch(dynadapt_cross_entropy_apply, (len(logits), triton.cdiv(given["width"], given["BLOCK"])), given, num_warps=WARPS)


def cross_entropy_weight_gradient(h, head, targets, weights, lse, dW, accumulate, softcap=None) -> None:
    """dW [V, H] float32 (+)= sum_n w_n (softmax_n - onehot_n) h_n^T, logits recomputed from h and lse."""
    check_shapes("cross_entropy_weight_gradient", h, head, targets)
    V, H = head.weight.shape
    if not accumulate and not len(h):
        dW.zero_()
    most = padded_rows(h, V)
    config = _product_config(h.dtype)
    grid = (triton.cdiv(H, config["BN"]), triton.cdiv(V, config["BM"]))
    for lo, hi in chunks(h, V):
        logits = _logits(h[lo:hi], head.weight, most)
        _gradient_of_logits(logits, targets[lo:hi], None if weights is None else weights[lo:hi], lse[lo:hi], V, softcap)
        rows, width = logits.shape
        dynadapt_cross_entropy_weight_gradient[grid](
            logits, h[lo:hi], dW, rows, V, width, h.stride(0), H, accumulate or lo > 0, **config, **FUSION
        )


def _check_adapters(op: str, h, head, targets, slots, low: dict, adapters: dict) -> None:
    """Raises ValueError for shapes that decide which memory is touched; which slots there are is for the caller to know."""
    check_shapes(op, h, head, targets)
    (N, H), V = h.shape, head.weight.shape[0]
    if slots.shape != (N,) or slots.dtype != torch.int32 or not slots.is_contiguous():
        raise ValueError(f"{op}: slots is {slots.dtype} {list(slots.shape)}, accepted is contiguous torch.int32 [{N}]")
    count, rank = adapters["Bt"].shape[:2]
    for name, t in low.items():
        if t.shape != (N, rank) or t.stride(1) != 1:
            raise ValueError(f"{op}: {name} has shape {list(t.shape)} and strides {t.stride()}, accepted is [{N}, {rank}] in row order")
    for name, t in adapters.items():
        shape = (count, rank, V if name in ("Bt", "dBt") else H)
        if t.shape != shape or t.stride()[1:] != (shape[2], 1):
            accepted = f"{list(shape)}, packed within a slot"
            raise ValueError(f"{op}: {name} has shape {list(t.shape)} and strides {t.stride()}, accepted is {accepted}")


def adapted_cross_entropy(h, head, A, Bt, slots, scale, targets, weights, u, nll, lse, dh, dU, softcap=None) -> None:
    """``cross_entropy`` of logits h W^T + scale u Bt, with u = h A^T [N, R] and dU = scale g Bt^T [N, R], dU None for the score alone.

    A [slots, R, H], Bt [slots, R, V]; slots int32 [N]: the adapter of each row; the rows of one stand side by side. dh None, with dU:
    nothing below the head learns.
    """
    low = {"u": u} if dU is None else {"u": u, "dU": dU}
    _check_adapters("adapted_cross_entropy", h, head, targets, slots, low, {"A": A, "Bt": Bt})
    V = head.weight.shape[0]
    most = padded_rows(h, V)
    row_adapters.shrink(h, A, slots, 1.0, u)
    for lo, hi in chunks(h, V):
        rows = slice(lo, hi)
        logits = _logits(h[rows], head.weight, most, (u[rows], Bt, slots[rows], scale))
        given = targets[rows], None if weights is None else weights[rows], nll[rows], lse[rows]
        _score_rows(logits, *given, V, dU is not None, most, softcap)
        if dU is None:
            continue
        row_adapters.shrink(logits[:, :V], Bt, slots[rows], scale, dU[rows])
        if dh is not None:
            row_adapters.expand(dU[rows], A, slots[rows], 1.0, dh[rows])
            add_mm(dh[rows], logits[:, :V], head.weight)


def adapted_cross_entropy_gradient(h, head, Bt, slots, scale, targets, weights, lse, u, dU, dA, dBt, accumulate, softcap=None) -> None:
    """dA (+)= dU^T h [slots, R, H] and dBt (+)= scale u^T g [slots, R, V], both float32, of the adapters in ``slots`` alone; logits
    recomputed from h, u and lse."""
    op, adapters = "adapted_cross_entropy_gradient", {"Bt": Bt, "dA": dA, "dBt": dBt}
    _check_adapters(op, h, head, targets, slots, {"u": u, "dU": dU}, adapters)
    if not len(h):
        return
    V = head.weight.shape[0]
    most, found = padded_rows(h, V), row_adapters.spans(slots, len(Bt))
    for lo, hi in chunks(h, V):
        rows = slice(lo, hi)
        logits = _logits(h[rows], head.weight, most, (u[rows], Bt, slots[rows], scale))
        _gradient_of_logits(logits, targets[rows], None if weights is None else weights[rows], lse[rows], V, softcap)
        row_adapters.gradient(logits, h, u, dU, slots, found, scale, lo, hi, dA, dBt, accumulate)


_TYPES = {
    **dict.fromkeys(("logits", "d", "h"), "*bf16"),
    **dict.fromkeys(("targets", "ids"), "*i64"),
    "softcap": "fp32",
    **dict.fromkeys(("weights", "nll", "lse", "maxima", "sums", "target_logits", "dW", "logp", "kl", "scale", "differences"), "*fp32"),
}


def _variants():
    sizes, budget = {"BLOCK": BLOCK, "GRADIENT": True, "softcap": None}, {"num_warps": WARPS, "loose": ("V", "blocks"), "registers": 128}
    compiled = lambda name, kernel, constexprs: variant(name, kernel, _TYPES, constexprs, **budget)  # noqa: E731
    for gradient in (True, False):
        yield compiled(f"bf16 gradient={gradient}", dynadapt_cross_entropy_rows, {**sizes, "GRADIENT": gradient})
    yield compiled("bf16 weights=None", dynadapt_cross_entropy_rows, {**sizes, "weights": None})
    yield compiled("bf16 capped", dynadapt_cross_entropy_rows, {"BLOCK": BLOCK, "GRADIENT": True})
    yield compiled("bf16", dynadapt_cross_entropy_partials, {"BLOCK": BLOCK, "softcap": None})
    yield compiled("bf16", dynadapt_cross_entropy_apply, sizes)
    given = dict.fromkeys(("maxima", "sums", "target_logits", "nll"))
    yield compiled("bf16 lse given", dynadapt_cross_entropy_apply, {**sizes, **given})
    teacher = {"num_warps": WARPS, "loose": ("V", "K"), "registers": 128}
    for gradient in (True, False):
        constexprs = {
            "BLOCK": BLOCK,
            "TEACHER": 64,
            "GRADIENT": gradient,
            "softcap": None,
            **({} if gradient else dict.fromkeys(("scale", "differences"))),
        }
        yield variant(f"bf16 gradient={gradient}", dynadapt_distillation_score, _TYPES, constexprs, **teacher)
    yield variant("bf16", dynadapt_distillation_apply, _TYPES, {"BLOCK": BLOCK, "softcap": None}, **teacher)
    yield variant("bf16", dynadapt_distillation_teacher, _TYPES, {"TEACHER": 64}, **{**teacher, "num_warps": 1})
    for dtype, name in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
        tiles = _product_config(dtype)
        options = {n: tiles.pop(n) for n in ("num_warps", "num_stages")}
        options |= {"tensor_core": name == "bf16", "loose": ("V",), "dtype": name}
        tiles |= {"H": 2048, "ACCUMULATE": True}
        yield variant(f"{name} H=2048", dynadapt_cross_entropy_weight_gradient, _TYPES, tiles, **options)


VARIANTS: list[Variant] = list(_variants())
