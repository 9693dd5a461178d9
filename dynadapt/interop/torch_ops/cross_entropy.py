"""Linear cross-entropy (ops/cross_entropy.py)."""

from __future__ import annotations

import torch

from dynadapt.ops import cross_entropy as op_entropy

from .packing import matrices
from .registry import autograd, contiguous, functional, kernel, once, wide, wide_zeros


def _check_targets(op, targets, fit, accepted, name="targets"):
    """Raises ValueError for a target that does not ``fit``; on a GPU the check stays in its queue, as torch's own does."""
    if targets.device.type != "cpu":
        torch._assert_async(fit.all(), f"{op}: {'a target' if name == 'targets' else name} out of range, accepted is {accepted}")
    elif not fit.all():
        place = int(fit.logical_not().nonzero()[0])
        raise ValueError(f"{op}: {name}[{place}] is {int(targets[place])}, accepted is {accepted}")


@functional("scored_targets(Tensor targets, SymInt vocabulary, int ignore_index) -> (Tensor scored, Tensor count)")
def _scored_targets(targets, vocabulary, ignore_index):
    """The targets [N] as cross_entropy takes them, -1 for ``ignore_index``, and how many count. An op, to be opaque to compilers."""
    scored, count = torch.empty_like(targets, memory_format=torch.contiguous_format), targets.new_empty(())
    yield scored, count
    ignored = targets == ignore_index
    _check_targets(
        "cross_entropy",
        targets,
        ignored | ((targets >= 0) & (targets < vocabulary)),
        f"0 to {vocabulary - 1}, or ignore_index={ignore_index}",
    )
    scored.copy_(targets.masked_fill(ignored, -1))
    count.copy_(ignored.logical_not().sum())


@functional(
    "cross_entropy(Tensor h, Tensor head, Tensor targets, bool gradient=False, float? softcap=None) -> (Tensor nll, Tensor lse, Tensor dh)",
    lambda h, head, targets, gradient=False, softcap=None: op_entropy.flops(h[0], h[1], head[0], gradient),
)
def _cross_entropy(h, head, targets, gradient=False, softcap=None):
    nll, lse = wide(h, h.shape[0]), wide(h, h.shape[0])
    dh = h.new_empty(h.shape[0] if gradient else 0, h.shape[1])  # of nll, row by row
    yield nll, lse, dh
    h, targets = contiguous(h, targets)
    (matrix,) = matrices("cross_entropy", [head], h)
    _check_targets("cross_entropy", targets, targets < head.shape[0], f"up to {head.shape[0] - 1} (or negative: not scored)")
    kernel("cross_entropy", h)(h, matrix, targets, None, nll, lse, dh if gradient else None, softcap)


@functional(
    "cross_entropy_weight_gradient(Tensor h, Tensor head, Tensor targets, Tensor? weights, Tensor lse, float? softcap=None) -> Tensor",
    lambda h, head, targets, weights, lse, softcap=None: sum(op_entropy.weight_gradient_flops(h[0], h[1], head[0])),
    gradient=True,
)
def _weight_gradient(h, head, targets, weights, lse, softcap=None):
    dW = wide(h, head.shape[0], head.shape[1])
    yield dW
    h, targets, weights, lse = contiguous(h, targets, weights, lse)
    (matrix,) = matrices("cross_entropy_weight_gradient", [head], h)
    _check_targets(
        "cross_entropy_weight_gradient", targets, targets < head.shape[0], f"up to {head.shape[0] - 1} (or negative: not scored)"
    )
    kernel("cross_entropy_weight_gradient", h)(h, matrix, targets, weights, lse, dW, False, softcap)


@functional(
    "distillation(Tensor h, Tensor head, Tensor targets, Tensor ids, Tensor logp, Tensor? weights, bool gradient=False, "
    "float? softcap=None) -> (Tensor nll, Tensor lse, Tensor kl, Tensor dh)",
    lambda h, head, targets, ids, logp, weights, gradient=False, softcap=None: op_entropy.flops(h[0], h[1], head[0], gradient),
    gradient=True,
)
def _distillation(h, head, targets, ids, logp, weights, gradient=False, softcap=None):
    nll, lse, kl = (wide(h, h.shape[0]) for _ in range(3))
    dh = h.new_empty(h.shape[0] if gradient else 0, h.shape[1])  # of weights x kl
    yield nll, lse, kl, dh
    h, targets, ids, logp, weights = contiguous(h, targets, ids, logp, weights)
    (matrix,) = matrices("distillation", [head], h)
    for name, tokens in (("targets", targets), ("ids", ids)):
        _check_targets(
            "distillation", tokens.reshape(-1), tokens.reshape(-1) < head.shape[0], f"up to {head.shape[0] - 1} (or negative)", name
        )
    kernel("distillation", h)(h, matrix, targets, ids, logp, weights, nll, lse, kl, dh if gradient else None, softcap)


def _rows(t) -> tuple[int, int, int, int]:
    """The sizes that formulas of adapted heads take: of h [N, H], head [V, H] and Bt [slots, R, V]."""
    h, head, Bt = t
    return h[0], h[1], head[0], Bt[1]


@functional(
    "adapted_cross_entropy(Tensor h, Tensor head, Tensor A, Tensor Bt, Tensor slots, float scale, Tensor targets, Tensor? weights, "
    "bool gradient=False, float? softcap=None) -> (Tensor u, Tensor nll, Tensor lse, Tensor dh, Tensor dU)",
    lambda h, head, A, Bt, slots, scale, targets, weights, gradient=False, softcap=None: sum(
        op_entropy.adapted_flops(*_rows((h, head, Bt)), gradient)
    ),
    gradient=True,
)
def _adapted(h, head, A, Bt, slots, scale, targets, weights, gradient=False, softcap=None):
    n, learned = h.shape[0], h.shape[0] if gradient else 0
    u, nll, lse = h.new_empty(n, Bt.shape[1]), wide(h, n), wide(h, n)
    dh, dU = h.new_empty(learned, h.shape[1]), h.new_empty(learned, Bt.shape[1])  # of weights x nll
    yield u, nll, lse, dh, dU
    h, A, Bt, slots, targets, weights = contiguous(h, A, Bt, slots, targets, weights)
    (matrix,) = matrices("adapted_cross_entropy", [head], h)
    _check_targets("adapted_cross_entropy", targets, targets < head.shape[0], f"up to {head.shape[0] - 1} (or negative: not scored)")
    outputs = (dh, dU) if gradient else (None, None)
    kernel("adapted_cross_entropy", h)(h, matrix, A, Bt, slots, scale, targets, weights, u, nll, lse, *outputs, softcap)


@functional(
    "adapted_cross_entropy_gradient(Tensor h, Tensor head, Tensor Bt, Tensor slots, float scale, Tensor targets, Tensor? weights, "
    "Tensor lse, Tensor u, Tensor dU, float? softcap=None) -> (Tensor dA, Tensor dBt)",
    lambda h, head, Bt, *_, **__: sum(op_entropy.adapted_gradient_flops(*_rows((h, head, Bt)))),
    gradient=True,
)
def _adapted_gradient(h, head, Bt, slots, scale, targets, weights, lse, u, dU, softcap=None):
    dA, dBt = wide_zeros(h, Bt.shape[0], Bt.shape[1], h.shape[1]), wide_zeros(h, *Bt.shape)  # 0 of adapters without rows
    yield dA, dBt
    h, Bt, slots, targets, weights, lse, u, dU = contiguous(h, Bt, slots, targets, weights, lse, u, dU)
    (matrix,) = matrices("adapted_cross_entropy_gradient", [head], h)
    _check_targets(
        "adapted_cross_entropy_gradient", targets, targets < head.shape[0], f"up to {head.shape[0] - 1} (or negative: not scored)"
    )
    kernel("adapted_cross_entropy_gradient", h)(h, matrix, Bt, slots, scale, targets, weights, lse, u, dU, dA, dBt, False, softcap)


def _setup(ctx, inputs, output):
    h, head, targets, gradient, ctx.softcap = inputs
    _, lse, dh = output
    ctx.save_for_backward(h, head, targets, lse, dh)
    ctx.gradient = gradient
    ctx.mark_non_differentiable(lse, dh)


def _gradient(ctx, g, *_):
    h, head, targets, lse, dh = ctx.saved_tensors
    needs_h, needs_head = ctx.needs_input_grad[:2]
    grad_h = grad_head = None
    if needs_h:
        if not ctx.gradient:
            dh = _cross_entropy(h, head, targets, True, ctx.softcap)[2]
        grad_h = once("cross_entropy", (dh * g[:, None]).to(h.dtype), h, head)
    if needs_head:
        grad_head = _weight_gradient(h, head, targets, g, lse, ctx.softcap).to(head.dtype)
    return grad_h, grad_head, None, None, None


autograd(_cross_entropy, _setup, _gradient)


def cross_entropy(h, head, targets, *, softcap: float | None = None) -> torch.Tensor:
    """nll [...] in nats (float32 or wider) of ``targets`` under logits h head^T, which never exist as a whole.

    Differentiable in h and head, each row's gradient weighted by its own incoming one. Where h needs a gradient it is computed in
    the same pass, so that backward costs nothing more for a frozen head.

    Args:
        h: [..., H]; head: [V, H] of the same dtype; targets: int64 [...], each below V; a negative one is not scored (nll 0).
        softcap: logits are softcap tanh(logit / softcap) (Gemma 2); None: as they are.

    Raises:
        ValueError: naming the argument whose shape, dtype or device does not fit.

    Source: ``dynadapt.ops.cross_entropy``.
    """
    if targets.shape != h.shape[:-1]:
        raise ValueError(f"targets has shape {tuple(targets.shape)}: expected {tuple(h.shape[:-1])}, one for each row of h")
    gradient = h.requires_grad and torch.is_grad_enabled()
    nll, _, _ = _cross_entropy(h.reshape(-1, h.shape[-1]), head, targets.reshape(-1), gradient, softcap)
    return nll.reshape(targets.shape)
