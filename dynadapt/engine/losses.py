"""The losses that can be learned from, by name. Each is one pass of the chunked head, whose logits never exist as a whole.

With logp = -NLL the log-probability of a token under the weights as they are, and w its weight (``Engine.step``):

    cross_entropy         w NLL
    importance_sampling   -w exp(logp - old) advantage        old: its log-probability when it was sampled
    kl                    w sum_k p_k (log p_k - log q_k)      p: a teacher's probabilities of K tokens, q: those of the model

The gradient of the second in the NLL is w exp(logp - old) advantage: the gradient of cross-entropy, row by row times a number that is
known once the token is scored (the policy gradient off-policy: Degris et al. 2012, arXiv 1205.4839, without a clip). The third is
distillation (Hinton et al. 2015, arXiv 1503.02531) from a teacher's likeliest tokens: ops/cross_entropy.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from dynadapt.common.checks import choice, shown, token_ids, wrong

from .step_arguments import per_token

Fields = dict[str, tuple[torch.dtype, tuple[int, ...]]]

LOSSES = {"cross_entropy": (), "importance_sampling": ("logp", "advantages"), "kl": ("ids", "logp")}  # -> what each is given
ROUNDING = 1e-3  # by which logarithms may exceed 0 and probabilities sum to more than 1


@dataclass(frozen=True)
class Loss:
    """One of LOSSES, with what it is given for all rows of a call, on the host: [R, T], of a teacher's K tokens [R, T, K]."""

    name: str = "cross_entropy"
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def candidates(self) -> int:
        return self.inputs["ids"].shape[2] if self.name == "kl" else 0


CROSS_ENTROPY = Loss()


def given_fields(name: str, scored: int, candidates: int, wide: torch.dtype) -> Fields:
    """What a pass is given of a loss."""
    if name == "kl":
        return {"ids": (torch.int64, (scored, candidates)), "logp": (wide, (scored, candidates))}
    return dict.fromkeys(LOSSES[name], (wide, (scored,)))


def check_loss(loss, inputs, rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> Loss:
    """``loss`` with ``inputs``, a mapping of what it takes: numbers [rows, width], ids and their numbers [rows, width, K].

    Raises:
        ValueError: naming the loss, or the input that is missing, unknown or wrong, with its value.
    """
    name = choice("loss", loss, LOSSES)
    inputs = {} if inputs is None else inputs
    takes = f"a dictionary of {', '.join(LOSSES[name])} for loss={name!r}" if LOSSES[name] else f"None for loss={name!r}"
    if not isinstance(inputs, Mapping) or set(inputs) != set(LOSSES[name]):
        raise wrong("inputs", sorted(map(str, inputs)) if isinstance(inputs, Mapping) else inputs, takes)
    if name == "importance_sampling":
        logp = _logarithms(inputs["logp"], (rows, width), dtype)
        return Loss(name, {"logp": logp, "advantages": _advantages(inputs["advantages"], rows, width, dtype)})
    return Loss(name, _teacher(inputs["ids"], inputs["logp"], rows, width, vocabulary, dtype)) if name == "kl" else Loss()


def _advantages(values, rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    one = getattr(values, "ndim", None) == 1 or isinstance(values, (list, tuple)) and not any(map(_has_rows, values))
    if one:  # of a row's tokens all
        return per_token("inputs['advantages']", values, (rows,), dtype, f", or [{rows}, {width}]")[:, None].expand(rows, width)
    return per_token("inputs['advantages']", values, (rows, width), dtype, f", or [{rows}]")


def _has_rows(value) -> bool:
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def _logarithms(values, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    found = per_token("inputs['logp']", values, shape, dtype)
    if bool((found > ROUNDING).any()):
        place = (found > ROUNDING).nonzero()[0].tolist()
        raise ValueError(
            f"inputs['logp'][{', '.join(map(str, place))}]={found[tuple(place)].item():g}: expected logarithms of probabilities, at most 0 "
            "(a score in nats with its sign turned)"
        )
    return found


def _teacher(ids, logp, rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = token_ids("inputs['ids']", ids).cpu()
    if found.dim() != 3 or tuple(found.shape[:2]) != (rows, width):
        raise ValueError(
            f"inputs['ids'] has shape {tuple(found.shape)}: expected [{rows}, {width}, K], the teacher's tokens for each target"
        )
    if int(found.min()) < -1 or int(found.max()) >= vocabulary:
        raise ValueError(f"inputs['ids'] hold {int(found.min())}..{int(found.max())}: expected 0..{vocabulary - 1}, or -1 for no token")
    ordered = found.sort(-1).values
    twice = ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any(-1)
    if bool(twice.any()):
        row, place = twice.nonzero()[0].tolist()
        raise ValueError(f"inputs['ids'][{row}, {place}]={shown(found[row, place].tolist())}: expected different tokens")
    numbers = _logarithms(logp, tuple(found.shape), dtype)
    sums = torch.where(found >= 0, numbers.exp(), 0.0).sum(-1)
    if bool((sums > 1 + ROUNDING).any()):
        row, place = (sums > 1 + ROUNDING).nonzero()[0].tolist()
        raise ValueError(f"inputs['logp'][{row}, {place}]: the probabilities sum to {sums[row, place].item():g}, expected at most 1")
    return {"ids": found, "logp": numbers}


# ---- the device's part: from the gradient of the NLLs to that of the loss


def by_importance(nll, weights, gradients, old, advantages) -> torch.Tensor:
    """``gradients`` [N, ...] of weights x NLL (None: none) become those of -weights x exp(logp - old) x advantages; the NLLs' weights in it [N]."""
    return times(weights, gradients, torch.exp(-nll - old) * advantages)


def times(weights, gradients, factor) -> torch.Tensor:
    """``gradients`` [N, ...] (None: none) become ``factor`` [N] times what they are; the weights times the factor."""
    for gradient in gradients:
        if gradient is not None:
            torch.mul(gradient, factor[:, None], out=gradient)  # in the factor's precision, rounded once
    return weights * factor


def add_teacher(ops, h, targets, weights, teacher, dW, accumulate: bool) -> torch.Tensor:
    """The part of the head's gradient [V, H] that ``cross_entropy_weight_gradient`` has not, with the weights [N] which that one then takes:

    sum_n w_n (P_n softmax_n - sum_k p_nk onehot_k) h_n^T = sum_n w_n P_n (softmax_n - onehot_n) h_n^T + sum_n w_n (P_n onehot_n - sum_k ...) h_n^T
    """
    ids, logp = teacher
    if not accumulate:
        dW.zero_()
    p = torch.where(ids >= 0, logp.exp(), 0.0)
    mass, counted = p.sum(1), torch.where(targets >= 0, weights, 0.0)
    for tokens, part in ((targets, mass), *((ids[:, k], -p[:, k]) for k in range(ids.shape[1]))):
        ops.embedding_backward(tokens.clamp(min=0), (h * (counted * part)[:, None]).to(h.dtype), dW)
    return weights * mass
